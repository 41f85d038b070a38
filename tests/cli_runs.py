"""Small command lines on the built-in model, shared by the tests of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from framepack_core.cli import main, read_command
from framepack_core.runtime.images import save_png
from framepack_core.runtime.video import VideoWriter
from framepack_core.sampling.latents import load_latents

WIDTH, HEIGHT = 32, 16
SMALL = "--snapshot toyworld --seed 1 --video_size 16 32 --latent_window_size 1 --infer_steps 2 \
    --device cpu --output_type latent --no_ledger"
SMALL_DATA = "--resolution 32 --latent_window_size 1 --device cpu"
FRAMES = 5  # of a start frame and one section at window 1


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> str:
    """A picture of noise in a new file."""
    save_png(path, np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))
    return str(path)


def make_clip(path: Path, frames: int = FRAMES, size: int = 32) -> None:
    """A clip of noise."""
    noise = np.random.default_rng(frames).integers(0, 256, (frames, size, size, 3), np.uint8)
    with VideoWriter(path, width=size, height=size, fps=30) as video:
        for frame in noise:
            video.write(frame)


def make_clips(folder: Path) -> Path:
    """A new folder with two clips and their captions, one section and two."""
    folder.mkdir()
    for name, frames in (("a", FRAMES), ("b", 9)):
        make_clip(folder / f"{name}.mp4", frames)
        (folder / f"{name}.txt").write_text(f"clip {name}")
    return folder


def small(command: str, out: Path, *options: str) -> list[str]:
    """A command line with small settings, which `options` may replace."""
    return [command, *SMALL.split(), "--save_path", str(out), *options]


def parse(command: list[str]) -> Any:
    """The options of a command line as a value."""
    return read_command(command)[1]


def files(command: list[str], capsys: pytest.CaptureFixture[str]) -> list[Path]:
    """The files that a command says it made."""
    assert main(command) == 0
    return paths(capsys.readouterr().out)


def paths(output: str) -> list[Path]:
    """The lines of an output that are paths."""
    lines = output.splitlines()
    return [Path(line) for line in lines if line.startswith("/") or ":\\" in line]


def latents(command: list[str], capsys: pytest.CaptureFixture[str]) -> Tensor:
    """The latents that a command makes."""
    [path] = files(command, capsys)
    return load_latents(path)[0]


def failure(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refused command leaves on stderr."""
    try:
        code = main(command)
    except SystemExit as stopped:
        code = stopped.code
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]
