"""The VAE over overlapping tiles: less memory, but norms and attention see one tile at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..runtime.errors import FramePackError
from .vae import AutoencoderKL

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Tiles:
    """Tiles along one axis: a tile's size and the distance between tiles, in pixels or frames."""

    size: int
    stride: int


@dataclass(frozen=True)
class Tiling:
    """How to cut a clip; an axis without tiles stays whole.

    All numbers are in pixels or frames and multiples of what one latent covers. A tile in time has
    one frame more than its size, the first frame of a clip having a latent of its own.
    """

    height: Tiles | None = None
    width: Tiles | None = None
    frames: Tiles | None = None

    @classmethod
    def square(cls, size: int, overlap: float = 0.25, latent: int = 8) -> Tiling:
        """Square tiles of `size` pixels of which `overlap` is shared with each neighbour.

        The overlap is rounded to whole latents of `latent` pixels.
        """
        tiles = Tiles(size, size - round(size * overlap / latent) * latent)
        return cls(height=tiles, width=tiles)


@dataclass(frozen=True)
class _Span:
    """The tiles of one axis, counted on the side that is read and on the side that is written."""

    size: int
    stride: int
    overlap: int
    step: int


WHOLE = _Span(sys.maxsize, sys.maxsize, 0, sys.maxsize)


def tiled_encode(
    vae: AutoencoderKL,
    pixels: Tensor,
    tiling: Tiling | int,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`vae.encode` over tiles; a number stands for square tiles of that many pixels."""
    return vae.latents(tiled_moments(vae, pixels, tiling), generator=generator)


def tiled_moments(vae: AutoencoderKL, pixels: Tensor, tiling: Tiling | int) -> Tensor:
    """`vae.moments` over tiles, blended linearly where they overlap."""
    vae.check_pixels(pixels)
    return _tiled(vae.moments, pixels, _spans(vae, tiling, reads_latents=False))


def tiled_decode(vae: AutoencoderKL, latents: Tensor, tiling: Tiling | int) -> Tensor:
    """`vae.decode` over tiles, blended linearly where they overlap."""
    return _tiled(vae.decode, latents, _spans(vae, tiling, reads_latents=True))


def _spans(
    vae: AutoencoderKL, tiling: Tiling | int, *, reads_latents: bool
) -> tuple[_Span, _Span, _Span]:
    space = vae.config.spatial_compression_ratio
    if isinstance(tiling, int):
        tiling = Tiling.square(tiling, latent=space)
    return (
        _span(tiling.frames, vae.config.temporal_compression_ratio, reads_latents),
        _span(tiling.height, space, reads_latents),
        _span(tiling.width, space, reads_latents),
    )


def _span(tiles: Tiles | None, ratio: int, reads_latents: bool) -> _Span:
    if tiles is None:
        return WHOLE
    size, stride = tiles.size, tiles.stride
    if size % ratio or stride % ratio or not 0 < stride <= size:
        raise FramePackError(
            f"VAE tiles of {size} every {stride} cannot be cut: both must be multiples of {ratio}, "
            f"the second above 0 and at most the first"
        )
    if reads_latents:
        return _Span(size // ratio, stride // ratio, size - stride, stride)
    return _Span(size, stride, (size - stride) // ratio, stride // ratio)


def _tiled(run: Run, x: Tensor, spans: tuple[_Span, _Span, _Span]) -> Tensor:
    frames, height, width = spans

    def whole_clip(clip: Tensor) -> Tensor:
        return _tiled_in_space(run, clip, height, width)

    return _tiled_in_time(whole_clip, x, frames)


def _tiled_in_time(run: Run, x: Tensor, span: _Span) -> Tensor:
    if x.shape[2] <= span.size:
        return run(x)
    first = run(x[:, :, : span.size + 1])
    pieces, before = [first[:, :, : span.step + 1]], first
    for start in range(span.stride, x.shape[2], span.stride):
        # A tile's own first frame was computed without a past: the tile before has it better.
        tile = run(x[:, :, start : start + span.size + 1])[:, :, 1:]
        before = _blend(before, tile, span.overlap, dim=2)
        pieces.append(before[:, :, : span.step])
    return torch.cat(pieces, dim=2)


def _tiled_in_space(run: Run, x: Tensor, height: _Span, width: _Span) -> Tensor:
    if x.shape[-2] <= height.size and x.shape[-1] <= width.size:
        return run(x)
    bands: list[Tensor] = []
    above: list[Tensor] = []
    for top in range(0, x.shape[-2], height.stride):
        row: list[Tensor] = []
        for left in range(0, x.shape[-1], width.stride):
            tile = run(x[..., top : top + height.size, left : left + width.size])
            if above:
                tile = _blend(above[len(row)], tile, height.overlap, dim=-2)
            if row:
                tile = _blend(row[-1], tile, width.overlap, dim=-1)
            row.append(tile)
        above = row
        bands.append(torch.cat([tile[..., : height.step, : width.step] for tile in row], dim=-1))
    return torch.cat(bands, dim=-2)


def _blend(before: Tensor, after: Tensor, overlap: int, dim: int) -> Tensor:
    """`after` with its first `overlap` places faded in over the last ones of `before`."""
    overlap = min(overlap, before.shape[dim], after.shape[dim])
    shape = [1] * after.ndim
    shape[dim] = overlap
    weight = torch.arange(overlap, device=after.device).div(max(overlap, 1)).to(after).view(shape)
    tail = before.narrow(dim, before.shape[dim] - overlap, overlap)
    head, rest = after.split([overlap, after.shape[dim] - overlap], dim=dim)
    return torch.cat([torch.lerp(tail, head, weight), rest], dim=dim)
