"""Memory does not grow with the length of a video, from sampling through saving."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runs import picture
from killing import FULL

SHORT, LONG = 4, 40 if FULL else 16
MOST = 1.1  # times the peak of the short run
# The short form has small frames, the full one those of Toy World.
SIZE = "64 64" if FULL else "16 32"

pytestmark = pytest.mark.skipif(not hasattr(os, "wait4"), reason="nothing tells a child's memory")


def peak(sections: int, window: int, image: str, out: Path) -> int:
    """Most memory in kB that a run in a process of its own had in use."""
    command = f"-m framepack_core.cli generate --snapshot toyworld --prompt x --seed 1 \
        --video_size {SIZE} --video_sections {sections} --latent_window_size {window} \
        --infer_steps 1 --device cpu"
    command = [*command.split(), "--image_path", image, "--save_path", str(out)]
    child = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0 and len(list(out.glob("*.mp4"))) == 1
    return usage.ru_maxrss


@pytest.mark.slow
def test_a_long_video_needs_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    window = 9 if FULL else 2
    short, long = (peak(n, window, image, tmp_path / str(n)) for n in (SHORT, LONG))
    print(
        f"{SHORT} sections: {short / 1e3:.0f} MB, {LONG}: {long / 1e3:.0f} MB, {long / short:.3f}"
    )
    assert long <= MOST * short
