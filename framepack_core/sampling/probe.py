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


@dataclass(frozen=True)
class StepCost:
    """What one pass of the whole transformer takes; memory is that besides its weights.

    memory: bytes on the device, None where the device does not tell.
    """

    seconds: float
    memory: int | None


@torch.no_grad()
def probe_transformer(
    config: DiTConfig,
    mode: Mode,
    window: int,
    start: Tensor,
    text_tokens: int,
    image_tokens: int,
    dtype: torch.dtype,
    attention: Attention = sdpa,
    precision: Precision = "full",
) -> StepCost:
    """Time a section's pass by models of a few random blocks of real size, quantised or not.

    start [1, C, 1, h, w] is on the device to be used, its values do not matter.
    """

    tokens = text_tokens, image_tokens

    def measure(double: int, single: int) -> StepCost:
        small = replace(config, num_layers=double, num_single_layers=single)
        run = _trial_pass(small, mode, window, start, *tokens, dtype, attention, precision)
        return _measure(run, start.device)

    base = measure(FEW, FEW)
    double = (measure(MANY, FEW).seconds - base.seconds) / (MANY - FEW)
    single = (measure(FEW, MANY).seconds - base.seconds) / (MANY - FEW)
    more = (config.num_layers - FEW) * double + (config.num_single_layers - FEW) * single
    return StepCost(max(base.seconds, base.seconds + more), base.memory)


@torch.no_grad()
def probe_memory(
    config: DiTConfig,
    mode: Mode,
    window: int,
    start: Tensor,
    text_tokens: int,
    image_tokens: int,
    dtype: torch.dtype,
    attention: Attention = sdpa,
    precision: Precision = "full",
) -> int | None:
    """Bytes that a section's pass takes besides weights, likewise; None where nothing tells."""
    small = replace(config, num_layers=FEW, num_single_layers=FEW)
    tokens = text_tokens, image_tokens
    run = _trial_pass(small, mode, window, start, *tokens, dtype, attention, precision)
    return _trial(run, start.device).memory


def _trial_pass(
    config: DiTConfig,
    mode: Mode,
    window: int,
    start: Tensor,
    text_tokens: int,
    image_tokens: int,
    dtype: torch.dtype,
    attention: Attention,
    precision: Precision,
) -> Callable[[], None]:
    """A pass of a model of random weights."""
    layers = nn if precision == "full" else QuantisedOps
    options = {"dtype": dtype, "device": start.device}
    dit = FramePackDiT(config, ops=layers, attention=attention, **options)
    for parameter in dit.parameters():  # uninitialised memory may hold slow denormals
        parameter.normal_(std=0.02)
    if precision != "full":
        quantise_layers(dit, precision)
        choose_products(dit, start.device, dtype)
    return lambda: _pass(dit, dtype, mode, window, start, text_tokens, image_tokens)


def _pass(
    dit: FramePackDiT,
    dtype: torch.dtype,
    mode: Mode,
    window: int,
    start: Tensor,
    text_tokens: int,
    image_tokens: int,
) -> None:
    plan, config, device = plan_video(mode, 1, window), dit.config, start.device
    history, [section] = History(plan, start), plan.sections
    text = TextCondition(
        torch.zeros(1, text_tokens, config.text_embed_dim, device=device, dtype=dtype),
        torch.zeros(1, config.pooled_projection_dim, device=device, dtype=dtype),
    )
    image = torch.zeros(1, image_tokens, config.image_proj_dim, device=device, dtype=dtype)
    FlowDenoiser(dit, dtype).denoise(
        start.expand(-1, -1, window, -1, -1),
        torch.ones(1, device=device),
        Guided(text, image if config.has_image_proj else None),
        latent_indices=history.latent_indices(section),
        context=history.context(section),
    )


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
