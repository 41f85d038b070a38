"""Skipping the blocks at steps that change little: TeaCache, MagCache and EasyCache.

A cache belongs to one section of one run and keeps a state for each CFG pass; it decides by the
step's index in the schedule, never by counting calls. Where a step is skipped, the change that the
blocks last made to the tokens is added again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, cast

from pydantic import BeforeValidator

from ..runtime.errors import FramePackError
from ..runtime.options import Leaf, Settings, leaves, option, updated

if TYPE_CHECKING:  # so that options are declared without waiting for torch
    from torch import Tensor

    from ..models.dit import FramePackDiT, RunBlocks, Tokens
    from ..models.layers import DoubleBlock

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

EASYCACHE_RETENTION = 0.15  # the share of steps at the start that are never skipped, as in ComfyUI


Agree = Callable[[int], int]
"""A number of one of the processes that compute a pass together, for all of them."""


class StepCache(Protocol):
    """Stands in for `dit.transform` over the steps of one section."""

    agree: Agree

    def transform(self, dit: FramePackDiT, tokens: Tokens, sigma: float, pass_name: str) -> Tensor:
        """Latent tokens after the blocks, computed or approximated."""
        ...


def transform_with(
    cache: StepCache | None, dit: FramePackDiT, sigma: Tensor, pass_name: str
) -> RunBlocks | None:
    """What stands in for the blocks of a DiT in one pass at sigma [B]; None without a cache."""
    if cache is None:
        return None
    return lambda tokens: cache.transform(dit, tokens, float(sigma.max()), pass_name)


StepCacheFactory = Callable[["Tensor"], StepCache]
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

    def __init__(self, sigmas: Tensor, threshold: float) -> None:
        if threshold <= 0:
            raise FramePackError(f"teacache: threshold {threshold} must be above 0")
        self.sigmas, self.threshold = sigmas.tolist(), threshold
        self.computed: list[bool] = []
        self.agree: Agree = int
        self._states: dict[str, _TeaState] = defaultdict(_TeaState)

    def transform(self, dit: FramePackDiT, tokens: Tokens, sigma: float, pass_name: str) -> Tensor:
        state = self._states[pass_name]
        first = cast("DoubleBlock", dit.transformer_blocks[0])
        modulated = first.modulated_input(tokens.latent, tokens.condition)
        step = _step_index(self.sigmas, sigma)
        compute = self.agree(self._must_compute(state, modulated, step))
        state.previous_input = modulated
        self.computed.append(bool(compute))
        if not compute:
            assert state.residual is not None  # of the first step, which is always computed
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
        self.sigmas, self.config = sigmas.tolist(), config or MagCacheConfig()
        self.ratios = resample_nearest(self.config.ratios, len(self.sigmas) - 1)
        self.computed: list[bool] = []
        self.agree: Agree = int
        self._states: dict[str, _MagState] = defaultdict(_MagState)

    def transform(self, dit: FramePackDiT, tokens: Tokens, sigma: float, pass_name: str) -> Tensor:
        state = self._states[pass_name]
        compute = self.agree(self._must_compute(state, _step_index(self.sigmas, sigma)))
        self.computed.append(bool(compute))
        if not compute:
            assert state.residual is not None  # of the first step, which is always computed
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


@dataclass
class _EasyState:
    previous_input: Tensor | None = None
    computed_input: Tensor | None = None
    residual: Tensor | None = None
    rate: float | None = None
    error: float = 0.0


class EasyCache:
    """Skip while the predicted relative change of the output is small (arXiv 2507.02860).

    Between two computed steps the output changed `rate` times as much as the input; that rate
    predicts the change of the output from the input's at each step after.
    """

    def __init__(self, sigmas: Tensor, threshold: float) -> None:
        if threshold <= 0:
            raise FramePackError(f"easycache: threshold {threshold} must be above 0")
        self.sigmas, self.threshold = sigmas.tolist(), threshold
        self.computed: list[bool] = []
        self.agree: Agree = int
        self._states: dict[str, _EasyState] = defaultdict(_EasyState)

    def transform(self, dit: FramePackDiT, tokens: Tokens, sigma: float, pass_name: str) -> Tensor:
        state, latent = self._states[pass_name], tokens.latent
        step = _step_index(self.sigmas, sigma)
        compute = self.agree(self._must_compute(state, latent, step))
        state.previous_input = latent
        self.computed.append(bool(compute))
        if not compute:
            assert state.residual is not None  # of the first step, which is always computed
            return latent + state.residual
        out = dit.transform(tokens)
        if state.computed_input is not None and state.residual is not None:
            moved = _mean_change(latent, state.computed_input)
            changed = _mean_change(out, state.computed_input + state.residual)
            state.rate = changed / moved if moved else None
        state.computed_input, state.residual, state.error = latent, out - latent, 0.0
        return out

    def _must_compute(self, state: _EasyState, latent: Tensor, step: int) -> bool:
        steps = len(self.sigmas) - 1
        if step < EASYCACHE_RETENTION * steps or step == steps - 1 or state.rate is None:
            return True
        assert state.previous_input is not None  # there was a rate to measure
        assert state.computed_input is not None and state.residual is not None
        size = (state.computed_input + state.residual).abs().mean().item()
        state.error += state.rate * _mean_change(latent, state.previous_input) / size
        return state.error >= self.threshold


def _mean_change(now: Tensor, before: Tensor) -> float:
    return (now - before).abs().mean().item()


class MagCalibration:
    """Computes every step and records what MagCache needs: `norm_ratio`, `norm_std`, `cos_dis`."""

    def __init__(self, sigmas: Tensor) -> None:
        self.agree: Agree = int
        self.norm_ratio: list[float] = []
        self.norm_std: list[float] = []
        self.cos_dis: list[float] = []
        self._residuals: dict[str, Tensor] = {}

    def transform(self, dit: FramePackDiT, tokens: Tokens, sigma: float, pass_name: str) -> Tensor:
        out = dit.transform(tokens)
        residual, previous = (out - tokens.latent).float(), self._residuals.get(pass_name)
        self._residuals[pass_name] = residual
        if previous is not None:
            import torch

            norm = torch.linalg.vector_norm
            ratio = norm(residual, dim=-1) / norm(previous, dim=-1)
            self.norm_ratio.append(round(ratio.mean().item(), 5))
            self.norm_std.append(round(ratio.std().item(), 5))
            similarity = torch.cosine_similarity(residual, previous, dim=-1, eps=1e-8)
            self.cos_dis.append(round((1 - similarity).mean().item(), 5))
        return out


class Calibration:
    """Makes a MagCalibration for each section and sums them up."""

    def __init__(self) -> None:
        self.sections: list[MagCalibration] = []

    def __call__(self, sigmas: Tensor) -> MagCalibration:
        self.sections.append(MagCalibration(sigmas))
        return self.sections[-1]

    def ratios(self) -> str:
        """The mean over the sections, as --magcache_mag_ratios takes it."""
        steps = zip(*(section.norm_ratio for section in self.sections), strict=True)
        means = [1.0, *(sum(step) / len(step) for step in steps)]
        return ",".join(f"{mean:.5f}" for mean in means)


# --- options --------------------------------------------------------------------------------------


def _split_ratios(value: Any) -> Any:
    """Comma-separated numbers; empty for a lone 0, which stands for the built-in list."""
    if not isinstance(value, str):
        return value
    try:
        ratios = tuple(float(ratio) for ratio in value.split(","))
    except ValueError:
        raise ValueError(f"{value!r} is not 0 or a list like 1.0,1.07,1.29") from None
    return () if ratios == (0,) else ratios


class StepCacheOptions(Settings):
    """The parameters of one step cache. On the command line giving the first of them turns it on.

    name: what nodes call it, "" if they do not offer it.
    """

    name: ClassVar[str] = ""

    def factory(self) -> StepCacheFactory:
        """What makes it for each section."""
        raise NotImplementedError

    @classmethod
    def switch(cls) -> Leaf:
        """The option that turns it on."""
        return next(leaves(cls))


class TeaCacheOptions(StepCacheOptions):
    title: ClassVar[str] = "TeaCache"
    about: ClassVar[str] = "a step cache: skips steps that would change little (arXiv 2411.19108)"
    name: ClassVar[str] = "TeaCache"
    threshold: float = option(
        0.15, "TeaCache, and its threshold: how readily steps are skipped.", "teacache", gt=0
    )

    def factory(self) -> StepCacheFactory:
        return partial(TeaCache, threshold=self.threshold)


class MagCacheOptions(StepCacheOptions):
    title: ClassVar[str] = "MagCache"
    about: ClassVar[str] = "a step cache: skips by measured ratios (arXiv 2506.09045)"
    name: ClassVar[str] = "MagCache"
    ratios: Annotated[tuple[float, ...], BeforeValidator(_split_ratios)] = option(
        (),
        "MagCache, and its ratios of one step's change to the last's, such as 1.0,1.07; 0 is the "
        "built-in ones.",
        "magcache_mag_ratios",
        metavar="LIST",
        joined=True,
    )
    retention: float = option(
        MagCacheConfig.retention,
        "MagCache retention ratio: the share of steps at the start that are never skipped.",
        "magcache_retention_ratio",
        lines=("mcrr",),
        ge=0,
        le=1,
    )
    threshold: float = option(
        MagCacheConfig.threshold,
        "MagCache threshold of the error.",
        "magcache_threshold",
        lines=("mct",),
        gt=0,
    )
    max_skips: int = option(
        MagCacheConfig.max_skips,
        "MagCache K: steps skipped in a row at most.",
        "magcache_k",
        lines=("mck",),
        ge=1,
    )

    def factory(self) -> StepCacheFactory:
        ratios = self.ratios or MAGCACHE_RATIOS
        config = MagCacheConfig(self.threshold, self.max_skips, self.retention, ratios)
        return partial(MagCache, config=config)


class EasyCacheOptions(StepCacheOptions):
    title: ClassVar[str] = "EasyCache"
    about: ClassVar[str] = "a step cache: skips by the output's predicted change (arXiv 2507.02860)"
    name: ClassVar[str] = "EasyCache"
    threshold: float = option(
        0.15, "EasyCache, and its threshold: how readily steps are skipped.", "easycache", gt=0
    )

    def factory(self) -> StepCacheFactory:
        return partial(EasyCache, threshold=self.threshold)


class CalibrationOptions(StepCacheOptions):
    title: ClassVar[str] = "MagCache calibration"
    magcache_calibration: bool = option(
        False, "MagCache calibration: computes every step and prints the ratios."
    )

    def factory(self) -> StepCacheFactory:
        return Calibration()


class StepCaches(Settings):
    """The table of all step caches."""

    teacache: TeaCacheOptions = TeaCacheOptions()
    magcache: MagCacheOptions = MagCacheOptions()
    easycache: EasyCacheOptions = EasyCacheOptions()
    calibration: CalibrationOptions = CalibrationOptions()

    def factory(self) -> StepCacheFactory | None:
        """That of the cache that is turned on; raises FramePackError for two."""
        given = [cache for _, cache in self if cache.switch().on(cache)]
        if len(given) > 1:
            flags = " and ".join(f"--{cache.switch().flag}" for cache in given)
            raise FramePackError(f"{flags} cannot be combined; choose one")
        return given[0].factory() if given else None

    def quick(self) -> StepCaches:
        """The same, or where none is turned on with TeaCache."""
        if any(cache.switch().on(cache) for _, cache in self):
            return self
        return updated(self, {("teacache", "threshold"): TeaCacheOptions().threshold})


_KINDS = [
    cast(type[StepCacheOptions], kind.annotation) for kind in StepCaches.model_fields.values()
]
OFFERED = {kind.name: kind for kind in _KINDS if kind.name}


def _threshold(kind: type[StepCacheOptions]) -> float:
    return kind.model_fields["threshold"].default


WITH_THRESHOLD = {name: kind for name, kind in OFFERED.items() if "threshold" in kind.model_fields}


class StepCacheChoice(Settings):
    """A step cache as nodes offer it: one of the table and its threshold."""

    step_cache: Literal[("off", *OFFERED)] = option(  # type: ignore[valid-type]
        "off",
        "Step cache: skips steps that would change little. Up to twice as fast, with somewhat less "
        "detail in motion and hands.",
        cli=False,
    )
    cache_threshold: float | None = option(
        None,
        "Threshold of the step cache: how readily steps are skipped.",
        cli=False,
        none=0.0,
        absent="the usual value: "
        + ", ".join(f"{_threshold(kind):g} for {name}" for name, kind in WITH_THRESHOLD.items()),
        gt=0.0,
        high=2.0,
        step=0.01,
    )

    def factory(self) -> StepCacheFactory | None:
        """That of the chosen cache."""
        if self.step_cache == "off":
            return None
        given = {"threshold": self.cache_threshold} if self.step_cache in WITH_THRESHOLD else {}
        given = {name: value for name, value in given.items() if value is not None}
        return OFFERED[self.step_cache](**given).factory()
