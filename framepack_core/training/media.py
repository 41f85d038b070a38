"""Clips on disk: how many frames they have, and the frames of a crop at the size of its bucket."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..runtime.errors import FramePackError
from ..runtime.files import is_file, is_folder, list_folder
from ..runtime.images import Pixels, Size, load_image, resize_and_crop
from ..runtime.video_reader import VideoFile
from ..sampling.plan import FPS

IMAGES = {
    *(".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".jxl"),
}
VIDEOS = {
    *(".mp4", ".webm", ".avi", ".mkv", ".mov", ".flv", ".wmv", ".m4v", ".mpg", ".mpeg"),
    *(".3gp", ".3g2", ".ts", ".mts", ".m2ts", ".ogv", ".gif"),
}


def is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGES and is_file(path)


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS and is_file(path)


def is_frames(path: Path) -> bool:
    """Whether it is a folder of pictures, which counts as a clip."""
    return is_folder(path) and any(map(is_image, list_folder(path)))


@dataclass(frozen=True)
class PictureFolder:
    """A clip that is a folder of pictures, its frames in natural order; size: (width, height)."""

    path: Path
    files: tuple[Path, ...]
    size: Size
    is_constant: bool = True
    traits: tuple[object, ...] = ()

    @classmethod
    def open(cls, path: Path) -> PictureFolder:
        """Look at the first picture, which proves that it can be read."""
        files = pictures(path)
        height, width = load_image(files[0]).shape[:2]
        return cls(path, tuple(files), (width, height))

    def __len__(self) -> int:
        """How many frames there are."""
        return len(self.files)

    def frames(self, first: int = 0, count: int | None = None) -> Iterator[Pixels]:
        """Frames uint8 [H, W, 3] from the first-th on."""
        yield from map(load_image, self.files[first : None if count is None else first + count])


Clip = VideoFile | PictureFolder


def open_clip(path: Path) -> Clip:
    """A clip of a data set; raises FramePackError where it cannot be read."""
    return PictureFolder.open(path) if is_folder(path) else VideoFile.open(path)


def kept_frames(count: int, source_fps: float | None) -> list[int]:
    """The frames that are left at 30 fps; a slower source keeps all and is never filled up."""
    if source_fps is None:
        return list(range(count))
    ratio = FPS / source_fps
    return [i for i in range(count) if math.floor(i * ratio) != math.floor((i - 1) * ratio)]


def read_crop(clip: Clip, frames: list[int], size: Size) -> Pixels:
    """Some frames of a clip, by rising number, at a size: uint8 [len(frames), H, W, 3]."""
    wanted = set(frames)
    shown = clip.frames(frames[0], frames[-1] + 1 - frames[0])
    found = [
        resize_and_crop(frame, *size, resample="auto")
        for i, frame in enumerate(shown, frames[0])
        if i in wanted
    ]
    if len(found) < len(frames):
        raise FramePackError(
            f"clip {clip.path}: it ends after {len(found)} of {len(frames)} frames; convert it "
            "again, or take it out"
        )
    return np.stack(found)


def pictures(folder: Path) -> list[Path]:
    """The frames of a clip that is a folder, in natural order."""
    return list(filter(is_image, list_folder(folder)))
