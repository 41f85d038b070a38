"""Every golden case of the repository passes, or differs as reviewed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def test_golden_folder_passes() -> None:
    command = [sys.executable, str(TESTS / "goldens.py"), str(TESTS / "goldens")]
    result = subprocess.run(command, capture_output=True, text=True)
    bad = [line for line in result.stdout.splitlines() if line.startswith(("FAIL", "UNKNOWN"))]
    assert result.returncode == 0, "\n".join(bad) + result.stderr
    assert "PASS" in result.stdout
