"""Noise levels of a run: the Flux time shift, from 1 down to 0."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..runtime.errors import FramePackError

MAX_SHIFT = 7.0


def dynamic_shift(frames: int, height: int, width: int) -> float:
    """The shift FramePack uses for a target of latent size frames x height x width, at most 7.

    log(shift) grows linearly with the number of target tokens, 0.5 at 256 and 1.15 at 4096
    (Flux, arXiv 2403.03206).
    """
    tokens = frames * height * width / 4
    mu = 0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256)
    return math.exp(min(mu, math.log(MAX_SHIFT)))


def flow_sigmas(steps: int, shift: float) -> Tensor:
    """`steps + 1` sigmas, fp32, from 1 to 0: s t / (1 + (s - 1) t) over evenly spaced t."""
    if steps < 1:
        raise FramePackError(
            f"steps: {steps} is not a number of steps; use 1 or more (25 is usual)"
        )
    if not shift > 0:
        raise FramePackError(f"shift: {shift} must be above 0 (7 is FramePack's at usual sizes)")
    t = torch.linspace(1, 0, steps + 1)
    return shift * t / (1 + (shift - 1) * t)
