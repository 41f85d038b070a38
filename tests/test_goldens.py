"""Every golden folder that can be found must pass; without one the tests are skipped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(os.environ.get("FRAMEPACK_GOLDENS", ROOT.parent / "shared" / "goldens"))


@pytest.mark.skipif(
    not FOLDER.is_dir(), reason="no golden folder; set FRAMEPACK_GOLDENS to one to run it"
)
def test_golden_folder_passes() -> None:
    command = [sys.executable, str(ROOT / "tests" / "goldens.py"), str(FOLDER)]
    result = subprocess.run(command, capture_output=True, text=True)
    bad = [line for line in result.stdout.splitlines() if line.startswith(("FAIL", "UNKNOWN"))]
    assert result.returncode == 0, "\n".join(bad) + result.stderr
    assert "PASS" in result.stdout
