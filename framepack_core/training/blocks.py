"""The blocks of a DiT in little memory: activations computed again, weights in main memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from ..models.compiled_blocks import compiled_forward
from ..models.offload import (
    blocks_of,
    embedders_of,
    place,
    streamed_blocks,
    streamed_forwards,
)
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
    keep_blocks: int = 0,
    compilation: Mapping[str, Any] | None = None,
    team: Team | None = None,
) -> Iterator[None]:
    """Run the blocks of a DiT with checkpointing, those of blocks_to_swap with weights on the CPU.

    inputs_to_cpu: what checkpointing keeps, the input of every block, waits in main memory.
    keep_attention: it keeps the output of every attention too, which then is not computed again.
    keep_blocks: so many of the last blocks that are not swapped run without checkpointing.
    compilation: options of torch.compile, for blocks that are to be compiled. With swapped, which
    is blocks_to_swap, above 0 all of the DiT is put where it belongs. team: processes of which each
    keeps a part of the DiT, whose own weights are given up for good. Raises FramePackError for
    what needs checkpointing without it, and for more blocks to keep than there are.
    """
    blocks, streamed = blocks_of(dit), streamed_blocks(dit, swapped)
    need = {"keep_attention": keep_attention, "keep_blocks": keep_blocks, "shard_weights": team}
    if not checkpointing:
        _refuse_without_checkpointing(bool(swapped or inputs_to_cpu), need)
    resident = [block for block in blocks if block not in streamed and team is None]
    if keep_blocks > len(resident):
        raise FramePackError(
            f"keep_blocks: {keep_blocks}, but only {len(resident)} blocks are whole on the device; "
            "keep fewer"
        )
    whole = resident[len(resident) - keep_blocks :] if checkpointing else blocks
    visiting = _visiting_forwards(dit, streamed, device, compilation, team)
    offload = _Offload(device) if inputs_to_cpu else None
    policy = {}
    if keep_attention:
        policy["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_attention)

    def forward_of(block: nn.Module) -> Callable[..., Any]:
        forward = visiting.get(block)
        if forward is None:
            forward = compiled_forward(block, compilation) if compilation else block.forward
        return forward if block in whole else _checkpointed(forward, policy, offload)

    wrapped = blocks if checkpointing or compilation is not None else []
    forwards = visiting | {block: forward_of(block) for block in wrapped}
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        if offload is not None:
            offload.finish()  # of a step that failed, too
        for module in forwards:
            del module.forward


def _refuse_without_checkpointing(waiting: bool, need: Mapping[str, Any]) -> None:
    """Raise FramePackError for what needs it: what waits in main memory, and options by name."""
    if waiting:
        raise FramePackError(
            "blocks or activations that wait in main memory need checkpointing; turn it on"
        )
    for name in (name for name, given in need.items() if given):
        raise FramePackError(f"{name}: it needs checkpointing; turn that on")


def _visiting_forwards(
    dit: nn.Module,
    streamed: Sequence[nn.Module],
    device: torch.device,
    compilation: Mapping[str, Any] | None,
    team: Team | None,
) -> dict[nn.Module, Callable[..., Any]]:
    """Forwards of all that is not whole on the device; the DiT is put where it belongs."""
    if team is None:
        if streamed:
            place(dit, streamed, device)
        forwards = streamed_forwards(streamed, device, compilation)
        return dict(zip(streamed, forwards, strict=True))
    embedders, blocks = embedders_of(dit), blocks_of(dit)
    place(dit, [*embedders, *blocks], device, pin=False)
    first = sharded_forwards(embedders, device, team, ahead=False)
    forwards = sharded_forwards(blocks, device, team, compilation)
    return dict(zip([*embedders, *blocks], [*first, *forwards], strict=True))


def _checkpointed(
    forward: Callable[..., Any], policy: Mapping[str, Any], offload: _Offload | None
) -> Callable[..., Any]:
    def run(*inputs: Any) -> Any:
        with offload.hooks() if offload else nullcontext():
            # Dropouts draw from generators of their own.
            return checkpoint(
                forward, *inputs, use_reentrant=False, preserve_rng_state=False, **policy
            )

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


class _Offload:
    """Keeps in main memory what autograd saves, but for tensors that all blocks share.

    On a GPU copies go beside its work: the inputs of a block leave while it computes, and come back
    while the gradients of the block after it are computed. What leaves stays until the next block
    begins, and its work waits for the copy: memory is then used again in order, without gaps.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._leaving: list[Tensor] = []
        self._last: weakref.ref[_Saved] | None = None

    def hooks(self) -> saved_tensors_hooks:
        """For what is saved of one block."""
        self.finish()
        saved = _Saved(self, self._last)
        self._last = weakref.ref(saved)
        return saved_tensors_hooks(saved.pack, _unpack)

    def finish(self) -> None:
        """Let what the device is given from now on wait for all copies."""
        if self._side is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._side)
        self._leaving.clear()

    def leave(self, tensor: Tensor) -> Tensor:
        """Its copy in main memory, which is complete once something came back after it."""
        kept = torch.empty_like(tensor, device="cpu", pin_memory=self._side is not None)
        self._copy([(kept, tensor)])
        self._leaving.append(tensor.detach())
        return kept

    def come_back(self, kept: list[Tensor]) -> tuple[list[Tensor], torch.cuda.Event | None]:
        """Copies on the device, which are complete with the event."""
        back = [torch.empty_like(tensor, device=self.device) for tensor in kept]
        return back, self._copy(list(zip(back, kept, strict=True)))

    def _copy(self, pairs: list[tuple[Tensor, Tensor]]) -> torch.cuda.Event | None:
        """Copy (to, from) after what the device has been given to do, and beside what comes."""
        if self._side is None:
            for to, source in pairs:
                to.copy_(source)
            return None
        self._side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.no_grad(), torch.cuda.stream(self._side):
            for to, source in pairs:
                to.copy_(source, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(self._side)
            return arrived


class _Packed(NamedTuple):
    saved: _Saved
    index: int


class _Saved:
    """What is saved of one block; before: of the block before it, whose gradients come next."""

    def __init__(self, offload: _Offload, before: weakref.ref[_Saved] | None) -> None:
        self._offload, self.before = offload, before
        self._kept: list[Tensor] = []
        self._back: list[Tensor] = []
        self._arrived: torch.cuda.Event | None = None

    def pack(self, tensor: Tensor) -> Tensor | _Packed:
        # The condition and the rotary table are shared; PyTorch saves an empty tensor on the CPU.
        if not tensor.requires_grad or tensor.device.type != self._offload.device.type:
            return tensor
        self._kept.append(self._offload.leave(tensor))
        return _Packed(self, len(self._kept) - 1)

    def fetch(self) -> None:
        """Start to bring everything back, once."""
        if not self._back:
            self._back, self._arrived = self._offload.come_back(self._kept)

    def get(self, index: int) -> Tensor:
        self.fetch()
        if self._arrived is not None:
            torch.cuda.current_stream(self._back[index].device).wait_event(self._arrived)
        return self._back[index]


def _unpack(packed: Tensor | _Packed) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    found = packed.saved.get(packed.index)
    before = packed.saved.before and packed.saved.before()
    if before is not None:
        before.fetch()
    return found
