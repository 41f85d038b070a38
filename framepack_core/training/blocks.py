"""The blocks of a DiT in little memory: activations computed again, weights in main memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from ..models.offload import blocks_of, last_blocks, place, streamed_forwards
from ..runtime.errors import FramePackError


@contextmanager
def wrapped_blocks(
    dit: nn.Module,
    device: torch.device,
    *,
    checkpointing: bool,
    swapped: int,
    inputs_to_cpu: bool = False,
) -> Iterator[None]:
    """Run the blocks of a DiT with checkpointing, the last `swapped` with weights on the CPU.

    inputs_to_cpu: what checkpointing keeps, the input of every block, waits in main memory. With
    swapped above 0 all of the DiT is put where it belongs. Raises FramePackError for more blocks
    than there are, and for either without checkpointing.
    """
    blocks, streamed = blocks_of(dit), last_blocks(dit, swapped)
    if not checkpointing and (swapped or inputs_to_cpu):
        raise FramePackError("blocks that wait in main memory need checkpointing; turn it on")
    if swapped:
        place(dit, streamed, device, pin=True)
    resident = [block.forward for block in blocks[: len(blocks) - swapped]]
    forwards = [*resident, *streamed_forwards(streamed, device)]
    if checkpointing:
        for block, forward in zip(blocks, forwards, strict=True):
            block.forward = _checkpointed(forward, inputs_to_cpu)
    try:
        yield
    finally:
        for block in blocks if checkpointing else []:
            del block.forward


def _checkpointed(forward: Callable[..., Any], inputs_to_cpu: bool) -> Callable[..., Any]:
    def run(*inputs: Any) -> Any:
        with _inputs_on_cpu() if inputs_to_cpu else nullcontext():
            return checkpoint(forward, *inputs, use_reentrant=False)

    return run


def _inputs_on_cpu() -> saved_tensors_hooks:
    """Keep in main memory what autograd saves, but for tensors that all blocks share.

    Copies are in order with the device's own work, so that neither side needs to wait.
    """

    def pack(tensor: Tensor) -> Tensor | tuple[torch.device, Tensor]:
        if not tensor.requires_grad:  # the condition and the rotary table
            return tensor
        kept = torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type == "cuda")
        return tensor.device, kept.copy_(tensor, non_blocking=True)

    def unpack(packed: Tensor | tuple[torch.device, Tensor]) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        device, kept = packed
        return kept.to(device, non_blocking=True)

    return saved_tensors_hooks(pack, unpack)
