"""Scaled dot-product attention behind one signature, so that a host can bring its own kernels."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from einops import rearrange
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ..runtime.errors import FramePackError

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(q, k, v [B, heads, L, head_dim], key mask [B, L] bool or None) -> [B, L, heads * head_dim]."""

# With a mask cuDNN's backward gives NaN at some lengths (PyTorch 2.11, issue 196678)
MASKED_BACKENDS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def sdpa(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """PyTorch's own attention; keys that are False in `key_mask` [B, L] are not attended to."""
    if key_mask is None:
        out = scaled_dot_product_attention(q, k, v)
    else:
        with sdpa_kernel(MASKED_BACKENDS):
            out = scaled_dot_product_attention(q, k, v, attn_mask=key_mask[:, None, None, :])
    out = rearrange(out, "b h l d -> b l (h d)")
    if out.requires_grad and not is_compiling():  # which lays out gradients by itself
        # PyTorch keeps cuDNN's plan of a backward for all gradients of a shape, whatever their
        # strides, and with others than it was made for it reads outside their memory (2.11)
        out.register_hook(Tensor.contiguous)
    return out


# Module, function of q, k, v [B, L, heads, head_dim] with gradients, and what pip calls it.
_PACKAGES = {
    "flash": ("flash_attn", "flash_attn_func", "flash-attn"),
    "xformers": ("xformers.ops", "memory_efficient_attention", "xformers"),
}


def training_attention(name: str) -> Attention:
    """The attention of musubi-tuner's name, with gradients; one with a mask is always PyTorch's.

    Raises FramePackError where its package is not installed, and for sageattn.
    """
    if name in ("torch", "sdpa"):
        return sdpa
    if name not in _PACKAGES:
        raise FramePackError(f"attn_mode: {name} has no gradients; train with torch or flash")
    module, function, package = _PACKAGES[name]
    try:
        attend = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, OSError) as error:
        raise FramePackError(
            f"attn_mode: {name} needs the package {package} ({error}); run: pip install {package}, "
            "or use torch"
        ) from None

    def attention(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        if key_mask is not None:
            return sdpa(q, k, v, key_mask)
        q, k, v = (rearrange(x, "b h l d -> b l h d") for x in (q, k, v))
        return rearrange(attend(q, k, v), "b l h d -> b l (h d)")

    return attention


@contextmanager
def use_attention(model: nn.Module, attention: Attention) -> Iterator[None]:
    """Let all of a model attend by another function."""
    parts: list[Any] = [part for part in model.modules() if hasattr(part, "attention")]
    before = {part: part.attention for part in parts}
    for part in before:
        part.attention = attention
    try:
        yield
    finally:
        for part, own in before.items():
            part.attention = own
