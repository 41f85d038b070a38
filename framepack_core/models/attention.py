"""Scaled dot-product attention behind one signature, so that a host can bring its own kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from einops import rearrange
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

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
