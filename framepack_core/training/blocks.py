"""The blocks of a DiT in little memory: activations computed again, weights kept on the CPU.

Both wrap a block's forward from outside. A streamed block runs on copies of its weights; autograd
keeps those it needs until the block's gradient is done, so nothing is freed too early or kept on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from ..runtime.errors import FramePackError


@contextmanager
def wrapped_blocks(
    dit: nn.Module, device: torch.device, *, checkpointing: bool, swapped: int
) -> Iterator[None]:
    """Run the blocks of a DiT with checkpointing, the last `swapped` with weights on the CPU.

    With swapped above 0 all of the DiT is put where it belongs. Raises FramePackError for more
    blocks than there are, and without checkpointing, which would keep every copy.
    """
    blocks = [*dit.transformer_blocks, *dit.single_transformer_blocks]
    if swapped > len(blocks):
        raise FramePackError(f"blocks_to_swap: {swapped} of {len(blocks)} blocks; give fewer")
    if swapped and not checkpointing:
        raise FramePackError("blocks_to_swap: needs gradient_checkpointing; turn it on")
    streamed = blocks[len(blocks) - swapped :]
    if swapped:
        _place(dit, streamed, device)
    for block in blocks if checkpointing else []:
        forward = _streamed(block, device) if block in streamed else block.forward
        block.forward = partial(checkpoint, forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks if checkpointing else []:
            del block.forward


def _place(dit: nn.Module, streamed: list[nn.Module], device: torch.device) -> None:
    """The streamed blocks in pinned memory of the CPU, the rest on the device."""
    kept = {id(x) for block in streamed for x in (*block.parameters(), *block.buffers())}
    for tensor in (*dit.parameters(), *dit.buffers()):
        tensor.data = tensor.data.to("cpu" if id(tensor) in kept else device)
        if id(tensor) in kept and device.type == "cuda":
            tensor.data = tensor.data.pin_memory()


class _Plain(nn.Module):
    """A block by its class's forward, so that the wrapped one does not call itself."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *inputs: Any) -> Any:
        return type(self.block).forward(self.block, *inputs)


def _streamed(block: nn.Module, device: torch.device) -> Callable[..., Any]:
    plain = _Plain(block)

    def forward(*inputs: Any) -> Any:
        tensors = dict((*plain.named_parameters(), *plain.named_buffers()))
        copies = {n: x.to(device, non_blocking=True, copy=True) for n, x in tensors.items()}
        return functional_call(plain, copies, inputs)

    return forward
