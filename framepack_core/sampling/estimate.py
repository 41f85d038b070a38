"""What sampling takes of a machine besides the weights: the figures that every host tells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from .plan import HISTORY
from .probe import StepCost, TrialPass, probe_memory, probe_transformer
from .sections import LATENT_CHANNELS, LATENT_STRIDE

NUMBER_BYTES = 4  # latents are kept in fp32
COPIES = 2  # of latents on disk: in the ledger, and once more as a file or in a video's place
OTHER_MEMORY = 10**9  # bytes of Python, torch and their buffers
# MiB for each latent pixel of a pass and each byte of a number. 1.09 to 1.13 hundredths were
# measured (bf16, H200), and some to spare.
MEMORY_FACTOR = 1.25
PIXEL_MEMORY = 0.01 * MEMORY_FACTOR * 2**20


def probe_pass(trial: TrialPass) -> StepCost:
    """Time one pass; a batch costs about as much as its samples one after the other."""
    batch, cost = len(trial.start), probe_transformer(_of_one(trial))
    memory = None if cost.memory is None else batch * cost.memory
    return replace(cost, seconds=batch * cost.seconds, memory=memory)


def pass_memory(trial: TrialPass) -> int:
    """Bytes that a pass takes besides weights; measured on a GPU."""
    start, found = trial.start, probe_memory(_of_one(trial))
    if found is None:
        return working_memory(trial.window, start.shape, trial.dtype)
    return len(start) * found


def _of_one(trial: TrialPass) -> TrialPass:
    return replace(trial, start=trial.start[:1])


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
