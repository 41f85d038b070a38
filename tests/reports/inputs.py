"""Clips, pictures and data sets such as people bring, made by code for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from framepack_core.runtime.errors import FramePackError
from framepack_core.runtime.video import VideoWriter

WINDOW = 1
FRAMES = 5  # of a start frame and one section of one latent frame


def write_clip(
    path: Path, frames: int = FRAMES, size: tuple[int, int] = (32, 32), fps: float = 30
) -> Path:
    """A clip whose i-th frame is one grey, of level 8 i; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    with VideoWriter(path, width=width, height=height, fps=fps, crf=1) as video:
        for i in range(frames):
            video.write(np.full((height, width, 3), 8 * i % 256, np.uint8))
    return path


def write_picture(path: Path, level: int = 128, size: tuple[int, int] = (32, 32)) -> Path:
    """A picture of one grey; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level, level)).save(path, format=_format(path))
    return path


def _format(path: Path) -> str:
    return "JPEG" if path.suffix.lower() in (".jpg", ".jpeg", ".jfif", ".jpe") else "PNG"


def captioned(path: Path, caption: str = "a ball rolls") -> Path:
    """The same path, with a caption next to it."""
    name = path.name if path.is_dir() else path.stem
    (path.parent / f"{name}.txt").write_text(caption, encoding="utf-8")
    return path


def clips_toml(folder: Path, extra: str = "") -> Path:
    """A description of the clips of a folder at window 1 and 32 pixels."""
    path = folder.parent / "data.toml"
    path.write_text(
        f"[general]\nresolution = [32, 32]\n[[datasets]]\nvideo_directory = '{folder}'\n"
        f"cache_directory = '{folder / 'cache'}'\nfp_latent_window_size = {WINDOW}\n{extra}",
        encoding="utf-8",
    )
    return path


def pictures_toml(folder: Path, control: Path, extra: str = "") -> Path:
    """A description of the pictures of a folder with one control image each."""
    path = folder.parent / "data.toml"
    path.write_text(
        f"[general]\nresolution = [32, 32]\n[[datasets]]\nimage_directory = '{folder}'\n"
        f"control_directory = '{control}'\nfp_1f_clean_indices = [0]\nfp_1f_target_index = 1\n"
        f"{extra}",
        encoding="utf-8",
    )
    return path


def error_of(call: Callable[..., Any], *args: Any, **options: Any) -> str:
    """The one line that a call refuses its input with."""
    with pytest.raises(FramePackError) as error:
        call(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)
