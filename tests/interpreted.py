"""Tests of Triton's kernels, which its interpreter runs on a CPU in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

INNER = os.environ.get("TRITON_INTERPRET") == "1"

# How Triton's interpreter (3.6) fails in a loop with NumPy 2.5 and newer.
TOO_NEW = "only 0-dimensional arrays can be converted to Python scalars"


def again_interpreted(file: str, *options: str) -> None:
    """Run a test file again with the interpreter; skip where that one does not know this NumPy."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", file, "-q", "-p", "no:cacheprovider", *options],
        cwd=Path(file).parents[1],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode and TOO_NEW in done.stdout:
        pytest.skip("the interpreter of this Triton does not know this NumPy")
    assert done.returncode == 0, done.stdout[-3000:]
