"""Latent files: finished latents with the settings that made them, as musubi-tuner writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..runtime.errors import FramePackError
from ..weights.files import open_weights, save_weights

KEY = "latent"


def save_latents(
    path: str | Path, latents: Tensor, metadata: Mapping[str, str] | None = None
) -> None:
    """Write scaled latents [1, 16, F, h, w] as one fp32 tensor [16, F, h, w]."""
    save_weights(path, {KEY: latents[0].float()}, metadata)


def load_latents(path: str | Path) -> tuple[Tensor, dict[str, str]]:
    """Scaled latents [1, 16, F, h, w] and the metadata of a latent file."""
    file = open_weights(path)
    if KEY not in file or file[KEY].ndim != 4:
        raise FramePackError(
            f"{path}: not a latent file; it should hold one tensor {KEY!r} [16, frames, h, w], "
            f"but holds {', '.join(sorted(file)[:3])}"
        )
    return file[KEY].to(torch.float32, copy=True)[None], dict(file.metadata)
