"""The drift anchor: colours and contrast of a finished section are held to the start image's.

What moves changes the statistics of a whole picture too, so they are taken where a section changed
least: there the same things are seen as in the start image, and what differs is drift.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..runtime.display import warn
from .plan import Plan, Section

FLAT = 0.03  # of a channel's variance: the contrast of what varies much less cannot be told
NOTHING = 1e-6  # a variance
MOST = 2.0  # times the contrast, or a fraction of it: no section drifts further


def is_anchored(plan: Plan, section: Section) -> bool:
    """Whether a section should look like the start image: none that has a picture of its own."""
    ends_with_another = plan.end is not None and not plan.loops and plan.end.strength > 0
    return section.image is None and not (ends_with_another and section.index == plan.last)


def check_anchor(plan: Plan, strength: float, name: str) -> None:
    """Warn where an anchor, which its owner calls `name`, has no section to act on."""
    if strength and not any(is_anchored(plan, section) for section in plan.sections):
        warn(f"{name} has no effect, as every section has a picture of its own")


def anchored(latents: Tensor, start: Tensor, strength: float) -> Tensor:
    """A section [B, C, T, h, w] with the mean and the contrast of each channel as in the start.

    start [B, C, 1, h, w]. Both are measured in that half of the picture which differs least from
    the start image, as straight lines over time: drift grows within a section, and what is taken
    out must not jump where two of them join. strength: 0 leaves the latents, 1 takes out all.
    """
    seen = _unchanged(latents, start)
    mean, goal = _line(_mean(latents, seen)), _mean(start, seen)
    gain = _gain(latents - mean, start - goal, seen)
    return torch.lerp(latents, (latents - mean) / gain + goal, strength)


def _unchanged(latents: Tensor, start: Tensor) -> Tensor:
    """1 at the positions [B, 1, 1, h, w] of the half that differs least from start, else 0.

    What a mask hides of the start image, where its latent is 0, is in neither half.
    """
    change = (latents - start).square().mean(dim=(1, 2), keepdim=True)
    change = change.masked_fill((start == 0).all(dim=1, keepdim=True), torch.nan)
    middle = change.flatten(1).nanquantile(0.5, dim=1, interpolation="lower")
    return (change <= middle.view(-1, 1, 1, 1, 1)).to(latents)


def _gain(latents: Tensor, start: Tensor, seen: Tensor) -> Tensor:
    """How much more contrast [B, C, T, 1, 1] latents have than start, both without their means.

    Noise of the latents only raises their deviation, and what moved only lowers the slope between
    the two: the gain lies between these, and of that range the value nearest to 1 is taken.
    """
    flat = FLAT * start.square().mean(dim=(3, 4), keepdim=True) + NOTHING
    contrast = _mean(start.square(), seen) + flat
    slope = _line((_mean(latents * start, seen) + flat) / contrast)
    deviation = _line(((_mean(latents.square(), seen) + flat) / contrast).sqrt())
    gain = torch.ones_like(slope).clamp(torch.minimum(slope, deviation), deviation)
    return gain.clamp(1 / MOST, MOST)


def _mean(values: Tensor, seen: Tensor) -> Tensor:
    """[B, C, T, 1, 1] over the positions that are seen."""
    total = (values * seen).sum(dim=(3, 4), keepdim=True)
    return total / seen.sum(dim=(3, 4), keepdim=True).clamp_min(1)


def _line(values: Tensor) -> Tensor:
    """The straight line over time [B, C, T, 1, 1] nearest to values of that shape."""
    frames = values.shape[2]
    time = torch.arange(frames, device=values.device).view(1, 1, -1, 1, 1) - (frames - 1) / 2
    slope = (values * time).sum(dim=2, keepdim=True) / time.square().sum().clamp_min(1)
    return values.mean(dim=2, keepdim=True) + slope * time
