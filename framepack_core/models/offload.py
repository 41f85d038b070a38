"""Blocks of a DiT whose weights stay in main memory and visit the device one at a time.

A streamed block runs on copies of its weights. Without gradients a copy is freed when the block is
done; autograd keeps those it needs until the block's gradient is done.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..runtime.display import say, warn
from ..runtime.files import size_text
from ..runtime.memory import GIB, free_main_memory

Copies = dict[str, Tensor]
ALIGNMENT = 512  # bytes
SPARE = 4 * GIB  # of main memory, left when weights are pinned
MOST_TO_SWAP = 40  # with which all blocks of the released model are streamed


def blocks_of(dit: nn.Module) -> list[nn.Module]:
    """All transformer blocks of a DiT, in the order in which they run."""
    double, single = _kinds(dit)
    return [*double, *single]


def embedders_of(dit: nn.Module) -> list[nn.Module]:
    """The largest modules besides the blocks, which run before them."""
    found = (dit.time_text_embed, dit.context_embedder, dit.image_projection)
    return [module for module in found if isinstance(module, nn.Module)]


def streamed_counts(blocks_to_swap: int) -> tuple[int, int]:
    """How many (double, single) blocks are streamed, as musubi-tuner counts them.

    A double block is as large as 2.4 single ones.
    """
    double = blocks_to_swap // 2
    return (double, 2 * (blocks_to_swap - double) + 1) if blocks_to_swap else (0, 0)


def streamed_blocks(dit: nn.Module, blocks_to_swap: int) -> list[nn.Module]:
    """The blocks to stream, in the order in which they run: the last ones of both kinds."""
    pairs = zip(_kinds(dit), streamed_counts(blocks_to_swap), strict=True)
    return [block for blocks, count in pairs for block in blocks[max(0, len(blocks) - count) :]]


def _kinds(dit: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    double, single = dit.transformer_blocks, dit.single_transformer_blocks
    return list(cast(nn.ModuleList, double)), list(cast(nn.ModuleList, single))


@dataclass(frozen=True)
class WeightSizes:
    """Bytes of the weights of a DiT: of each double and each single block, and of all together."""

    double: tuple[int, ...]
    single: tuple[int, ...]
    total: int

    @classmethod
    def of(cls, sizes: Mapping[str, int]) -> WeightSizes:
        """From the sizes of all tensors by name."""
        found: dict[str, dict[int, int]] = {
            "transformer_blocks": {},
            "single_transformer_blocks": {},
        }
        for name, size in sizes.items():
            kind, _, rest = name.partition(".")
            if kind in found:
                number = int(rest.partition(".")[0])
                found[kind][number] = found[kind].get(number, 0) + size
        double, single = (tuple(blocks[i] for i in sorted(blocks)) for blocks in found.values())
        return cls(double, single, sum(sizes.values()))

    @classmethod
    def of_model(cls, dit: nn.Module) -> WeightSizes:
        """Of a model's own tensors as they are kept."""
        named = (*dit.named_parameters(), *dit.named_buffers())
        return cls.of({name: tensor.nbytes for name, tensor in named})

    def streamed(self, blocks_to_swap: int) -> list[int]:
        """Of each block that is streamed."""
        pairs = zip((self.double, self.single), streamed_counts(blocks_to_swap), strict=True)
        return [size for sizes, n in pairs for size in sizes[max(0, len(sizes) - n) :]]

    def kept(self, blocks_to_swap: int) -> int:
        """Of all that stays on the device."""
        return self.total - sum(self.streamed(blocks_to_swap))

    def needed(self, blocks_to_swap: int, visitors: int = 2) -> int:
        """The same with the streamed blocks that visit: one is at work, one on its way."""
        return self.kept(blocks_to_swap) + visitors * max(self.streamed(blocks_to_swap), default=0)

    def fewest(self, free: int) -> int | None:
        """The least blocks_to_swap that needs no more than so many bytes, if any does."""
        counts = range(MOST_TO_SWAP + 1)
        return next((n for n in counts if self.needed(n) <= free), None)


def place(
    dit: nn.Module, streamed: Sequence[nn.Module], device: torch.device, *, pin: bool | None = None
) -> None:
    """Put the streamed blocks into main memory and the rest on the device.

    pin: copy them into memory that a GPU reads faster and that cannot be swapped to disk; by
    default where that much is free, which a line says. Else weights that are views of a file stay
    views.
    """
    kept = {id(x) for block in streamed for x in _tensors(block)}
    for tensor in _tensors(dit):
        if not tensor.is_meta:  # else it is kept in another way
            tensor.data = tensor.data.to("cpu" if id(tensor) in kept else device)
    if device.type == "cuda" and (_can_pin(streamed) if pin is None else pin):
        for block in streamed:
            _pin(_tensors(block), device)


