"""The blocks of a DiT in little memory: activations computed again, weights in main memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from ..models.compiled_blocks import compiled_forward
from ..models.offload import blocks_of, embedders_of, place, streamed_blocks, streamed_forwards
from ..models.sharded import sharded_forwards
from ..runtime.distributed import Team
from ..runtime.errors import FramePackError


@contextmanager
def wrapped_blocks(
    dit: nn.Module,
    device: torch.device,
    *,
    checkpointing: bool,
    swapped: int,
    inputs_to_cpu: bool = False,
    keep_attention: bool = False,
    compilation: Mapping[str, Any] | None = None,
    team: Team | None = None,
) -> Iterator[None]:
    """Run the blocks of a DiT with checkpointing, those of blocks_to_swap with weights on the CPU.

    inputs_to_cpu: what checkpointing keeps, the input of every block, waits in main memory.
    keep_attention: it keeps the output of every attention too, which then is not computed again.
    compilation: options of torch.compile, for blocks that are to be compiled. With swapped, which
    is blocks_to_swap, above 0 all of the DiT is put where it belongs. team: processes of which each
    keeps a part of the DiT, whose own weights are given up for good. Raises FramePackError for
    what needs checkpointing without it.
    """
    blocks, streamed = blocks_of(dit), streamed_blocks(dit, swapped)
    if not checkpointing and (swapped or inputs_to_cpu or keep_attention or team):
        raise FramePackError(
            "blocks or activations that wait in main memory need checkpointing; turn it on"
            if swapped or inputs_to_cpu
            else f"{'keep_attention' if keep_attention else 'shard_weights'}: it needs "
            "checkpointing; turn that on"
        )
    if swapped:
        place(dit, streamed, device, pin=True)
    embedders = embedders_of(dit) if team is not None else []
    if team is not None:
        streamed = blocks
        place(dit, [*embedders, *blocks], device, pin=False)
        made = sharded_forwards(blocks, device, team, compilation)
        first = sharded_forwards(embedders, device, team, ahead=False)
        for module, forward in zip(embedders, first, strict=True):
            module.forward = forward
    else:
        made = streamed_forwards(streamed, device, compilation)
    forwards = dict(zip(streamed, made, strict=True))
    wrapped = checkpointing or compilation is not None
    if wrapped:
        for block in blocks:
            resident = compiled_forward(block, compilation) if compilation else block.forward
            forward = forwards.get(block) or resident
            block.forward = (
                _checkpointed(forward, inputs_to_cpu, keep_attention) if checkpointing else forward
            )
    try:
        yield
    finally:
        for module in [*embedders, *(blocks if wrapped else [])]:
            del module.forward


def _checkpointed(
    forward: Callable[..., Any], inputs_to_cpu: bool, keep_attention: bool
) -> Callable[..., Any]:
    kept = {}
    if keep_attention:
        kept["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_attention)

    def run(*inputs: Any) -> Any:
        with _inputs_on_cpu() if inputs_to_cpu else nullcontext():
            return checkpoint(forward, *inputs, use_reentrant=False, **kept)

    return run


_aten = torch.ops.aten
_ATTENTIONS = (
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
)


def _keep_attention(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    kept = operation in _ATTENTIONS
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


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
