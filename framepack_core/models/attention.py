"""Scaled dot-product attention behind one signature, so that a host can bring its own kernels."""

from __future__ import annotations

from collections.abc import Callable

from einops import rearrange
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(q, k, v [B, heads, L, head_dim], key mask [B, L] bool or None) -> [B, L, heads * head_dim]."""


def sdpa(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """PyTorch's own attention; keys that are False in `key_mask` [B, L] are not attended to."""
    mask = None if key_mask is None else key_mask[:, None, None, :]
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return rearrange(out, "b h l d -> b l (h d)")
