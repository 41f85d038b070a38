"""Each check of checks_*.py as a test."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

CHECK = re.compile(r"^(@slow\n)?def check_(\w+)\(", re.MULTILINE)
CHECKS = [
    pytest.param(name, marks=pytest.mark.slow if slow else ())
    for path in sorted(Path(__file__).parent.glob("checks_*.py"))
    for slow, name in CHECK.findall(path.read_text("utf-8"))
]


@pytest.mark.parametrize("check", CHECKS)
def test_inside_comfyui(check: str, inside: dict[str, dict[str, Any]]) -> None:
    outcome = inside[check]
    assert outcome["ok"], outcome["error"]
    if "skipped" in outcome:
        pytest.skip(outcome["skipped"])
