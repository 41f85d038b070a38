"""Latents to pixels: section by section with cross-faded joins, in one call, or frame by frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest

import torch
from torch import Tensor

from ..runtime.distributed import Crew
from ..runtime.errors import FramePackError

Decode = Callable[[Tensor], Tensor]
"""Scaled latents [1, 16, T, h, w] to pixels [1, 3, 4T - 3, 8h, 8w] in -1..1."""


CHUNKS = (16, 4)  # frames; more than 16 at once gains nothing
TILES = (256, 192, 128)  # pixels; smaller ones show


@dataclass(frozen=True)
class DecodeMemory:
    """How a decode saves memory: first by computing fewer frames at once, then smaller tiles.

    chunk: frames that a convolution computes at once, tile: side in pixels; None is all.
    """

    chunk: int | None = None
    tile: int | None = None

    def smaller(self) -> DecodeMemory | None:
        """The next one that needs less; None after the last."""
        for chunk in CHUNKS:
            if self.chunk is None or chunk < self.chunk:
                return replace(self, chunk=chunk)
        for tile in TILES:
            if self.tile is None or tile < self.tile:
                return replace(self, tile=tile)
        return None

    def __str__(self) -> str:
        tile = "" if self.tile is None else f" in tiles of {self.tile} pixels"
        return f"{self.chunk or 'all'} frames at once{tile}"


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.cuda.OutOfMemoryError)


@dataclass
class RetryingDecode:
    """A Decode that retries with less memory where there was not enough, and says so.

    What worked is kept for the calls that follow. `release` frees what a failed call has left; the
    last error is raised where nothing smaller is left to try.
    """

    decode: Callable[[Tensor, DecodeMemory], Tensor]
    memory: DecodeMemory
    say: Callable[[str], None]
    release: Callable[[], None] = torch.cuda.empty_cache
    out_of_memory: Callable[[BaseException], bool] = is_out_of_memory

    def __call__(self, latents: Tensor) -> Tensor:
        while True:
            try:
                return self.decode(latents, self.memory)
            except Exception as error:
                smaller = self.memory.smaller()
                if smaller is None or not self.out_of_memory(error):
                    raise
            # Only here: while it is handled, an error holds on to the tensors of its frames.
            self.say(f"decoding ran out of memory with {self.memory}; retrying with {smaller}")
            self.memory = smaller
            self.release()


class SharedDecode:
    """A Decode whose slices are decoded by all processes of a crew.

    decode: to pixels in any number type, on the device; here they come back in fp32 on the CPU.
    """

    def __init__(self, decode: Decode, crew: Crew | None, dtype: torch.dtype) -> None:
        self.decode, self.crew, self.dtype = decode, crew, dtype

    def __call__(self, latents: Tensor) -> Tensor:
        return self.decode(latents).float().cpu()

    def each(self, slices: Sequence[Tensor]) -> Iterator[Tensor]:
        """Decode slices, as many at once as there are processes; the others have to `follow`."""
        count = 1 if self.crew is None else self.crew.count
        for first in range(0, len(slices), count):
            some = slices[first : first + count]
            if self.crew is not None and len(some) > 1:
                self.crew.send(some)
            yield self(some[0])
            for number, latents in enumerate(some[1:], 1):
                assert self.crew is not None
                yield self.crew.take(number, _pixels_like(latents, self.dtype)).float().cpu()

    def follow(self, slices: Sequence[Tensor]) -> None:
        """What the other processes do with what they are sent."""
        assert self.crew is not None
        if self.crew.rank < len(slices):
            pixels = self.decode(slices[self.crew.rank])
            self.crew.give(pixels.to(self.dtype))


def _pixels_like(latents: Tensor, dtype: torch.dtype) -> Tensor:
    batch, _, frames, height, width = latents.shape
    return latents.new_empty((batch, 3, 4 * frames - 3, 8 * height, 8 * width), dtype=dtype)


def decode_slices(
    total_latents: int, window: int, overlap: int | None = None
) -> list[tuple[int, int]]:
    """(start, stop) of the latents decoded together, in time order.

    As FramePack does it, one slice a section, two windows long, so that each shares a window with
    its neighbour; the first also holds the start image's latent, the last is the second half of the
    one before. With overlap as few slices as are no longer than that and share so many latents.
    A video that was finished before its beginning was made has no latent of the start image.
    """
    start = 1 if total_latents > 1 and (total_latents - 1) % window == 0 else 0
    sections, rest = divmod(total_latents - start, window)
    if sections < 1 or rest:
        raise FramePackError(
            f"{total_latents} latent frames are not 1 + n x {window}: give the latent window size "
            "they were made with, or decode them in one call (bulk)"
        )
    if overlap is None:
        starts = [0, *range(window + start, total_latents, window)]
        stops = range(2 * window + start, total_latents, window)
        return list(zip_longest(starts, stops, fillvalue=total_latents))
    if overlap > window:
        raise FramePackError(
            f"decode_overlap: {overlap} latent frames are more than a window of {window}; give "
            f"{window} or less"
        )
    alone = total_latents - overlap
    count = max(1, -(-alone // (2 * window + 1 - overlap)))
    starts = [alone * i // count for i in range(count + 1)]
    return [(start, stop + overlap) for start, stop in pairwise(starts)]


def blend(first: Tensor, second: Tensor, overlap: int) -> Tensor:
    """Join clips [B, C, F, H, W], fading the first out and the second in over `overlap` frames."""
    if overlap <= 0:
        return torch.cat([first, second.to(first)], dim=2)
    if overlap > min(first.shape[2], second.shape[2]):
        raise ValueError(
            f"overlap {overlap} of clips of {first.shape[2]} and {second.shape[2]} frames"
        )
    weight = torch.linspace(1, 0, overlap, dtype=first.dtype, device=first.device)
    weight = weight.view(1, 1, -1, 1, 1)
    faded = weight * first[:, :, -overlap:] + (1 - weight) * second[:, :, :overlap]
    return torch.cat([first[:, :, :-overlap], faded, second[:, :, overlap:]], dim=2).to(first)


def decode_sections(
    decode: Decode, latents: Tensor, window: int, overlap: int | None = None
) -> Iterator[Tensor]:
    """Decode latents [1, 16, 1 + n * window, h, w] into clips that follow each other in time.

    Neighbouring slices are cross-faded over the frames of the latents that they share: a window, or
    `overlap` latents. Only the faded tail of one is held back for the next, however long the video
    is.
    """
    slices = [latents[:, :, slice(*s)] for s in decode_slices(latents.shape[2], window, overlap)]
    each = decode.each(slices) if isinstance(decode, SharedDecode) else map(decode, slices)
    overlap = 4 * (window if overlap is None else overlap) - 3
    tail: Tensor | None = None
    for _ in slices[:-1]:
        pixels = _append(tail, next(each), overlap)
        yield pixels[:, :, :-overlap]
        tail = pixels[:, :, -overlap:].clone()  # a view would keep the whole clip
    yield _append(tail, next(each), overlap)


def _append(tail: Tensor | None, pixels: Tensor, overlap: int) -> Tensor:
    return pixels if tail is None else blend(tail, pixels, overlap)


def decode_video(
    decode: Decode,
    latents: Tensor,
    window: int,
    *,
    bulk: bool = False,
    overlap: int | None = None,
    loop: bool = False,
) -> Iterator[Tensor]:
    """Decode all latents in one call, or by sections; a loop gives 4 frames a latent."""
    if loop:
        latents = around(latents, window)
    if bulk:
        clips = decode_bulk(decode, latents)
    else:
        clips = decode_sections(decode, latents, window, overlap)
    return behind(clips, window) if loop else clips


def decode_bulk(decode: Decode, latents: Tensor) -> Iterator[Tensor]:
    """Decode all latents [1, 16, T, h, w] in one call: one clip of 4T - 3 frames."""
    yield decode(latents)


def around(latents: Tensor, window: int) -> Tensor:
    """Latents of a loop [1, 16, 1 + n * window, h, w] behind the window that comes before them.

    They are decoded behind that window, which is then cut off (`behind`), because a VAE decodes
    the first frames otherwise, which showed as a jump where they follow the last. The start image
    has no frame of its own: the last section leads up to it, and section 0 goes on from it.
    """
    return torch.cat([latents[:, :, -window - 1 :], latents[:, :, 1:]], dim=2)


def behind(clips: Iterable[Tensor], window: int) -> Iterator[Tensor]:
    """The frames of a loop, of clips decoded from the latents `around` it."""
    return cut(clips, 4 * window + 1)


def check_drop(drop: int, frames: int, loops: bool, name: str) -> None:
    """Refuse to leave out `drop` frames, which their owner calls `name`, where that cannot be."""
    if drop and loops:
        raise FramePackError(f"{name}: a loop would jump where frames are missing; use 0")
    if drop >= frames:
        raise FramePackError(f"{name}: the video has {frames} frames, {drop} leave none; use less")


def cut(clips: Iterable[Tensor], first: int, last: int | None = None) -> Iterator[Tensor]:
    """Frames `first` up to `last` of clips that follow each other."""
    position = 0
    for clip in clips:
        stop = None if last is None else max(0, last - position)
        yield clip[:, :, max(0, first - position) : stop]
        position += clip.shape[2]


def decode_frames(decode: Decode, latents: Tensor) -> Iterator[Tensor]:
    """Decode each latent of [1, 16, T, h, w] alone: T clips of one frame."""
    for latent in latents.split(1, dim=2):
        yield decode(latent)
