"""Drafts of half the size: quick versions of a video, by which plans and seeds are tried.

A draft's noise is the video's own at half the resolution: what is large in one is large in the
other.
"""

from __future__ import annotations

from einops import reduce
from torch import Tensor

from ..runtime.errors import FramePackError
from ..runtime.images import Size
from .sections import SIZE_MULTIPLE

SHRINK = 2


def draft_size(size: Size, name: str) -> Size:
    """Width and height of the draft of a video of (width, height): half, in whole patches.

    Raises FramePackError, which calls the draft `name`, for a video that is too small.
    """
    width, height = (side // (SHRINK * SIZE_MULTIPLE) * SIZE_MULTIPLE for side in size)
    if not width or not height:
        least = SHRINK * SIZE_MULTIPLE
        raise FramePackError(
            f"{name}: {size[0]}x{size[1]} is too small to be halved; {least} is the least of a side"
        )
    return width, height


def shrink_noise(noise: Tensor, height: int, width: int) -> Tensor:
    """White noise [..., h, w] that is the mean of every four of `noise` [..., H, W], and as strong.

    Raises ValueError where H and W are less than twice as large.
    """
    if noise.shape[-2] < SHRINK * height or noise.shape[-1] < SHRINK * width:
        raise ValueError(f"noise of {tuple(noise.shape[-2:])} is too small for {height}x{width}")
    part = noise[..., : SHRINK * height, : SHRINK * width]
    # The mean of n independent values has a standard deviation of 1 / sqrt(n).
    return SHRINK * reduce(part, "... (h a) (w b) -> ... h w", "mean", a=SHRINK, b=SHRINK)
