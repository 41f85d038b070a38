"""Latents to pictures, and to and from files."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import comfy.model_management
import folder_paths
import torch
from comfy.cli_args import args as comfy_args
from comfy_api.latest import io, ui
from torch import Tensor

from ..framepack_core.models.vae import AutoencoderKL
from ..framepack_core.runtime.display import warn
from ..framepack_core.runtime.files import natural_key
from ..framepack_core.sampling.decode import (
    CHUNKS,
    TILES,
    Frugality,
    PatientDecode,
    decode_bulk,
    decode_sections,
    decode_slices,
)
from ..framepack_core.sampling.latents import load_latents, save_latents, window_of
from ..framepack_core.sampling.sections import LATENT_STRIDE, WINDOW
from .comfyui.encoders import FramePackVAE
from .comfyui.host import WINDOW_KEY, NodeBar, input_path, output_names, to_latent, to_latents
from .types import CATEGORY, advanced, schema

mm = comfy.model_management

SECTIONS, WHOLE = "sections", "whole"
SAVED = "latents"  # folder in ComfyUI's output
OUTPUT_TAG = " [output]"


class Decode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelDecode",
            display_name="FramePack Decode",
            category=CATEGORY,
            description="Decodes the latents of a video, two sections at a time with cross-faded "
            "joins, so that memory does not grow with the length.",
            search_aliases=["framepack vae decode", "VAEDecode", "latent to video"],
            inputs=[
                io.Latent.Input("latent", tooltip="From FramePack Sampler or a latent file."),
                io.Vae.Input("vae", tooltip="HunyuanVideo VAE, from any loader."),
                io.Combo.Input(
                    "mode",
                    options=[SECTIONS, WHOLE],
                    default=SECTIONS,
                    tooltip="sections: as FramePack does. whole: all in one call, for latents of "
                    "another origin; memory grows with the length.",
                ),
                advanced(
                    io.Int.Input(
                        "tile_size",
                        default=0,
                        min=0,
                        max=4096,
                        step=32,
                        tooltip="Side of square tiles in pixels. 0 decodes the frame whole where "
                        f"memory allows and in tiles of {TILES[0]} or less elsewhere. Smaller "
                        "tiles need less memory and can show as faint blocks.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "window",
                        default=0,
                        min=0,
                        max=33,
                        tooltip="Latent frames a section. 0 is what the latents were made with.",
                    )
                ),
            ],
            outputs=[io.Image.Output(display_name="images")],
        )

    @classmethod
    def execute(
        cls, latent: dict[str, Any], vae: Any, mode: str, tile_size: int, window: int
    ) -> io.NodeOutput:
        to_latents(latent, "latent")
        window = window or latent.get(WINDOW_KEY, WINDOW)
        videos = [
            _collect(decode_video(sample, vae, mode, tile_size, window))
            for sample in latent["samples"].split(1)
        ]
        return io.NodeOutput(torch.cat(videos) if len(videos) > 1 else videos[0])


def decode_video(
    latents: Tensor,
    vae: Any,
    mode: str,
    tile: int,
    window: int,
    say: Callable[[str], None] = warn,
) -> Iterator[Tensor]:
    """Clips [1, 3, F, H, W] in -1..1, in order of time, of unscaled latents [1, 16, T, h, w]."""
    if mode == WHOLE or latents.shape[2] == 1:
        return decode_bulk(clip_decoder(vae, latents, tile, 1, say), latents)
    slices = decode_slices(latents.shape[2], window)
    longest = latents[:, :, slice(*slices[0])]
    return decode_sections(clip_decoder(vae, longest, tile, len(slices), say), latents, window)


def _collect(clips: Iterable[Tensor]) -> Tensor:
    """IMAGE of all frames."""
    device = mm.intermediate_device()
    frames = [
        ((clip[0].movedim(0, -1).to(device, torch.float32) + 1) / 2).clamp(0, 1) for clip in clips
    ]
    return torch.cat(frames) if len(frames) > 1 else frames[0]


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
    vae = copy.copy(vae)
    vae.process_output = lambda pixels: pixels  # clipped after the cross-fades, not before
    bar, whole, own = NodeBar(calls), _without_fallback(vae), _own_vae(vae)
    done = 0

    def decode(latents: Tensor, frugality: Frugality) -> Tensor:
        nonlocal done
        mm.throw_exception_if_processing_interrupted()
        side = (frugality.tile or 0) // vae.spacial_compression_decode()
        with _chunks(own, frugality.chunk):
            if side:
                pixels = vae.decode_tiled(latents, tile_x=side, tile_y=side, overlap=side // 4)
            else:
                pixels = whole.decode(latents)
        done += 1
        bar.move_to(done, calls)
        return pixels.movedim(-1, 1)

    # Of VAEs that are not ours no chunks can be made smaller.
    chunk = CHUNKS[-1] if own is None else own.chunk_size
    first = Frugality(chunk, tile or _tile_that_fits(vae, longest) or None)
    return PatientDecode(decode, first, say, mm.soft_empty_cache, _is_out_of_memory)


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


class SaveLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelSaveLatent",
            display_name="Save FramePack Latent",
            category=CATEGORY,
            description="Saves finished latents, to decode them again or elsewhere; musubi-tuner "
            "and the framepack command read the same files.",
            search_aliases=["framepack save latent", "SaveLatent"],
            inputs=[
                io.Latent.Input("latent", tooltip="From FramePack Sampler."),
                io.String.Input(
                    "filename_prefix",
                    default=f"{SAVED}/framepack",
                    tooltip="Folder and start of the name, in ComfyUI's output folder. Load "
                    f"FramePack Latent lists what is in {SAVED}.",
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, latent: dict[str, Any], filename_prefix: str) -> io.NodeOutput:
        latents = to_latents(latent, "latent")
        height, width = (side * LATENT_STRIDE for side in latents.shape[3:])
        folder, name, counter, subfolder = output_names(filename_prefix, width, height)
        saved = []
        for i, sample in enumerate(latents.split(1)):
            file = f"{name}_{counter + i:05}_.safetensors"
            save_latents(folder / file, sample, cls._metadata(latent))
            saved.append(ui.SavedResult(file, subfolder, io.FolderType.output))
        return io.NodeOutput(ui={"latents": saved})

    @classmethod
    def _metadata(cls, latent: dict[str, Any]) -> dict[str, str]:
        """The window as musubi-tuner names it, and the workflow that a dropped file brings back."""
        metadata = {"latent_window_size": str(latent.get(WINDOW_KEY, WINDOW))}
        if not comfy_args.disable_metadata:
            extra = cls.hidden.extra_pnginfo or {}
            metadata |= {key: json.dumps(value) for key, value in extra.items()}
        return metadata


class LoadLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelLoadLatent",
            display_name="Load FramePack Latent",
            category=CATEGORY,
            description="Loads latents that Save FramePack Latent, the framepack command or "
            "musubi-tuner wrote.",
            search_aliases=["framepack load latent", "LoadLatent"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=_latent_files(),
                    tooltip=f"A .safetensors file in ComfyUI's input folder, or in {SAVED} of its "
                    "output folder.",
                )
            ],
            outputs=[io.Latent.Output(display_name="latent")],
        )

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        latents, metadata = load_latents(input_path(file))
        window = window_of(metadata)
        return io.NodeOutput(to_latent(latents, **{WINDOW_KEY: window}))

    @classmethod
    def fingerprint_inputs(cls, file: str, **inputs: Any) -> float:
        return os.path.getmtime(input_path(file))


def _latent_files() -> list[str]:
    output = Path(folder_paths.get_output_directory())
    own = [path.relative_to(output) for path in (output / SAVED).rglob("[!.]*.safetensors")]
    given = Path(folder_paths.get_input_directory()).glob("[!.]*.safetensors")
    return [
        *sorted((path.name for path in given), key=natural_key),
        *sorted((f"{path.as_posix()}{OUTPUT_TAG}" for path in own), key=natural_key),
    ]
