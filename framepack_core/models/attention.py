"""Scaled dot-product attention behind one signature, so that a host can bring its own kernels."""

from __future__ import annotations

from collections.abc import Callable

from einops import rearrange
from torch import Tensor
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
