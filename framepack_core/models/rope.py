"""Rotary position tables by frame index, pooled for compressed history (arXiv 2504.12626)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, pad


class Rope(NamedTuple):
    """Cosines and signed sines, fp32 [B or 1, L, 1, head_dim], one entry a channel.

    Channels come in pairs (a, b) that rotate to (a cos - b sin, b cos + a sin); `sin` carries the
    signs (-, +), so that applying it takes one swap of each pair.
    """

    cos: Tensor
    sin: Tensor

    def first(self, length: int) -> Rope:
        """The table of the first tokens."""
        return Rope(self.cos[:, :length], self.sin[:, :length])


def axis_angles(positions: Tensor, dim: int, theta: float) -> Tensor:
    """Angles [..., dim / 2] of `positions` [...]: position * theta^(-2j / dim), fp32."""
    exponent = torch.arange(0, dim, 2, dtype=torch.float32, device=positions.device) / dim
    return positions.float()[..., None] / theta**exponent


def rope_table(
    frames: Tensor,
    height: int,
    width: int,
    axes_dim: tuple[int, int, int],
    theta: float,
    pool: int = 1,
    scale: float = 1.0,
) -> Rope:
    """The table of a token grid whose frames sit at the given indices.

    frames [B, T] integer indices; height, width: the grid before pooling, in 2x2 patches. With
    `pool` 2 or 4 the grid is replicate-padded to multiples of it and cosines and sines are
    averaged over pool^3 cells. `scale` multiplies the height and width coordinates.
    """
    rows = scale * torch.arange(height, device=frames.device, dtype=torch.float32)
    columns = scale * torch.arange(width, device=frames.device, dtype=torch.float32)
    angles = [
        axis_angles(positions, dim, theta)
        for positions, dim in zip((frames, rows[None], columns[None]), axes_dim, strict=True)
    ]
    return Rope(*(_join_axes([_pool(f(a), pool) for a in angles]) for f in (torch.cos, torch.sin)))


def _pool(values: Tensor, pool: int) -> Tensor:
    """Average groups of `pool` positions of [B, N, C], the last group filled with its last value.

    Every channel depends on one axis only, so pooling the axes apart equals pooling the grid.
    """
    if pool == 1:
        return values
    values = pad(values.transpose(1, 2), (0, -values.shape[1] % pool), mode="replicate")
    return avg_pool1d(values, pool).transpose(1, 2)


def _join_axes(axes: list[Tensor]) -> Tensor:
    """[B, T, Ct], [1, H, Ch], [1, W, Cw] -> [B, T*H*W, Ct + Ch + Cw]."""
    t, h, w = axes
    grid = (t.shape[0], t.shape[1], h.shape[1], w.shape[1])
    t = t[:, :, None, None].expand(*grid, -1)
    h = h[:, None, :, None].expand(*grid, -1)
    w = w[:, None, None, :].expand(*grid, -1)
    return torch.cat([t, h, w], dim=-1).flatten(1, 3)


def pack_rope(tables: list[Rope], plain_tokens: int) -> Rope:
    """One table for a whole sequence: the given grids, then `plain_tokens` that do not rotate."""
    cos = _concatenate([table.cos for table in tables])
    sin = _concatenate([table.sin for table in tables])
    cos = pad(cos, (0, 0, 0, plain_tokens), value=1.0).repeat_interleave(2, dim=-1)
    sin = pad(sin, (0, 0, 0, plain_tokens))
    sin = torch.stack([-sin, sin], dim=-1).flatten(-2)
    return Rope(cos[:, :, None], sin[:, :, None])


def _concatenate(parts: list[Tensor]) -> Tensor:
    batch = max(part.shape[0] for part in parts)
    return torch.cat([part.expand(batch, -1, -1) for part in parts], dim=1)


def apply_rope(x: Tensor, rope: Rope) -> Tensor:
    """Rotate x [B, L, heads, head_dim] in fp32; the result has the dtype of x."""
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(x * rope.cos, swapped, rope.sin).to(x.dtype)
