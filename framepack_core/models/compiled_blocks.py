"""Blocks whose forward is compiled, and which can run as they are for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from .compiling import CompileOptions, prepare_compiling
from .offload import Plain


def compiled_forward(block: nn.Module, compilation: Mapping[str, Any]) -> Callable[..., Any]:
    """What a block computes, compiled; to be its `forward`."""
    plain = Plain(block)
    plain.compile(**compilation)
    return plain.__call__  # a module would become a part of the block


def compile_blocks(blocks: Sequence[nn.Module]) -> None:
    """Let blocks run compiled, with the default options."""
    prepare_compiling()
    for block in blocks:
        block.forward = compiled_forward(block, CompileOptions().compilation)


@contextmanager
def uncompiled(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Blocks of `compile_blocks` run as they are meanwhile; others are left alone."""
    kept = {}
    for block in blocks:
        forward = vars(block).get("forward")
        if isinstance(getattr(forward, "__self__", None), Plain):
            kept[block] = vars(block).pop("forward")
    try:
        yield
    finally:
        for block, forward in kept.items():
            block.forward = forward
