"""Clips on disk: how many frames they have, and the frames of a crop at the size of its bucket."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from ..runtime.errors import FramePackError
from ..runtime.files import list_folder
from ..runtime.images import Pixels, Size, load_image, resize_and_crop
from ..runtime.video import open_video, to_rgb
from ..sampling.plan import FPS

IMAGES = {
    *(".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".jxl"),
}
VIDEOS = {
    *(".mp4", ".webm", ".avi", ".mkv", ".mov", ".flv", ".wmv", ".m4v", ".mpg", ".mpeg"),
    *(".3gp", ".3g2", ".ts", ".mts", ".m2ts", ".ogv", ".gif"),
}


def is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGES and os.path.isfile(path)


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS and os.path.isfile(path)


def is_frames(path: Path) -> bool:
    """Whether it is a folder of pictures, which counts as a clip."""
    return os.path.isdir(path) and any(map(is_image, list_folder(path)))


def measure(path: Path) -> tuple[int, Size]:
    """Number of frames and (width, height) of a clip; its first frame is decoded as a proof."""
    if path.is_dir():
        files = pictures(path)
        height, width = load_image(files[0]).shape[:2]
        return len(files), (width, height)
    if not path.is_file():
        raise FramePackError(f"clip {path}: no such file")
    try:
        with open_video(path) as container:
            first = next(container.decode(video=0))
            container.seek(0)
            packets = sum(packet.size > 0 for packet in container.demux(video=0))
    except (av.FFmpegError, IndexError, StopIteration) as error:
        raise _unreadable(path, error) from error
    return packets, (first.width, first.height)


def kept_frames(count: int, source_fps: float | None) -> list[int]:
    """The frames that are left at 30 fps; a slower source keeps all and is never filled up."""
    if source_fps is None:
        return list(range(count))
    ratio = FPS / source_fps
    return [i for i in range(count) if math.floor(i * ratio) != math.floor((i - 1) * ratio)]


def read_crop(
    path: Path, frames: list[int], size: Size, *, first: int, count: int, name: str
) -> Pixels:
    """`count` of the kept `frames` of a clip from the first-th on: uint8 [count, H, W, 3]."""
    wanted = set(frames[first : first + count])
    stop = max(wanted) + 1
    found = [
        resize_and_crop(frame, *size, resample="auto")
        for i, frame in zip(range(stop), _frames(path), strict=False)
        if i in wanted
    ]
    if len(found) < count:
        raise FramePackError(f"{name}: it ends after {len(found)} of {count} frames; mend the clip")
    return np.stack(found)


def _frames(path: Path) -> Iterator[Pixels]:
    if path.is_dir():
        yield from map(load_image, pictures(path))
        return
    try:
        with open_video(path) as container:
            yield from map(to_rgb, container.decode(video=0))
    except (av.FFmpegError, IndexError) as error:
        raise _unreadable(path, error) from error


def pictures(folder: Path) -> list[Path]:
    """The frames of a clip that is a folder, in natural order."""
    return list(filter(is_image, list_folder(folder)))


def _unreadable(path: Path, error: Exception) -> FramePackError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return FramePackError(
        f"clip {path}: cannot be read ({reason}); take it out or convert it again"
    )
