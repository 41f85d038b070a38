"""What a run will take, from short trials on this machine before any large file is read."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor, nn

from ..models.attention import Attention, sdpa
from ..models.dit import DiTConfig, FramePackDiT
from ..models.products import choose_products
from ..models.prompt import TextCondition
from ..models.quantise import quantise_layers
from ..weights.precisions import Precision
from ..weights.quantised_linear import QuantisedOps
from .decode import Decode
from .flow import FlowDenoiser, Guided
from .history import History
from .plan import Mode
from .sections import plan_video

TRIALS = 5
PATIENCE = 10  # seconds; what takes longer is tried once only
FEW, MANY = 1, 3  # blocks of each kind in the trial models
WARM_UP = 2  # latent frames
TEXT_TOKENS = 100  # of a usual prompt
IMAGE_TOKENS = 729  # of a 384 pixel picture in patches of 14


@dataclass(frozen=True)
class StepCost:
    """What one pass of the whole transformer takes; memory is that besides its weights.

    memory: bytes on the device, None where the device does not tell.
    """

    seconds: float
    memory: int | None


@dataclass(frozen=True)
class TrialPass:
    """One pass of a section by a model of random weights, quantised or not.

    start [B, C, 1, h, w] is on the device to be used; its values do not matter.
    """

    config: DiTConfig
    mode: Mode
    window: int
    start: Tensor
    dtype: torch.dtype
    attention: Attention = sdpa
    precision: Precision = "full"
    text_tokens: int = TEXT_TOKENS
    image_tokens: int = IMAGE_TOKENS
    ended: bool = False  # with an end image, which F1 sees besides all else

    @property
    def device(self) -> torch.device:
        return self.start.device

    def prepared(self) -> Callable[[], None]:
        """The pass, of a model that is made here."""
        layers = nn if self.precision == "full" else QuantisedOps
        options = {"dtype": self.dtype, "device": self.device}
        dit = FramePackDiT(self.config, ops=layers, attention=self.attention, **options)
        for parameter in dit.parameters():  # uninitialised memory may hold slow denormals
            parameter.normal_(std=0.02)
        if self.precision != "full":
            quantise_layers(dit, self.precision)
            choose_products(dit, self.device, self.dtype)
        return lambda: self.run(dit)

    def run(self, dit: FramePackDiT) -> None:
        """The pass of a model."""
        plan, config = plan_video(self.mode, 1, self.window), self.config
        plan = plan.with_end(self.start) if self.ended else plan
        history, [section] = History(plan, self.start), plan.sections

        def zeros(*shape: int) -> Tensor:
            shape = len(self.start), *shape
            return torch.zeros(shape, device=self.device, dtype=self.dtype)

        text = TextCondition(
            zeros(self.text_tokens, config.text_embed_dim), zeros(config.pooled_projection_dim)
        )
        image = zeros(self.image_tokens, config.image_proj_dim) if config.has_image_proj else None
        FlowDenoiser(dit, self.dtype).denoise(
            self.start.expand(-1, -1, self.window, -1, -1),
            torch.ones(len(self.start), device=self.device),
            Guided(text, image),
            latent_indices=history.latent_indices(section),
            context=history.context(section),
        )


@torch.no_grad()
def probe_transformer(trial: TrialPass) -> StepCost:
    """Time a pass by models of a few blocks of real size."""

    def measure(double: int, single: int) -> StepCost:
        return _measure(_small(trial, double, single).prepared(), trial.device)

    base, config = measure(FEW, FEW), trial.config
    double = (measure(MANY, FEW).seconds - base.seconds) / (MANY - FEW)
    single = (measure(FEW, MANY).seconds - base.seconds) / (MANY - FEW)
    more = (config.num_layers - FEW) * double + (config.num_single_layers - FEW) * single
    return StepCost(max(base.seconds, base.seconds + more), base.memory)


@torch.no_grad()
def probe_memory(trial: TrialPass) -> int | None:
    """Bytes that a pass takes besides weights, likewise; None where nothing tells."""
    return _trial(_small(trial, FEW, FEW).prepared(), trial.device).memory


def _small(trial: TrialPass, double: int, single: int) -> TrialPass:
    """The same with so many blocks of each kind."""
    config = replace(trial.config, num_layers=double, num_single_layers=single)
    return replace(trial, config=config)


def _measure(run: Callable[[], None], device: torch.device) -> StepCost:
    """Median of a few trials after one to warm up."""
    first = _trial(run, device)
    if first.seconds > PATIENCE:
        return first
    return replace(first, seconds=median(_seconds(run, device) for _ in range(TRIALS)))


def _trial(run: Callable[[], object], device: torch.device) -> StepCost:
    """What one run takes, besides what is allocated before it."""
    if device.type != "cuda":
        return StepCost(_seconds(run, device), None)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    seconds = _seconds(run, device)
    return StepCost(seconds, torch.cuda.max_memory_allocated(device) - before)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def probe_decode(
    decode: Decode, start: Tensor, slices: Sequence[tuple[int, int]], device: torch.device
) -> StepCost:
    """What decoding a video in these slices takes on the decoder's device, from one of them.

    Shorter clips would tell less: the VAE's attention grows faster than their length.
    """
    lengths = [stop - first for first, stop in slices]
    longest = start.expand(-1, -1, max(lengths), -1, -1)
    decode(start.expand(-1, -1, WARM_UP, -1, -1))
    cost = _trial(lambda: decode(longest), device)
    return replace(cost, seconds=cost.seconds * sum(lengths) / max(lengths))
