"""The VAE's passes over memory as Triton kernels, channels last."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .vae_kernels import Affine, Kernels, Window, _combined

ELEMENTS = 8192  # that a program holds at once
PIECES = 2048


@triton.jit
def _moments(
    x,
    mean_out,
    variance_out,
    count_out,
    rows,
    rows_a_piece,
    CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Mean and variance of each channel over a piece of the rows of one sample.

    Sums are of the distance from the piece's first row, so that nothing cancels.
    """
    piece, pieces, sample = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    channel = tl.arange(0, BLOCK_C)
    real = channel < CHANNELS
    first = piece * rows_a_piece
    last = tl.minimum(first + rows_a_piece, rows)
    x += (sample.to(tl.int64) * rows + first) * CHANNELS
    origin = tl.load(x + channel, mask=real, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for start in range(0, last - first, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        valid = (row < last - first)[:, None] & real[None, :]
        at = row[:, None] * CHANNELS + channel[None, :]
        tile = tl.load(x + at, mask=valid, other=0.0).to(tl.float32)
        off = tl.where(valid, tile - origin[None, :], 0.0)
        total += off
        squares += off * off
    count = (last - first).to(tl.float32)
    moved = tl.sum(total, axis=0) / count
    out = (sample * pieces + piece) * CHANNELS + channel
    tl.store(mean_out + out, origin + moved, mask=real)
    variance = tl.sum(squares, axis=0) / count - moved * moved
    tl.store(variance_out + out, tl.maximum(variance, 0.0), mask=real)
    tl.store(count_out + out, tl.zeros([BLOCK_C], tl.float32) + count, mask=real)


@triton.jit
def _padded(
    x,
    out,
    scale,
    shift,
    frames,
    height,
    width,
    first,
    out_height,
    out_width,
    CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
    SIDE: tl.constexpr,
    GROW_T: tl.constexpr,
    GROW_H: tl.constexpr,
    GROW_W: tl.constexpr,
    AFFINE: tl.constexpr,
    SILU: tl.constexpr,
):
    """A piece of one row of the window, all channels."""
    line, sample = tl.program_id(0), tl.program_id(2)
    frame = tl.maximum(first + line // out_height, 0)
    frame = (frame + GROW_T - 1) // GROW_T
    row = line % out_height - SIDE
    row = tl.minimum(tl.maximum(row, 0), height * GROW_H - 1) // GROW_H
    place = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    column = tl.minimum(tl.maximum(place - SIDE, 0), width * GROW_W - 1) // GROW_W
    channel = tl.arange(0, BLOCK_C)
    valid = (place < out_width)[:, None] & (channel < CHANNELS)[None, :]
    origin = ((sample.to(tl.int64) * frames + frame) * height + row) * width
    value = tl.load(
        x + (origin + column)[:, None] * CHANNELS + channel[None, :], mask=valid, other=0.0
    )
    if AFFINE:
        at = sample * CHANNELS + channel
        factor = tl.load(scale + at, mask=channel < CHANNELS, other=0.0)
        summand = tl.load(shift + at, mask=channel < CHANNELS, other=0.0)
        value = value.to(tl.float32) * factor[None, :] + summand[None, :]
        if SILU:
            value = value * tl.sigmoid(value)
    lines = tl.num_programs(0)
    target = (sample.to(tl.int64) * lines + line) * out_width + place
    tl.store(
        out + target[:, None] * CHANNELS + channel[None, :],
        value.to(out.dtype.element_ty),
        mask=valid,
    )


@triton.jit
def _add(
    x,
    other,
    bias,
    rows,
    CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    OTHER: tl.constexpr,
    BIAS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    channel = tl.arange(0, BLOCK_C)
    real = channel < CHANNELS
    valid = (row < rows)[:, None] & real[None, :]
    at = row[:, None] * CHANNELS + channel[None, :]
    value = tl.load(x + at, mask=valid, other=0.0).to(tl.float32)
    if OTHER:
        value += tl.load(other + at, mask=valid, other=0.0).to(tl.float32)
    if BIAS:
        value += tl.load(bias + channel, mask=real, other=0.0).to(tl.float32)[None, :]
    tl.store(x + at, value.to(x.dtype.element_ty), mask=valid)


def moments(x: Tensor, groups: int, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each group of x + bias, fp32 [B, groups]; x channels last."""
    batch, channels = x.shape[:2]
    rows = x[0, 0].numel()
    block_c = triton.next_power_of_2(channels)
    block_r = max(1, ELEMENTS // 2 // block_c)  # two sums of each are kept
    rows_a_piece = block_r * max(1, triton.cdiv(rows, PIECES * block_r))
    pieces = triton.cdiv(rows, rows_a_piece)
    found = torch.empty((3, batch, pieces, channels), dtype=torch.float32, device=x.device)
    with _on(x):
        _moments[(pieces, batch)](x, *found, rows, rows_a_piece, channels, block_c, block_r)
    if bias is not None:
        found[0] += bias
    grouped = found.view(3, batch, pieces, groups, -1).transpose(2, 3).flatten(3)
    return _combined(*grouped)


def add_(x: Tensor, other: Tensor | None, bias: Tensor | None) -> Tensor:
    """x + other + bias, in the memory of x where that is channels last."""
    if other is None and bias is None:
        return x
    x = x.contiguous(memory_format=torch.channels_last_3d)
    channels = x.shape[1]
    rows = x.numel() // channels
    block_c = triton.next_power_of_2(channels)
    block_r = max(1, ELEMENTS // block_c)
    other = None if other is None else other.contiguous(memory_format=torch.channels_last_3d)
    given = other is not None, bias is not None
    with _on(x):
        _add[(triton.cdiv(rows, block_r),)](
            x,
            x if other is None else other,
            x if bias is None else bias,
            rows,
            channels,
            block_c,
            block_r,
            *given,
        )
    return x


def padded(x: Tensor, window: Window, affine: Affine | None, silu: bool) -> Tensor:
    """The window in the layout of x, channels last."""
    first, stop, side, growth = window
    batch, channels, frames, height, width = x.shape
    out_height, out_width = height * growth[1] + 2 * side, width * growth[2] + 2 * side
    shape = (batch, channels, stop - first, out_height, out_width)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
    block_c = triton.next_power_of_2(channels)
    block_w = min(max(1, ELEMENTS // block_c), triton.next_power_of_2(out_width))
    grid = ((stop - first) * out_height, triton.cdiv(out_width, block_w), batch)
    scale, shift = affine or (x, x)
    sizes = frames, height, width, first, out_height, out_width
    blocks = channels, block_c, block_w, side, *growth
    with _on(x):
        _padded[grid](x, out, scale, shift, *sizes, *blocks, affine is not None, silu)
    return out


def _on(x: Tensor):
    return torch.cuda.device_of(x)


TRITON = Kernels("Triton", moments, padded, add_, torch.channels_last_3d, True)
