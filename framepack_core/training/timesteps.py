"""Noise levels to train at, and how much each counts.

Every level comes from a uniform number, and those from (seed, step): resuming draws nothing twice.
A level sigma mixes the noise in and goes to the model as 1000 sigma, as in inference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..runtime.errors import FramePackError
from ..sampling.plan import TIME_SCALE
from ..sampling.schedule import dynamic_shift
from ..sampling.sections import LATENT_STRIDE, WINDOW
from .config import Timesteps, Weighting
from .rng import generator

TAIL = 1e-7  # how near to 0 and 1 a uniform number may come before its normal one is infinite
REJECTIONS = 1000
# qinglong_flux: shares of flux_shift and of logsnr; the rest is logsnr of this mean and deviation.
QINGLONG_SHARES = (0.79, 0.90)
QINGLONG_HIGH = (5.36, 1.0)

DRAWS, BARS, LONGEST = 100_000, 20, 60  # of the histogram, its bars and their characters

LatentShape = tuple[int, int, int]
Draw = Callable[[], Tensor]


@dataclass(frozen=True)
class NoiseLevels:
    """How levels are drawn, as options say.

    "shift" moves levels towards noise by the flow shift; flux_shift takes the one that inference
    has for all tokens of a section. Levels are squeezed between min_timestep and max_timestep, 0 to
    1000, or with preserve_shape drawn again until they lie there. With buckets they are spread
    evenly, each of so many parts of the distribution in turn.
    """

    how: Timesteps

    def draw(self, batch: int, shape: LatentShape, seed: int, step: int) -> Tensor:
        """Levels [batch] of a step for latents of (frames, height, width)."""
        draws = generator("timesteps", seed, step)

        def uniform() -> Tensor:
            return torch.rand(batch, generator=draws)

        first = [] if self.how.buckets is None else [self._stratified(batch, seed, step, draws)]
        return self.sample(lambda: first.pop() if first else uniform(), uniform, shape)

    def sample(self, uniform: Draw, decision: Draw, shape: LatentShape) -> Tensor:
        """Levels of drawn uniform numbers; `decision` picks the way where a mode has several."""
        if self.how.mode == "sigma":
            return self._on_grid(uniform())
        if not self.how.preserve_shape:
            low, high = self._range()
            return self._levels(uniform(), decision, shape) * (high - low) + low
        return self._rejected(uniform, decision, shape)

    def _range(self) -> tuple[float, float]:
        return self.how.min_timestep / TIME_SCALE, self.how.max_timestep / TIME_SCALE

    def _levels(self, u: Tensor, decision: Draw, shape: LatentShape) -> Tensor:
        if self.how.mode == "uniform":
            return u
        normal = _normal(u)
        if self.how.mode == "logsnr":
            return self.from_logsnr(normal, self.how.logit_mean, self.how.logit_std)
        if self.how.mode == "sigmoid":
            return torch.sigmoid(self.how.sigmoid_scale * normal)
        if self.how.mode == "shift":
            return self.shifted(normal, self.how.shift)
        flux = self.shifted(normal, dynamic_shift(*shape))
        if self.how.mode == "flux_shift":
            return flux
        chosen = decision()
        middle = self.from_logsnr(normal, self.how.logit_mean, self.how.logit_std)
        high = self.from_logsnr(normal, *QINGLONG_HIGH)
        rest = torch.where(chosen < QINGLONG_SHARES[1], middle, high)
        return torch.where(chosen < QINGLONG_SHARES[0], flux, rest)

    def shifted(self, normal: Tensor, shift: float) -> Tensor:
        """s u / (1 + (s - 1) u) of u = sigmoid(scale * normal)."""
        u = torch.sigmoid(self.how.sigmoid_scale * normal)
        return shift * u / (1 + (shift - 1) * u)

    @staticmethod
    def from_logsnr(normal: Tensor, mean: float, std: float) -> Tensor:
        """The level whose log signal-to-noise ratio is normal with this mean and deviation."""
        return torch.sigmoid(-(mean + std * normal) / 2)

    def _on_grid(self, u: Tensor) -> Tensor:
        """One of 1000 levels, by the density of the weighting scheme (arXiv 2403.03206)."""
        if self.how.weighting == "logit_normal":
            u = torch.sigmoid(self.how.logit_mean + self.how.logit_std * _normal(u))
        elif self.how.weighting == "mode":
            u = 1 - u - self.how.mode_scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)
        spread = self.how.max_timestep - self.how.min_timestep
        index = (u * spread + (TIME_SCALE - self.how.max_timestep)).long()
        return (TIME_SCALE - index.clamp(0, int(TIME_SCALE) - 1)) / TIME_SCALE

    def _rejected(self, uniform: Draw, decision: Draw, shape: LatentShape) -> Tensor:
        """The first levels drawn that lie in the range."""
        low, high = self._range()
        kept = torch.empty(0)
        for _ in range(REJECTIONS):
            levels = self._levels(uniform(), decision, shape)
            kept = torch.cat([kept, levels[(levels >= low) & (levels <= high)]])
            if len(kept) >= len(levels):
                return kept[: len(levels)]
        raise FramePackError(
            f"min_timestep, max_timestep: {self.how.mode} hardly ever draws from "
            f"{self.how.min_timestep:g} to {self.how.max_timestep:g}; widen the range, or leave "
            "preserve_distribution_shape out"
        )

    def _stratified(self, batch: int, seed: int, step: int, draws: torch.Generator) -> Tensor:
        """Uniform numbers of which any `buckets` in a row lie in a bucket each."""
        assert self.how.buckets is not None
        parts = []
        for number in range(step * batch, (step + 1) * batch):
            turn, place = divmod(number, self.how.buckets)
            order = torch.randperm(self.how.buckets, generator=generator("buckets", seed, turn))
            parts.append(order[place])
        return (torch.stack(parts) + torch.rand(batch, generator=draws)) / self.how.buckets


def loss_weight(sigma: Tensor, weighting: Weighting) -> Tensor | None:
    """What the loss of each sample is multiplied with; None is 1 (arXiv 2403.03206)."""
    sigma = sigma.clamp(1 / TIME_SCALE, 1)  # sigma_sqrt has a pole at 0
    if weighting == "sigma_sqrt":
        return sigma**-2
    if weighting == "cosmap":
        return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))
    return None


def histogram(how: Timesteps) -> str:
    """How often each twentieth of the timesteps is drawn for a section of 640x640, as bars."""
    shape = (WINDOW, 640 // LATENT_STRIDE, 640 // LATENT_STRIDE)
    levels = NoiseLevels(how).draw(DRAWS, shape, seed=0, step=0)
    counts = torch.histc(TIME_SCALE * levels, bins=BARS, min=0, max=TIME_SCALE).tolist()
    width = TIME_SCALE / BARS
    return "\n".join(
        f"{i * width:4.0f}-{(i + 1) * width:4.0f} {count / DRAWS:6.1%} "
        + "#" * round(LONGEST * count / max(counts))
        for i, count in enumerate(counts)
    )


def _normal(u: Tensor) -> Tensor:
    """The standard normal number at the same place of its distribution."""
    return torch.erfinv(2 * u.clamp(TAIL, 1 - TAIL) - 1) * math.sqrt(2)
