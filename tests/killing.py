"""Children of this process that are killed at random moments, and what they leave behind.

With FRAMEPACK_FULL=1 in the environment tests run in the length that a release is judged by.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from framepack_core.weights.files import read_header

FULL = os.environ.get("FRAMEPACK_FULL") == "1"
POLL = 0.002  # seconds between looks at the files of a running child


def in_child(work: Callable[[], object]) -> int:
    """Begin to do something in a child process; its id. What it prints is lost."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        work()
        code = 0
    finally:
        os._exit(code)


def wait(child: int) -> int:
    """The exit code of a child; negative is the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_after(seconds: float, child: int, folder: Path) -> int:
    """SIGKILL a child after a while, watching all the time that no half file gets a final name."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        check_whole(folder)
        time.sleep(POLL)
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
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
