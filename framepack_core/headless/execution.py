"""How the transformer is run: blocks that wait in main memory, and torch.compile."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..models.offload import blocks_of, last_blocks, place, streamed_forwards
from ..runtime.errors import FramePackError

_DYNAMIC = {None: None, "auto": None, "true": True, "false": False}


@dataclass(frozen=True)
class Execution:
    """How many blocks are streamed, whether from pinned memory; torch.compile's options, if any."""

    swapped: int = 0
    pinned: bool = False
    compilation: Mapping[str, Any] | None = None
    cache_size_limit: int | None = None

    @classmethod
    def from_args(cls, args: Namespace) -> Execution:
        """From a command line; raises FramePackError for options that would do nothing.

        A command that only encodes or trains has none of them.
        """
        if "compile" not in args:
            return cls()
        if args.use_pinned_memory_for_block_swap and not args.blocks_to_swap:
            raise FramePackError("--use_pinned_memory_for_block_swap: it needs --blocks_to_swap")
        chosen = {
            "backend": args.compile_backend,
            "mode": args.compile_mode,
            "dynamic": args.compile_dynamic,
            "fullgraph": args.compile_fullgraph,
            "cache_size_limit": args.compile_cache_size_limit,
        }
        if not args.compile:
            _refuse_changed(chosen)
        limit = chosen.pop("cache_size_limit")
        chosen["dynamic"] = _DYNAMIC[chosen["dynamic"]]
        return cls(
            args.blocks_to_swap,
            args.use_pinned_memory_for_block_swap,
            chosen if args.compile else None,
            limit,
        )

    def prepare(self, dit: nn.Module, device: torch.device) -> None:
        """Make a DiT run this way; `place` puts its weights where they belong."""
        if self.compilation is not None:
            # LoRAs are hooks, and code compiled for a model without them must not serve another
            torch._dynamo.config.skip_nnmodule_hook_guards = False
            if self.cache_size_limit is not None:
                torch._dynamo.config.cache_size_limit = self.cache_size_limit
        streamed = last_blocks(dit, self.swapped)
        forwards = streamed_forwards(streamed, device, self.compilation)
        for block, forward in zip(streamed, forwards, strict=True):
            block.forward = forward
        if self.compilation is not None:
            for block in blocks_of(dit)[: -self.swapped or None]:
                block.compile(**self.compilation)

    def place(self, dit: nn.Module, device: torch.device) -> None:
        """Put a DiT on the device, but for its streamed blocks."""
        place(dit, last_blocks(dit, self.swapped), device, pin=self.pinned)


_DEFAULTS = {
    "backend": "inductor",
    "mode": "default",
    "dynamic": None,
    "fullgraph": False,
    "cache_size_limit": None,
}


def _refuse_changed(chosen: Mapping[str, Any]) -> None:
    for name, value in chosen.items():
        if value != _DEFAULTS[name]:
            raise FramePackError(f"--compile_{name}: it needs --compile")
