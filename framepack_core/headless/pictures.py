"""Pictures as a run takes them: loaded early, in their final size, and told apart by content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import zip_longest

from torch import Tensor

from ..runtime.errors import FramePackError
from ..runtime.images import (
    Pixels,
    Size,
    load_image,
    made_picture,
    nearest_bucket,
    resize_and_crop,
    size_for_area,
)
from ..sampling.masks import latent_mask, load_control
from ..sampling.sections import check_size
from ..toyworld.render import SIZE as TOYWORLD_SIZE
from .job import EditJob, JobOptions, VideoJob

AREA = 640 * 640  # pixels that FramePack was trained at


@dataclass(frozen=True)
class Picture:
    """A picture uint8 [H, W, 3] or a clip [F, H, W, 3], equal to any other of the same pixels."""

    label: str = field(compare=False)
    pixels: Pixels = field(compare=False, repr=False)
    digest: bytes = field(repr=False)

    @classmethod
    def of(cls, label: str, pixels: Pixels) -> Picture:
        shape = str(pixels.shape).encode()
        return cls(label, pixels, sha256(shape + pixels.tobytes()).digest())

    @classmethod
    def load(cls, path: str, size: Size) -> Picture:
        """A file scaled and cropped to (width, height)."""
        return cls.of(path, resize_and_crop(load_image(path), *size))

    @classmethod
    def made(cls, kind: str, size: Size, seed: int) -> Picture:
        """One that shows nothing, as `made_picture` takes it."""
        return cls.of(kind, made_picture(kind, size, seed, "--start_picture"))

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self.pixels.shape[-2], self.pixels.shape[-3]


@dataclass(frozen=True)
class Control:
    """A picture that one-frame editing sees, and the mask of its latent [1, 1, 1, h, w]."""

    picture: Picture
    mask: Tensor | None


def size_of_video(job: JobOptions, image_path: str | None) -> Size:
    """(width, height) of the video that a start image gives; without one it is a square's."""
    given = _given_size(job)
    if given is not None:
        return given
    return _size_of_bucket(1, 1) if image_path is None else _own_size(load_image(image_path))


def load_controls(job: EditJob) -> tuple[list[Control], Size | None]:
    """The control images with their masks, and the (width, height) they give the edit, if any."""
    paths, masks = job.one_frame.control_image_path, job.one_frame.control_image_mask_path
    if len(masks) > len(paths):
        raise FramePackError(
            f"--control_image_mask_path: {len(masks)} masks for {len(paths)} control images; give "
            "each mask its image with --control_image_path"
        )
    loaded = [load_control(path, mask) for path, mask in zip_longest(paths, masks)]
    size = _size_of_edit(job, [pixels for pixels, _ in loaded])
    if size is None:  # there are no controls
        return [], None
    controls = [
        Control(
            Picture.of(path, resize_and_crop(pixels, *size)),
            None if mask is None else latent_mask(mask, *size),
        )
        for path, (pixels, mask) in zip(paths, loaded, strict=True)
    ]
    return controls, size


def load_start_mask(job: VideoJob, image_path: str, size: Size) -> Tensor | None:
    """The mask [1, 1, 1, h, w] of a start image's latent, if one is given."""
    if job.guidance.image_mask_path is None:
        return None
    _, mask = load_control(image_path, job.guidance.image_mask_path)
    assert mask is not None  # a file of it is given
    return latent_mask(mask, *size)


def _given_size(job: JobOptions) -> Size | None:
    if job.prompt.size is not None:
        check_size(*job.prompt.size)
        return job.prompt.size
    return (TOYWORLD_SIZE, TOYWORLD_SIZE) if job.models.uses_toyworld else None


def _own_size(image: Pixels) -> Size:
    return _size_of_bucket(*image.shape[:2])


def _size_of_bucket(height: int, width: int) -> Size:
    """(width, height) of FramePack's list nearest in shape."""
    height, width = nearest_bucket(height, width)
    return width, height


def _size_of_edit(job: EditJob, controls: Sequence[Pixels]) -> Size | None:
    given = _given_size(job)
    if not job.one_frame.one_frame_auto_resize:
        return given or (_own_size(controls[0]) if controls else None)
    if not controls:
        raise FramePackError(
            "--one_frame_auto_resize: there is no control image to take the shape of; add "
            "--control_image_path, or leave it out"
        )
    height, width = controls[0].shape[:2]
    try:
        return size_for_area(width, height, given[0] * given[1] if given else AREA)
    except FramePackError as error:
        raise FramePackError(f"--one_frame_auto_resize, --video_size: {error}") from None
