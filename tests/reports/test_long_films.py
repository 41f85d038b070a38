"""Extending a film takes the memory of what the model sees of it, however long it is."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from cli_runs import paths, small
from reports.inputs import write_stored

from framepack_core.cli import main

WIDTH, HEIGHT = 160, 96
FRAME = WIDTH * HEIGHT * 3  # bytes


def film(path: Path, frames: int) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return write_stored(path, [np.roll(noise, i, axis=1) for i in range(frames)])


def peak(folder: Path, frames: int, capsys: pytest.CaptureFixture[str]) -> int:
    """Bytes that extending a film by a section takes at most, beyond what it began with."""
    clip = film(folder / f"{frames}.mp4", frames)
    options = ["--video_path", str(clip), "--video_sections", "1", "--output_type", "images"]
    command = small("extend", folder / f"out{frames}", *options, "--prompt", "a ball")
    tracemalloc.start()
    try:
        assert main(command) == 0
        found = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    [made] = paths(capsys.readouterr().out)
    assert len(list(made.iterdir())) == frames + 4
    return found


@pytest.mark.slow
def test_memory_does_not_grow_with_the_film(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peak(tmp_path, 10, capsys)  # what is loaded and kept once
    short, long = peak(tmp_path, 40, capsys), peak(tmp_path, 140, capsys)
    assert long - short < 20 * FRAME
