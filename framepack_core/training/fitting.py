"""How a training keeps to a budget of GPU memory: found by a step on trial, not by tables."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import nn

from ..models.offload import MOST_TO_SWAP, WeightSizes, place
from ..runtime.errors import FramePackError
from ..runtime.memory import GIB

STATES = 2  # of an optimizer, each as large as what is trained; they come after the first step
SLACK = 2 * GIB  # of the allocator, which cannot use every gap: 1.1 to 1.5 were seen on an H200


@dataclass(frozen=True)
class Fit:
    """blocks_to_swap, and whether the inputs of the blocks wait in main memory too."""

    swapped: int
    inputs_to_cpu: bool

    def __str__(self) -> str:
        activations = ", activations in main memory" if self.inputs_to_cpu else ""
        return f"blocks_to_swap {self.swapped}{activations}"


def fit_step(
    dit: nn.Module, budget: int, trained: int, trial: Callable[[Fit], int], device: torch.device
) -> Fit:
    """What keeps to a budget with the least in main memory; the DiT is put where it belongs.

    budget, trained: bytes, of the device and of all that is trained; trial: the most that a step
    takes, by a step. Raises FramePackError where nothing does.
    """
    sizes = WeightSizes.of_model(dit)
    free = budget - STATES * trained - SLACK
    least, smallest = 0, Fit(MOST_TO_SWAP, False)
    for inputs_to_cpu in (False, True):
        smallest = Fit(MOST_TO_SWAP, inputs_to_cpu)
        with suppress(torch.cuda.OutOfMemoryError):
            least = trial(smallest)
            swapped = sizes.fewest(free - (least - sizes.needed(MOST_TO_SWAP)))
            if swapped is not None:
                if not swapped:
                    place(dit, [], device)
                return Fit(swapped, inputs_to_cpu)
    if least and least <= free + SLACK:  # the trial itself had few gaps
        return smallest
    needed = f"{(least + budget - free) / GIB:.1f} GiB" if least else "more"
    raise FramePackError(
        f"gpu_memory: {budget / GIB:.1f} GiB, but a step needs {needed} even with all blocks and "
        "activations in main memory; train smaller clips or batches, or on fp8_scaled"
    )
