"""What sampling takes of a machine besides the weights: the figures that every host tells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..models.attention import Attention, sdpa
from ..models.dit import DiTConfig
from ..weights.precisions import Precision
from .plan import HISTORY, Mode
from .probe import StepCost, probe_memory, probe_transformer
from .sections import LATENT_CHANNELS, LATENT_STRIDE

PROBED_TEXT_TOKENS = 100  # of a usual prompt
IMAGE_TOKENS = 729  # of a 384 pixel picture in patches of 14
NUMBER_BYTES = 4  # latents are kept in fp32
COPIES = 2  # of latents on disk: in the ledger, and once more as a file or in a video's place
OTHER_MEMORY = 10**9  # bytes of Python, torch and their buffers
# MiB for each latent pixel of a pass and each byte of a number. 1.09 to 1.13 hundredths were
# measured (bf16, H200), and some to spare.
MEMORY_FACTOR = 1.25
PIXEL_MEMORY = 0.01 * MEMORY_FACTOR * 2**20


def probe_pass(
    config: DiTConfig,
    mode: Mode,
    window: int,
    start: Tensor,
    dtype: torch.dtype,
    attention: Attention = sdpa,
    precision: Precision = "full",
) -> StepCost:
    """Time one pass for start latents [B, 16, 1, h, w], which are on the device to be used."""
    tokens = PROBED_TEXT_TOKENS, IMAGE_TOKENS
    given = (config, mode, window, start[:1], *tokens, dtype, attention)
    cost = probe_transformer(*given, precision)
    batch = len(start)  # it costs about as much as one after the other
    memory = None if cost.memory is None else batch * cost.memory
    return replace(cost, seconds=batch * cost.seconds, memory=memory)


def pass_memory(
    config: DiTConfig,
    mode: Mode,
    window: int,
    start: Tensor,
    dtype: torch.dtype,
    attention: Attention = sdpa,
    precision: Precision = "full",
) -> int:
    """Bytes that a pass for start latents takes besides weights; measured on a GPU."""
    tokens = PROBED_TEXT_TOKENS, IMAGE_TOKENS
    given = (config, mode, window, start[:1], *tokens, dtype, attention)
    found = probe_memory(*given, precision)
    return working_memory(window, start.shape, dtype) if found is None else len(start) * found


def working_memory(
    window: int, start: Sequence[int], dtype: torch.dtype, cost: StepCost | None = None
) -> int:
    """Bytes of the device that a pass needs besides the weights.

    start: shape [B, 16, 1, h, w]; cost: what was measured, which counts if the device told.
    """
    if cost is not None and cost.memory is not None:
        return cost.memory
    batch, _, _, height, width = start
    one, two, four = HISTORY
    frames = window + 1 + one + two / 2 + four / 4  # the start image is one of them
    return OTHER_MEMORY + int(PIXEL_MEMORY * dtype.itemsize * batch * frames * height * width)


def start_shape(width: int, height: int) -> tuple[int, ...]:
    """The shape [1, 16, 1, h, w] of a start image's latents, for a size in pixels."""
    return 1, LATENT_CHANNELS, 1, height // LATENT_STRIDE, width // LATENT_STRIDE


def latent_bytes(start: Sequence[int], frames: int) -> int:
    """Bytes of so many latent frames of a video that starts with latents [B, 16, 1, h, w]."""
    return NUMBER_BYTES * math.prod(start) * frames


def disk_for_latents(start: Sequence[int], frames: int) -> int:
    """Bytes that the latents of a run take on disk."""
    return COPIES * latent_bytes(start, frames)
