"""Each check of inside_comfy.py as a test."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).with_name("inside_comfy.py").read_text(encoding="utf-8")
CHECKS = re.findall(r"^def check_(\w+)\(", SOURCE, flags=re.MULTILINE)


@pytest.mark.parametrize("check", CHECKS)
def test_inside_comfyui(check: str, inside: dict[str, dict[str, Any]]) -> None:
    outcome = inside[check]
    assert outcome["ok"], outcome["error"]
