"""Each check of checks_*.py as a test."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

CHECKS = [
    name
    for path in sorted(Path(__file__).parent.glob("checks_*.py"))
    for name in re.findall(r"^def check_(\w+)\(", path.read_text("utf-8"), flags=re.MULTILINE)
]


@pytest.mark.parametrize("check", CHECKS)
def test_inside_comfyui(check: str, inside: dict[str, dict[str, Any]]) -> None:
    outcome = inside[check]
    assert outcome["ok"], outcome["error"]
    if "skipped" in outcome:
        pytest.skip(outcome["skipped"])
