"""The small operations of a block as Triton kernels, one pass over memory each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 4096  # that a program holds at once


@triton.jit
def _adaln(x, out, shift, scale, length, width, eps, BLOCK: tl.constexpr):
    """One token: its layer norm, scaled and shifted by the vectors of its sample."""
    row = tl.program_id(0).to(tl.int64)
    sample = row // length
    column = tl.arange(0, BLOCK)
    inside = column < width
    value = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    value = tl.where(inside, value - tl.sum(value, axis=0) / width, 0.0)
    value = value * tl.rsqrt(tl.sum(value * value, axis=0) / width + eps)
    factor = 1 + tl.load(scale + sample * width + column, mask=inside, other=0.0).to(tl.float32)
    summand = tl.load(shift + sample * width + column, mask=inside, other=0.0).to(tl.float32)
    value = value * factor + summand
    tl.store(out + row * width + column, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _rms_rope(
    x,
    out,
    weight,
    cos,
    sin,
    tokens,
    length,
    rope_samples,
    heads,
    eps,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Some heads: RMS norm, then rotation of pairs of channels; sin holds signs (-, +)."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (row < tokens * heads)[:, None]
    channel = tl.arange(0, SIZE)
    at = row.to(tl.int64)[:, None] * SIZE + channel[None, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    norm = tl.rsqrt(tl.sum(value * value, axis=1) / SIZE + eps)
    value = value * norm[:, None] * tl.load(weight + channel).to(tl.float32)[None, :]
    value = value.to(out.dtype.element_ty).to(tl.float32)  # as between two operations
    even, odd = tl.split(tl.reshape(value, [BLOCK, SIZE // 2, 2]))
    token = row // heads
    sample = tl.where(rope_samples == 1, 0, token // length)
    place = (sample.to(tl.int64) * length + token % length)[:, None] * SIZE + channel[None, :]
    swapped = tl.reshape(tl.join(odd, even), [BLOCK, SIZE])
    value = value * tl.load(cos + place, mask=inside, other=0.0)
    value += swapped * tl.load(sin + place, mask=inside, other=0.0)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gelu_joined(attended, hidden, out, width, hidden_width, BLOCK: tl.constexpr):
    """A piece of one token of [attended, gelu(hidden)], gelu by its tanh form."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first = column < width
    inside = column < width + hidden_width
    kept = tl.load(attended + row * width + column, mask=first, other=0.0)
    value = tl.load(
        hidden + row * hidden_width + column - width, mask=inside & (column >= width), other=0.0
    ).to(tl.float32)
    inner = 0.7978845608028654 * (value + 0.044715 * value * value * value)
    value = value * tl.sigmoid(2 * inner)
    value = tl.where(first, kept.to(tl.float32), value)
    target = out + row * (width + hidden_width) + column
    tl.store(target, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _quantised_rows(
    x, out, scales, width, LARGEST: tl.constexpr, ROUND: tl.constexpr, BLOCK: tl.constexpr
):
    """One row over its largest magnitude, which becomes LARGEST."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    value = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), axis=0) / LARGEST, 1e-12)
    value = value / scale
    if ROUND:
        value = tl.floor(value + 0.5)
    tl.store(out + row * width + column, value.to(out.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale)


def adaln(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """layer_norm(x) * (1 + scale) + shift; x [B, L, C], shift and scale [B, 1, C]."""
    x, shift, scale = x.contiguous(), shift.contiguous(), scale.contiguous()
    batch, length, width = x.shape
    out = torch.empty_like(x)
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(x):
        _adaln[(batch * length,)](x, out, shift, scale, length, width, eps, block, num_warps=8)
    return out


def rms_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """x [B, L, heads, head_dim] after RMS norm and rotation; head_dim a power of 2.

    cos, sin: fp32 [B or 1, L, 1, head_dim], as `Rope` holds them.
    """
    x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
    batch, length, heads, size = x.shape
    out, block = torch.empty_like(x), max(1, ELEMENTS // size)
    tokens = batch * length
    grid = (triton.cdiv(tokens * heads, block),)
    sizes = tokens, length, cos.shape[0], heads
    with torch.cuda.device_of(x):
        _rms_rope[grid](x, out, weight, cos, sin, *sizes, eps, size, block)
    return out


def gelu_joined(attended: Tensor, hidden: Tensor) -> Tensor:
    """[attended, gelu(hidden)] along the channels; both [B, L, ...]."""
    attended, hidden = attended.contiguous(), hidden.contiguous()
    width, hidden_width = attended.shape[-1], hidden.shape[-1]
    out = attended.new_empty(*attended.shape[:-1], width + hidden_width)
    grid = (attended.numel() // width, triton.cdiv(width + hidden_width, ELEMENTS))
    with torch.cuda.device_of(attended):
        _gelu_joined[grid](attended, hidden, out, width, hidden_width, ELEMENTS, num_warps=8)
    return out


def quantised_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [N, C] by rows in int8 or an fp8 type, and the scales [N, 1] in fp32."""
    x = x.contiguous()
    rows, width = x.shape
    out, scales = torch.empty_like(x, dtype=dtype), x.new_empty(rows, 1, dtype=torch.float32)
    largest = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(x):
        _quantised_rows[(rows,)](
            x, out, scales, width, largest, dtype == torch.int8, block, num_warps=8
        )
    return out, scales
