"""Flow matching over the DiT: denoising and training loss share one set of scalings.

x_sigma = (1 - sigma) x0 + sigma noise, and the model gives v = noise - x0 (arXiv 2210.02747).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from ..models.dit import DiTInputs, FramePackDiT
from ..models.packing import Context
from ..models.prompt import TextCondition
from ..models.shared import share_blocks
from ..runtime.distributed import Crew
from .plan import GUIDANCE, TIME_SCALE
from .step_cache import StepCache, transform_with


class Guided(NamedTuple):
    """What steers one pass of the model besides history."""

    text: TextCondition
    image_embeds: Tensor | None = None  # [B, N, C] SigLIP tokens of the start image
    guidance: float = GUIDANCE  # the distilled scale, fed as 1000 times it


@dataclass(frozen=True)
class CFG:
    """Classifier-free guidance against a negative prompt (arXiv 2207.12598).

    `rescale` pulls the result's standard deviation back to the positive one's (arXiv 2305.08891).
    """

    negative: Guided
    scale: float
    rescale: float = 0.0


@dataclass(frozen=True)
class RopeScaling:
    """Shrink height and width positions by `factor` while 1000 sigma is at least `threshold`."""

    threshold: float
    factor: float = 0.5

    def at(self, timestep: Tensor) -> float:
        return self.factor if timestep.max() >= self.threshold else 1.0


def x_at(sigma: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """Noised latents; sigma [B]."""
    sigma = _per_sample(sigma, x0)
    return (1 - sigma) * x0 + sigma * noise


def combine_cfg(positive: Tensor, negative: Tensor, scale: float, rescale: float) -> Tensor:
    """Guided velocity; works on any quantity proportional to it."""
    guided = negative + scale * (positive - negative)
    if rescale == 0:
        return guided
    dims = tuple(range(1, positive.ndim))
    ratio = positive.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
    return rescale * guided * ratio + (1 - rescale) * guided


class FlowDenoiser:
    """A FramePackDiT as a denoiser and as a loss.

    Inputs are cast to `dtype`, the dtype that the model computes in; results are fp32. crew: of
    processes that denoise the same together.
    """

    def __init__(
        self,
        dit: FramePackDiT,
        dtype: torch.dtype = torch.float32,
        rope_scaling: RopeScaling | None = None,
        crew: Crew | None = None,
    ) -> None:
        self.dit, self.dtype, self.rope_scaling, self.crew = dit, dtype, rope_scaling, crew

    def begin(self, cfg: CFG | None, step_cache: StepCache | None) -> None:
        """Before the steps of a section: who computes which pass with whom."""
        if self.crew is None:
            return
        team = self.crew.team(1 if cfg is None else 2)
        share_blocks(self.dit, team)
        if step_cache is not None:
            step_cache.agree = team.agree

    def denoise(
        self,
        x: Tensor,
        sigma: Tensor,
        guided: Guided,
        *,
        latent_indices: Tensor | None = None,
        context: Context | None = None,
        cfg: CFG | None = None,
        step_cache: StepCache | None = None,
    ) -> Tensor:
        """x0 [B, C, T, h, w] from noised x of the same shape at sigma [B]."""

        def velocity(one: tuple[Guided, str]) -> Tensor:
            return self.velocity(x, sigma, one[0], latent_indices, context, step_cache, one[1])

        passes = [(guided, "positive")]
        if cfg is not None:
            passes.append((cfg.negative, "negative"))
        if self.crew is None:
            found = [velocity(one) for one in passes]
        else:
            found = self.crew.deal(velocity, passes)
        v = found[0]
        if cfg is not None:
            v = combine_cfg(v, found[1], cfg.scale, cfg.rescale)
        return x.float() - _per_sample(sigma, x) * v

    def loss(
        self,
        x0: Tensor,
        noise: Tensor,
        sigma: Tensor,
        guided: Guided,
        *,
        latent_indices: Tensor | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """Mean squared error [B] of the velocity, fp32; x0, noise [B, C, T, h, w], sigma [B]."""
        x = x_at(sigma, x0.float(), noise.float())
        v = self.velocity(x, sigma, guided, latent_indices, context)
        return mse_loss(v, noise.float() - x0.float(), reduction="none").flatten(1).mean(1)

    def velocity(
        self,
        x: Tensor,
        sigma: Tensor,
        guided: Guided,
        latent_indices: Tensor | None = None,
        context: Context | None = None,
        step_cache: StepCache | None = None,
        pass_name: str = "positive",
    ) -> Tensor:
        """One pass of the model, fp32; `pass_name` tells a step cache which pass it is."""
        timestep = TIME_SCALE * sigma
        guidance = torch.full_like(timestep, TIME_SCALE * guided.guidance)
        scale = self.rope_scaling.at(timestep) if self.rope_scaling else 1.0
        inputs = DiTInputs(
            x.to(self.dtype),
            timestep,
            guided.text,
            guidance,
            guided.image_embeds,
            latent_indices,
            context,
            scale,
        )
        transform = transform_with(step_cache, self.dit, sigma, pass_name)
        return self.dit(inputs, transform).float()


def _per_sample(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.float().view(-1, *[1] * (x.ndim - 1))
