"""Masks of control images: from a file or from alpha, cropped with the image, on its latent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..runtime.errors import FramePackError
from ..runtime.images import Pixels, load_image, load_image_rgba
from .sections import LATENT_STRIDE

SAME_SHAPE = 0.02  # how much the aspect ratios of a mask and its image may differ


def load_control(
    path: str | Path, mask_path: str | Path | None = None
) -> tuple[Pixels, Pixels | None]:
    """A control image uint8 [H, W, 3] and its mask uint8 [h, w], bright where the image counts.

    A mask file wins over the image's alpha channel; None if there is neither. Raises if the mask
    file has another shape than the image, which would put it in the wrong place.
    """
    rgba = load_image_rgba(path)
    pixels, alpha = rgba[..., :3], rgba[..., 3]
    if mask_path is None:
        return pixels, None if alpha.min() == 255 else alpha
    mask = np.array(Image.fromarray(load_image(mask_path)).convert("L"))
    ratio = (mask.shape[1] / mask.shape[0]) / (pixels.shape[1] / pixels.shape[0])
    if abs(ratio - 1) > SAME_SHAPE:
        raise FramePackError(
            f"mask {mask_path}: {mask.shape[1]}x{mask.shape[0]} is another shape than its image's "
            f"{pixels.shape[1]}x{pixels.shape[0]}; give a mask of the image's size"
        )
    return pixels, mask


def latent_mask(mask: Pixels, width: int, height: int) -> Tensor:
    """Mask uint8 [H, W] to weights 0..1 [1, 1, 1, height/8, width/8] of a latent.

    It is cropped as resize_and_crop() crops its image: the middle that has the shape of
    width x height.
    """
    source_height, source_width = mask.shape
    scale = max(width / source_width, height / source_height)
    margin_x = (source_width - width / scale) / 2
    margin_y = (source_height - height / scale) / 2
    box = (margin_x, margin_y, source_width - margin_x, source_height - margin_y)
    size = (width // LATENT_STRIDE, height // LATENT_STRIDE)
    small = Image.fromarray(mask).resize(size, Image.Resampling.LANCZOS, box=box)
    return torch.from_numpy(np.array(small)).float()[None, None, None] / 255


def mask_latents(controls: Tensor, masks: Sequence[Tensor | None]) -> Tensor:
    """Control latents [B, C, N, h, w], each times its mask [1, 1, 1, h, w] if it has one."""
    if len(masks) > controls.shape[2]:
        raise FramePackError(
            f"masks: {len(masks)} for {controls.shape[2]} control images; give each its image"
        )
    controls = controls.clone()
    for i, mask in enumerate(masks):
        if mask is not None:
            controls[:, :, i : i + 1] *= mask.to(controls)
    return controls
