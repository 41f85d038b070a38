"""Latent files: finished latents with the settings that made them, as musubi-tuner writes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..runtime.errors import FramePackError
from ..weights.files import open_weights, save_weights
from .plan import FPS
from .sections import MAX_WINDOW, WINDOW

LATENT_KEY = "latent"
LOOP_KEY = "loop"  # in the metadata


def save_latents(
    path: str | Path, latents: Tensor, metadata: Mapping[str, str] | None = None
) -> None:
    """Write scaled latents [1, 16, F, h, w] as one fp32 tensor [16, F, h, w]."""
    save_weights(path, {LATENT_KEY: latents[0].float()}, metadata)


def window_of(metadata: Mapping[str, str]) -> int:
    """The window that a latent file was made with, by its metadata; 9 where that says nothing."""
    text = metadata.get("latent_window_size", str(WINDOW))
    if not text.isdecimal() or not 1 <= int(text[:9]) <= MAX_WINDOW:
        raise FramePackError(f"latent file: its window {text[:9]!r} is no number; name the window")
    return int(text)


def loops(metadata: Mapping[str, str]) -> bool:
    """Whether a latent file's video leads into its own start, by its metadata."""
    return metadata.get(LOOP_KEY) == str(True)


def fps_of(metadata: Mapping[str, str]) -> float:
    """Frames a second, by a latent file's metadata; 30 where that says nothing."""
    try:
        fps = float(metadata.get("fps", FPS))
    except ValueError:
        fps = math.nan
    if not 0 < fps < math.inf:
        raise FramePackError(f"latent file: its fps {metadata['fps'][:9]!r} is no number above 0")
    return fps


def load_latents(path: str | Path) -> tuple[Tensor, dict[str, str]]:
    """Scaled latents [1, 16, F, h, w] and the metadata of a latent file."""
    file = open_weights(path)
    if LATENT_KEY not in file or file[LATENT_KEY].ndim != 4:
        raise FramePackError(
            f"{path}: not a latent file; it should hold one tensor {LATENT_KEY!r} "
            f"[16, frames, h, w], but holds {', '.join(sorted(file)[:3])}"
        )
    return file[LATENT_KEY].to(torch.float32, copy=True)[None], dict(file.metadata)
