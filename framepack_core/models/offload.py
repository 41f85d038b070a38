"""Blocks of a DiT whose weights stay in main memory and visit the device one at a time.

A streamed block runs on copies of its weights. Without gradients a copy is freed when the block is
done; autograd keeps those it needs until the block's gradient is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from ..runtime.errors import FramePackError


def blocks_of(dit: nn.Module) -> list[nn.Module]:
    """All transformer blocks of a DiT, in the order in which they run."""
    return [*dit.transformer_blocks, *dit.single_transformer_blocks]


def last_blocks(dit: nn.Module, count: int) -> list[nn.Module]:
    """The blocks to stream; raises FramePackError for more of them than there are."""
    blocks = blocks_of(dit)
    if count > len(blocks):
        raise FramePackError(f"blocks_to_swap: {count} of {len(blocks)} blocks; give fewer")
    return blocks[len(blocks) - count :]


def place(
    dit: nn.Module, streamed: Sequence[nn.Module], device: torch.device, *, pin: bool
) -> None:
    """Put the streamed blocks into main memory and the rest on the device.

    pin: copy them into memory that a GPU reads faster and that cannot be swapped to disk. Else
    weights that are views of a file stay views.
    """
    kept = {id(x) for block in streamed for x in (*block.parameters(), *block.buffers())}
    for tensor in (*dit.parameters(), *dit.buffers()):
        tensor.data = tensor.data.to("cpu" if id(tensor) in kept else device)
        if id(tensor) in kept and pin and device.type == "cuda":
            tensor.data = tensor.data.pin_memory()


def stream(blocks: Sequence[nn.Module], device: torch.device) -> None:
    """Make blocks run on the device with weights that are elsewhere."""
    for block in blocks:
        block.forward = streamed_forward(block, device)


class _Plain(nn.Module):
    """A block by its class's forward, so that a replaced one does not call itself."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *inputs: Any) -> Any:
        return type(self.block).forward(self.block, *inputs)


def streamed_forward(block: nn.Module, device: torch.device) -> Callable[..., Any]:
    """The forward of a block, on copies of its weights that are made for the call."""
    plain = _Plain(block)

    def forward(*inputs: Any) -> Any:
        tensors = dict((*plain.named_parameters(), *plain.named_buffers()))
        copies = {n: x.to(device, non_blocking=True, copy=True) for n, x in tensors.items()}
        return functional_call(plain, copies, inputs)

    return forward