def _can_pin(blocks: Sequence[nn.Module]) -> bool:
    """Whether what is not pinned of blocks fits into main memory a second time."""
    tensors = [x for block in blocks for x in _tensors(block) if not x.is_pinned()]
    size, free = sum(x.nbytes for x in tensors), free_main_memory()
    if not size:
        return False
    fits = size + SPARE <= free
    if fits:
        say(f"swapped blocks: {size_text(size)} are copied into pinned memory")
    else:
        say(
            f"swapped blocks stay in pageable memory, which is slower: they are {size_text(size)}, "
            f"and {size_text(free)} of main memory are free"
        )
    return fits


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _pin(tensors: Sequence[Tensor], device: torch.device) -> None:
    """Move tensors into one piece of memory of their size that is locked for the GPU.

    PyTorch's own pinned memory comes in powers of two, up to twice as much. Where the system
    refuses to lock so much they stay as they are, and a warning says so.
    """
    if all(tensor.is_pinned() for tensor in tensors):
        return
    places, size = [], 0
    for tensor in tensors:
        places.append(size)
        size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    memory = mmap.mmap(-1, size)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    address, runtime = whole.data_ptr(), cast(Any, torch.cuda.cudart())
    if int(runtime.cudaHostRegister(address, size, 0)) != 0:
        with suppress(RuntimeError):  # or PyTorch would raise the error at its next launch
            torch.zeros(1, device=device)
        warn("the system refuses to lock more main memory: swapped blocks will be slower")
        return
    weakref.finalize(memory, runtime.cudaHostUnregister, address)  # when its last tensor is gone
    for tensor, first in zip(tensors, places, strict=True):
        part = whole[first : first + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        tensor.data = part.copy_(tensor.data)


class Plain(nn.Module):
    """A block by its class's methods, so that a replaced forward does not call itself."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *inputs: Any, method: str = "forward", **options: Any) -> Any:
        return getattr(type(self.block), method)(self.block, *inputs, **options)


@dataclass(frozen=True)
class Visit:
    """Memory on the device for the weights of a block, by name, and what brings them there."""

    copies: Copies
    fill: Callable[[], None]


class Weights(Protocol):
    """The weights of so many blocks, wherever they are kept."""

    device: torch.device
    count: int

    def visit(self, number: int) -> Visit:
        """Make room for those of a block."""
        ...


class HostWeights:
    """Weights in main memory."""

    def __init__(self, modules: Sequence[nn.Module], device: torch.device) -> None:
        self.device, self.count = device, len(modules)
        self._modules = modules

    def visit(self, number: int) -> Visit:
        module = self._modules[number]
        kept = dict((*module.named_parameters(), *module.named_buffers()))
        copies = {name: torch.empty_like(x, device=self.device) for name, x in kept.items()}

        @torch.no_grad()
        def fill() -> None:
            for name, tensor in kept.items():
                copies[name].copy_(tensor, non_blocking=True)

        return Visit(copies, fill)


def streamed_forwards(
    blocks: Sequence[nn.Module],
    device: torch.device,
    compilation: Mapping[str, Any] | None = None,
) -> list[Callable[..., Any]]:
    """For each block a forward on copies of its weights, which on a GPU come while others compute.

    compilation: options of torch.compile for what runs on the copies.
    """
    modules = [Plain(block) for block in blocks]
    return visiting_forwards(modules, HostWeights(modules, device), compilation)


def visiting_forwards(
    modules: Sequence[Plain],
    weights: Weights,
    compilation: Mapping[str, Any] | None = None,
    ahead: bool = True,
) -> list[Callable[..., Any]]:
    """The same for weights that are kept in any way; ahead: they come while others compute."""
    if compilation is not None:
        for module in modules:
            module.compile(**compilation)
    copier = (_Prefetcher if ahead and weights.device.type == "cuda" else _Copier)(weights)

    def forward_of(number: int) -> Callable[..., Any]:
        def forward(*inputs: Any, **options: Any) -> Any:
            copies = copier.acquire(number)
            try:
                return functional_call(modules[number], copies, inputs, options)
            finally:  # checkpointing leaves a block by an exception when it has seen enough
                copier.prefetch_next()

        return forward

    return [forward_of(number) for number in range(len(modules))]


class _Copier:
    """Copies of a block's weights on the device, made when they are needed."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def acquire(self, number: int) -> Copies:
        """The copies that a block is about to run on."""
        visit = self.weights.visit(number)
        visit.fill()
        return visit.copies

    def prefetch_next(self) -> None:
        """Called when the block's work has been given to the device."""


class _Prefetcher(_Copier):
    """The same for a GPU: the next block's weights are copied while a block computes.

    Blocks run in order, and in reverse where autograd computes them again; a wrong guess costs no
    more than a copy.
    """

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self._side = torch.cuda.Stream(weights.device)
        self._last = -1
        self._planned: tuple[int, Visit] | None = None
        self._coming: tuple[int, Visit] | None = None
        self._free, self._copied = torch.cuda.Event(), torch.cuda.Event()

    def acquire(self, number: int) -> Copies:
        stream = torch.cuda.current_stream(self.weights.device)
        if self._coming is not None:  # if it is of no use too: nothing may write to it later
            stream.wait_event(self._copied)
        if self._coming is not None and self._coming[0] == number:
            copies = self._coming[1].copies
        else:
            copies = super().acquire(number)
        self._coming = None
        following = self._following(number)
        self._planned = following, self.weights.visit(following)
        self._free.record(stream)
        return copies

    def prefetch_next(self) -> None:
        assert self._planned is not None  # set by acquire
        # The memory planned for the copies is free once all that came before this block is done.
        self._side.wait_event(self._free)
        with torch.cuda.stream(self._side):
            self._planned[1].fill()
            self._copied.record(self._side)
        self._coming, self._planned = self._planned, None

    def _following(self, number: int) -> int:
        """The block that is probably next."""
        last, self._last = self._last, number
        end = self.weights.count - 1
        if not torch.is_grad_enabled():
            return 0 if number == end else number + 1
        if number == last:  # where autograd turns back, and the next step forward again
            return max(0, end - 1) if number == end else number + 1
        following = number + (1 if number > last else -1)
        return following if 0 <= following <= end else number

    def __del__(self) -> None:
        if self._coming is not None:
            self._copied.synchronize()  # else its memory would be written to after it is free
