"""Latents to pictures by a VAE of ComfyUI, with less memory at a time where it runs out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import comfy.model_management
import torch
from torch import Tensor

from ...framepack_core.models.vae import AutoencoderKL
from ...framepack_core.runtime.display import warn
from ...framepack_core.runtime.errors import FramePackError
from ...framepack_core.sampling.decode import (
    CHUNKS,
    TILES,
    DecodeMemory,
    RetryingDecode,
    around,
    behind,
    decode_bulk,
    decode_sections,
    decode_slices,
)
from .encoders import FramePackVAE
from .progress import NodeBar

mm = comfy.model_management
SECTIONS, WHOLE = "sections", "whole"


def decode_video(
    latents: Tensor,
    vae: Any,
    mode: str,
    tile: int,
    window: int,
    overlap: int = 0,
    loop: bool = False,
    say: Callable[[str], None] = warn,
) -> Iterator[Tensor]:
    """Clips [1, 3, F, H, W] in -1..1, in order of time, of unscaled latents [1, 16, T, h, w].

    overlap: latents that parts share, 0 is FramePack's way. loop: the video leads into its start.
    """
    if not loop:
        return _clips(latents, vae, mode, tile, window, overlap, say)
    clips = _clips(around(latents, window), vae, mode, tile, window, overlap, say)
    return behind(clips, window)


def _clips(
    latents: Tensor,
    vae: Any,
    mode: str,
    tile: int,
    window: int,
    overlap: int,
    say: Callable[[str], None],
) -> Iterator[Tensor]:
    if mode == WHOLE and overlap:
        raise FramePackError("overlap: mode whole has no parts; set overlap to 0")
    if mode == WHOLE or latents.shape[2] == 1:
        return decode_bulk(clip_decoder(vae, latents, tile, 1, say), latents)
    slices = decode_slices(latents.shape[2], window, overlap or None)
    longest = latents[:, :, : max(stop - start for start, stop in slices)]
    decode = clip_decoder(vae, longest, tile, len(slices), say)
    return decode_sections(decode, latents, window, overlap or None)


def collect(clips: Iterable[Tensor], frames: int) -> Tensor:
    """IMAGE of all clips; those of one come to main memory while the next is decoded.

    frames: how many there will probably be.
    """
    device, done = mm.intermediate_device(), 0
    mover, images = ClipMover(), torch.empty(0)
    waiting: tuple[Tensor, Tensor, Any] | None = None
    for clip in clips:
        pictures = ((clip[0].movedim(0, -1).float() + 1) / 2).clamp_(0, 1).contiguous()
        if waiting is not None:
            mover.copy(*waiting)
        count = len(pictures)
        if done + count > len(images):
            # Filled while the clip is decoded: the system finds memory only where it is used.
            shape = max(frames - done, count), *pictures.shape[1:]
            more = torch.zeros(shape, device=device)
            images = torch.cat([images[:done], more]) if done else more
        waiting = images[done : done + count], pictures, mover.now(pictures)
        done += count
        del clip, pictures  # or the next clip would be decoded beside them
    assert waiting is not None  # there is always a clip
    mover.copy(*waiting)
    return images[:done]


class ClipMover:
    """Copies finished tensors to main memory while a GPU computes what was given to it later."""

    def __init__(self) -> None:
        self._side: torch.cuda.Stream | None = None

    def now(self, x: Tensor) -> Any:
        """What to wait for until x is computed."""
        if x.device.type != "cuda":
            return None
        return torch.cuda.current_stream(x.device).record_event()

    def copy(self, to: Tensor, x: Tensor, done: Any) -> None:
        if done is None or to.device.type == "cuda":
            to.copy_(x)
            return
        self._side = self._side or torch.cuda.Stream(x.device)
        self._side.wait_event(done)
        with torch.cuda.stream(self._side):
            to.copy_(x)


def clip_decoder(
    vae: Any,
    longest: Tensor,
    tile: int = 0,
    calls: int = 1,
    say: Callable[[str], None] = warn,
) -> Callable[[Tensor], Tensor]:
    """Unscaled latents [1, 16, T, h, w] to pixels [1, 3, F, H, W] about -1..1, in `calls` calls.

    longest: as many latents as one call decodes at most; tile: side in pixels, 0 chooses.
    """
    vae, to_pixels = _unclipped(vae)
    vae.output_device = vae.device  # cross-faded there too
    bar, whole, own = NodeBar(calls), _without_fallback(vae), _own_vae(vae)
    done = 0

    def decode(latents: Tensor, memory: DecodeMemory) -> Tensor:
        nonlocal done
        mm.throw_exception_if_processing_interrupted()
        side = (memory.tile or 0) // vae.spacial_compression_decode()
        with _chunks(own, memory.chunk):
            if side:
                pixels = vae.decode_tiled(latents, tile_x=side, tile_y=side, overlap=side // 4)
            else:
                pixels = whole.decode(latents)
        done += 1
        bar.move_to(done, calls)
        return to_pixels(pixels).movedim(-1, 1)

    # Of VAEs that are not ours no chunks can be made smaller.
    chunk = CHUNKS[-1] if own is None else own.chunk_size
    first = DecodeMemory(chunk, tile or _tile_that_fits(vae, longest) or None)
    return RetryingDecode(decode, first, say, mm.soft_empty_cache, _is_out_of_memory)


def _unclipped(vae: Any) -> tuple[Any, Callable[[Tensor], Tensor]]:
    """A copy that gives its network's own pixels, and what turns those into -1..1.

    Pixels are clipped after the cross-fades of sections, not before. What the network's range is
    the VAE tells by how it makes 0..1 of it; most have -1..1, TAEHV has 0..1.
    """
    probe = torch.tensor([0.25, 0.5, 0.75])
    low, middle, high = vae.process_output(probe.clone()).tolist()
    if abs(low + high - 2 * middle) > 1e-5 or low == high:  # not linear: only it knows
        return copy.copy(vae), lambda pixels: 2 * pixels - 1
    slope = 2 * (high - low)
    offset = middle - slope / 2
    vae = copy.copy(vae)
    vae.process_output = lambda pixels: pixels
    return vae, lambda pixels: pixels.mul(2 * slope).add_(2 * offset - 1)


def _own_vae(vae: Any) -> AutoencoderKL | None:
    return getattr(vae.first_stage_model, "vae", None) if isinstance(vae, FramePackVAE) else None


@contextmanager
def _chunks(vae: AutoencoderKL | None, frames: int | None) -> Iterator[None]:
    """The VAE, which other nodes use too, with smaller chunks for a while."""
    if vae is None:
        yield
        return
    before, vae.chunk_size = vae.chunk_size, frames
    try:
        yield
    finally:
        vae.chunk_size = before


def _without_fallback(vae: Any) -> Any:
    """A copy that lets an out-of-memory error out, where ComfyUI would cut time into tiles too."""

    def refuse(*_args: Any, **_options: Any) -> NoReturn:
        raise mm.OOM_EXCEPTION("out of memory")

    vae = copy.copy(vae)
    vae.decode_tiled_3d = refuse
    return vae


def _is_out_of_memory(error: BaseException) -> bool:
    return getattr(mm, "is_oom", lambda e: isinstance(e, mm.OOM_EXCEPTION))(error)


def _tile_that_fits(vae: Any, latents: Tensor) -> int:
    """Side in pixels of the largest tile that an empty device could hold; 0 for no tiles."""
    memory = mm.get_total_memory(vae.device)
    if vae.memory_used_decode(latents.shape, vae.vae_dtype) < memory:
        return 0
    for tile in TILES:
        side = tile // vae.spacial_compression_decode()
        if vae.memory_used_decode((*latents.shape[:3], side, side), vae.vae_dtype) < memory:
            return tile
    return TILES[-1]
