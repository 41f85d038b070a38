"""The blocks of a DiT in little memory: activations computed again, weights in main memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..models.offload import blocks_of, last_blocks, place, streamed_forward
from ..runtime.errors import FramePackError


@contextmanager
def wrapped_blocks(
    dit: nn.Module, device: torch.device, *, checkpointing: bool, swapped: int
) -> Iterator[None]:
    """Run the blocks of a DiT with checkpointing, the last `swapped` with weights on the CPU.

    With swapped above 0 all of the DiT is put where it belongs. Raises FramePackError for more
    blocks than there are, and without checkpointing, which would keep every copy.
    """
    blocks, streamed = blocks_of(dit), last_blocks(dit, swapped)
    if swapped and not checkpointing:
        raise FramePackError("blocks_to_swap: needs gradient_checkpointing; turn it on")
    if swapped:
        place(dit, streamed, device, pin=True)
    for block in blocks if checkpointing else []:
        forward = streamed_forward(block, device) if block in streamed else block.forward
        block.forward = partial(checkpoint, forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks if checkpointing else []:
            del block.forward
