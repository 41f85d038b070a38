"""Skipping the blocks at steps that change little: TeaCache and MagCache.

A cache belongs to one section of one run and keeps a state for each CFG pass; it decides by the
step's index in the schedule, never by counting calls. Where a step is skipped, the change that the
blocks last made to the tokens is added again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..models.dit import FramePackDiT, RunBlocks, Tokens
from ..runtime.errors import FramePackError

# fitted by TeaCache's authors for HunyuanVideo: relative change of input to change of output
TEACACHE_POLYNOMIAL = (733.226126, -401.131952, 67.5869174, -3.149878, 0.0961237896)

# measured over 50 steps of the original model
# fmt: off
MAGCACHE_RATIOS = (
    1.0, 1.06971, 1.29073, 1.11245, 1.09596, 1.05233, 1.01415, 1.05672, 1.00848, 1.03632,
    1.02974, 1.00984, 1.03028, 1.00681, 1.06614, 1.05022, 1.02592, 1.01776, 1.02985, 1.00726,
    1.03727, 1.01502, 1.00992, 1.03371, 0.9976, 1.02742, 1.0093, 1.01869, 1.00815, 1.01461,
    1.01152, 1.03082, 1.0061, 1.02162, 1.01999, 0.99063, 1.01186, 1.0217, 0.99947, 1.01711,
    0.9904, 1.00258, 1.00878, 0.97039, 0.97686, 0.94315, 0.97728, 0.91154, 0.86139, 0.76592,
)
# fmt: on


class StepCache(Protocol):
    """Stands in for `dit.transform` over the steps of one section."""

    def transform(self, dit: FramePackDiT, tokens: Tokens, sigma: float, pass_name: str) -> Tensor:
        """Latent tokens after the blocks, computed or approximated."""


def transform_with(
    cache: StepCache | None, dit: FramePackDiT, sigma: Tensor, pass_name: str
) -> RunBlocks | None:
    """What stands in for the blocks of a DiT in one pass at sigma [B]; None without a cache."""
    if cache is None:
        return None
    return lambda tokens: cache.transform(dit, tokens, float(sigma.max()), pass_name)


StepCacheFactory = Callable[[Tensor], StepCache]
"""Makes the cache of a section from its sigmas."""


def _step_index(sigmas: Sequence[float], sigma: float) -> int:
    return min(range(len(sigmas) - 1), key=lambda i: abs(sigmas[i] - sigma))


@dataclass
class _TeaState:
    previous_input: Tensor | None = None
    residual: Tensor | None = None
    distance: float = 0.0


class TeaCache:
    """Skip while the accumulated change of the first block's input is small (arXiv 2411.19108)."""

    def __init__(self, sigmas: Tensor, threshold: float = 0.15) -> None:
        if threshold <= 0:
            raise FramePackError(f"teacache: threshold {threshold} must be above 0 (0.15 is usual)")
        self.sigmas, self.threshold = sigmas.tolist(), threshold
        self.computed: list[bool] = []
        self._states: dict[str, _TeaState] = defaultdict(_TeaState)

    def transform(self, dit: FramePackDiT, tokens: Tokens, sigma: float, pass_name: str) -> Tensor:
        state = self._states[pass_name]
        modulated = dit.transformer_blocks[0].modulated_input(tokens.latent, tokens.condition)
        compute = self._must_compute(state, modulated, _step_index(self.sigmas, sigma))
        state.previous_input = modulated
        self.computed.append(compute)
        if not compute:
            return tokens.latent + state.residual
        state.distance = 0.0
        out = dit.transform(tokens)
        state.residual = out - tokens.latent
        return out

    def _must_compute(self, state: _TeaState, modulated: Tensor, step: int) -> bool:
        first_or_last = step == 0 or step == len(self.sigmas) - 2
        if first_or_last or state.previous_input is None:
            return True
        previous = state.previous_input
        change = ((modulated - previous).abs().mean() / previous.abs().mean()).item()
        distance = 0.0
        for coefficient in TEACACHE_POLYNOMIAL:
            distance = distance * change + coefficient
        state.distance += distance
        return state.distance >= self.threshold


