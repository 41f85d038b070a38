"""How the transformer is run: blocks that wait in main memory, and torch.compile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ..models.compiled_blocks import compiled_forward
from ..models.compiling import COMPILING, prepare_compiling
from ..models.offload import (
    MOST_TO_SWAP,
    WeightSizes,
    blocks_of,
    place,
    streamed_blocks,
    streamed_forwards,
)
from ..models.sharded import sharded_forwards
from ..runtime.display import say
from ..runtime.distributed import Team
from ..runtime.errors import FramePackError
from ..runtime.memory import GIB
from .options import ExecutionOptions

SEEN_BY_TEACACHE = "modulated_input"  # a method of double blocks, which needs their weights too


@dataclass(frozen=True)
class Execution:
    """blocks_to_swap, whether from pinned memory at any rate; torch.compile's options, if any.

    dequantise: never multiply quantised weights in their own numbers. shard: each of several
    processes keeps a part of the blocks' weights.
    """

    swapped: int = 0
    pinned: bool = False
    compilation: Mapping[str, Any] | None = None
    cache_size_limit: int | None = None
    dequantise: bool = False
    gpu_memory: float | None = None  # GiB
    shard: bool = False

    @classmethod
    def of(cls, options: ExecutionOptions) -> Execution:
        """From options; raises FramePackError for those that would do nothing."""
        if options.gpu_memory and options.blocks_to_swap:
            raise FramePackError("--gpu_memory: chooses --blocks_to_swap itself; leave that out")
        swaps = options.blocks_to_swap or options.gpu_memory
        if options.use_pinned_memory_for_block_swap and not swaps:
            raise FramePackError("--use_pinned_memory_for_block_swap: it needs --blocks_to_swap")
        if options.shard_weights and swaps:
            other = "gpu_memory" if options.gpu_memory else "blocks_to_swap"
            raise FramePackError(f"--shard_weights and --{other} cannot be combined; choose one")
        if options.changed and not options.compile:
            raise FramePackError(f"--{options.changed}: it needs --compile")
        return cls(
            options.blocks_to_swap,
            options.use_pinned_memory_for_block_swap,
            options.compilation if options.compile else None,
            options.compile_cache_size_limit,
            options.dequantise,
            options.gpu_memory,
            options.shard_weights,
        )

    @property
    def visited(self) -> bool:
        """Whether weights come to the device for each pass."""
        return self.shard or self.swapped > 0

    def within(self, free: int, sizes: WeightSizes) -> Execution:
        """The same with the fewest blocks to swap with which weights take no more than `free`.

        Raises FramePackError where too little is free for any number.
        """
        swapped = sizes.fewest(free)
        if swapped is None:
            least = min(map(sizes.needed, range(MOST_TO_SWAP + 1)))
            raise FramePackError(
                f"--gpu_memory: {(least - free) / GIB:.1f} GiB more are needed; give them, or use "
                "--fp8_scaled or a smaller --video_size"
            )
        return replace(self, swapped=swapped)

    def prepare(self, dit: nn.Module, device: torch.device, team: Team | None = None) -> None:
        """Make a DiT run this way; `place` puts its weights where they belong.

        team: the processes that keep a part of the weights each.
        """
        if self.compilation is not None:
            prepare_compiling(self.cache_size_limit)
            say(COMPILING)
        for block in blocks_of(dit):
            for name in ("forward", SEEN_BY_TEACACHE):
                vars(block).pop(name, None)  # of an earlier way
        if self.shard:
            assert team is not None  # `open_models` refuses it otherwise
            streamed = blocks_of(dit)
            forwards = sharded_forwards(streamed, device, team, self.compilation)
        else:
            streamed = streamed_blocks(dit, self.swapped)
            forwards = streamed_forwards(streamed, device, self.compilation)
        for block, forward in zip(streamed, forwards, strict=True):
            block.forward = forward
            if hasattr(block, SEEN_BY_TEACACHE):
                setattr(block, SEEN_BY_TEACACHE, partial(forward, method=SEEN_BY_TEACACHE))
        if self.compilation is not None:
            for block in blocks_of(dit):
                if block not in streamed:
                    block.forward = compiled_forward(block, self.compilation)

    def place(self, dit: nn.Module, device: torch.device) -> None:
        """Put a DiT on the device, but for its streamed blocks."""
        place(dit, streamed_blocks(dit, self.swapped), device, pin=self.pinned or None)
