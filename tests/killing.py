"""Fresh interpreters that are killed at random moments, and what they leave behind.

With FRAMEPACK_FULL=1 in the environment tests run in the length that a release is judged by.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from framepack_core.weights.files import read_header

FULL = os.environ.get("FRAMEPACK_FULL") == "1"
POLL = 0.002  # seconds between looks at the files of a running child
LONGEST = 120  # seconds that a child may take


def start(program: Path, *arguments: object) -> subprocess.Popen[str]:
    """Run a Python program up to the line that it prints once all is imported and loaded.

    A copy of this process would hang: PyTorch has threads, which a fork does not copy.
    """
    command = [sys.executable, str(program), *map(str, arguments)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout
    assert child.stdout.readline(), f"{program} ended with {wait(child)} before it began"
    return child


def wait(child: subprocess.Popen[str]) -> int:
    """The exit code of a child; negative is the signal that ended it."""
    try:
        child.communicate(timeout=LONGEST)
    finally:
        child.kill()
    return child.returncode


def kill_after(seconds: float, child: subprocess.Popen[str], folder: Path) -> int:
    """SIGKILL a child after a while, watching all the time that no half file gets a final name."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        check_whole(folder)
        time.sleep(POLL)
    child.kill()
    code = wait(child)
    check_whole(folder)
    return code


def check_whole(folder: Path) -> None:
    """Every file below a folder that does not have a temporary name is complete."""
    for path in final_files(folder):
        if path.suffix == ".safetensors":
            read_header(path)  # refuses a file that is shorter than it says
        elif path.suffix == ".json":
            json.loads(path.read_text())


def final_files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def moments(count: int, duration: float, seed: int) -> list[float]:
    """Random moments of a run, spread over all of it: one in each of `count` equal parts."""
    draw = random.Random(seed)
    parts = [(part + draw.random()) / count for part in range(count)]
    draw.shuffle(parts)
    return [duration * part for part in parts]
