"""Clips, pictures and data sets such as people bring, made by code for the tests of this folder."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
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


# --- videos that are stored otherwise than they are shown -----------------------------------------


def write_stored(
    path: Path,
    frames: Sequence[np.ndarray],
    times: Sequence[int] | None = None,
    pixel_aspect: Fraction | None = None,
    gop: int = 12,
) -> Path:
    """Frames [H, W, 3] with time stamps in milliseconds, 30 fps by default, and a pixel aspect."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "1", "g": str(gop)}
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = round(i * 1000 / 30) if times is None else times[i]
            frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def greys(levels: Sequence[int], size: tuple[int, int] = (32, 32)) -> list[np.ndarray]:
    """A frame of one grey for each level; size is (width, height)."""
    return [np.full((size[1], size[0], 3), level, np.uint8) for level in levels]


# The matrices (a, b, c, d) that a phone writes, by the turn to the right with which it is shown.
TURNS = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


def turn(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write a display matrix into an mp4, as a phone does that was held another way."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # ISO/IEC 14496-12, 8.3.2: version 0
    a, b, c, d = (x << 16 for x in matrix)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def trim(path: Path, frames: int) -> Path:
    """Begin an mp4 some frames later by its edit list, as editors do without encoding again."""
    with av.open(str(path)) as container:
        unit = container.streams.video[0].time_base
    data = bytearray(path.read_bytes())
    start = data.index(b"elst") + 4 + 8  # version 0, one entry: duration, media time, rate
    duration, begin = struct.unpack_from(">ii", data, start)
    later = round((frames / 30 - 0.001) / unit)  # time stamps are rounded
    shorter = round(frames / 30 * 1000)  # the duration counts in the unit of the film, 1/1000 s
    struct.pack_into(">ii", data, start, duration - shorter, begin + later)
    path.write_bytes(data)
    return path