@dataclass
class _MagState:
    residual: Tensor | None = None
    product: float = 1.0
    error: float = 0.0
    skipped: int = 0


@dataclass(frozen=True)
class MagCacheConfig:
    """`ratios`: mean norm ratio of successive residuals, by step; resampled to the run's steps."""

    threshold: float = 0.24
    max_skips: int = 6
    retention: float = 0.2
    ratios: tuple[float, ...] = field(default=MAGCACHE_RATIOS)

    def __post_init__(self) -> None:
        if self.threshold <= 0 or self.max_skips < 1 or not 0 <= self.retention <= 1:
            raise FramePackError(
                "magcache: needs threshold > 0, max skips >= 1 and retention from 0 to 1, got "
                f"{self.threshold}, {self.max_skips}, {self.retention}"
            )
        if not self.ratios:
            raise FramePackError("magcache: the list of ratios is empty")


def resample_nearest(values: Sequence[float], count: int) -> list[float]:
    """`count` of the values, evenly spread from first to last; the last alone for count 1."""
    if count == 1:
        return [values[-1]]
    last = len(values) - 1
    return [values[round(i * last / (count - 1))] for i in range(count)]


class MagCache:
    """Skip while the predicted error of reusing the last residual is small (arXiv 2506.09045)."""

    def __init__(self, sigmas: Tensor, config: MagCacheConfig | None = None) -> None:
        self.sigmas = sigmas.tolist()
        self.config = config or MagCacheConfig()
        self.ratios = resample_nearest(self.config.ratios, len(self.sigmas) - 1)
        self.computed: list[bool] = []
        self._states: dict[str, _MagState] = defaultdict(_MagState)

    def transform(self, dit: FramePackDiT, tokens: Tokens, sigma: float, pass_name: str) -> Tensor:
        state = self._states[pass_name]
        compute = self._must_compute(state, _step_index(self.sigmas, sigma))
        self.computed.append(compute)
        if not compute:
            return tokens.latent + state.residual
        out = dit.transform(tokens)
        self._states[pass_name] = _MagState(residual=out - tokens.latent)
        return out

    def _must_compute(self, state: _MagState, step: int) -> bool:
        steps = len(self.ratios)
        retained = step < max(1, int(self.config.retention * steps)) or step == steps - 1
        if retained or state.residual is None:
            return True
        state.product *= self.ratios[step]
        state.error += abs(1 - state.product)
        state.skipped += 1
        return state.error > self.config.threshold or state.skipped > self.config.max_skips


class MagCalibration:
    """Computes every step and records what MagCache needs: `norm_ratio`, `norm_std`, `cos_dis`."""

    def __init__(self, sigmas: Tensor) -> None:
        self.norm_ratio: list[float] = []
        self.norm_std: list[float] = []
        self.cos_dis: list[float] = []
        self._residuals: dict[str, Tensor] = {}

    def transform(self, dit: FramePackDiT, tokens: Tokens, sigma: float, pass_name: str) -> Tensor:
        out = dit.transform(tokens)
        residual, previous = (out - tokens.latent).float(), self._residuals.get(pass_name)
        self._residuals[pass_name] = residual
        if previous is not None:
            ratio = torch.linalg.vector_norm(residual, dim=-1)
            ratio = ratio / torch.linalg.vector_norm(previous, dim=-1)
            self.norm_ratio.append(round(ratio.mean().item(), 5))
            self.norm_std.append(round(ratio.std().item(), 5))
            similarity = cosine_similarity(residual, previous, dim=-1, eps=1e-8)
            self.cos_dis.append(round((1 - similarity).mean().item(), 5))
        return out
