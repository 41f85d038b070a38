"""The pure functions of the interface (js/lib), by Node's own test runner where there is a Node."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

TESTS = sorted((Path(__file__).parent / "js").glob("*.test.mjs"))
OLDEST = 20


def node() -> str:
    """The Node to test with."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("no Node: the tests of js/lib are not run")
    version = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    if int(version.strip().lstrip("v").split(".")[0]) < OLDEST:
        pytest.skip(f"Node {version.strip()} is older than {OLDEST}")
    return program


def test_js_lib() -> None:
    command = [node(), "--test", "--test-reporter=tap", *map(str, TESTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    passed = re.search(r"^# pass (\d+)$", done.stdout, re.MULTILINE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert passed and int(passed[1]) > 50
