"""Latents to pictures, and to and from files."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy.cli_args import args as comfy_args
from comfy_api.latest import io, ui
from torch import Tensor

from ..framepack_core.sampling.decode import decode_bulk, decode_sections, decode_slices
from ..framepack_core.sampling.latents import load_latents, save_latents
from ..framepack_core.sampling.sections import WINDOW
from .host import WINDOW_KEY, to_latent, to_latents
from .types import CATEGORY, advanced, schema

SECTIONS, WHOLE = "sections", "whole"
AUTO_TILES = (256, 192, 128)  # pixels, the largest that fits where a whole frame does not
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
                        f"memory allows and in tiles of {AUTO_TILES[0]} or less elsewhere. Smaller "
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
            decode_video(sample, vae, mode, tile_size, window)
            for sample in latent["samples"].split(1)
        ]
        return io.NodeOutput(torch.cat(videos) if len(videos) > 1 else videos[0])


def decode_video(latents: Tensor, vae: Any, mode: str, tile: int, window: int) -> Tensor:
    """IMAGE of all frames of unscaled latents [1, 16, T, h, w]."""
    vae = copy.copy(vae)
    vae.process_output = lambda pixels: pixels  # clipped after the cross-fades, not before
    if mode == WHOLE or latents.shape[2] == 1:
        return _collect(decode_bulk(_decoder(vae, tile, 1), latents))
    calls = len(decode_slices(latents.shape[2], window))
    return _collect(decode_sections(_decoder(vae, tile, calls), latents, window))


def _collect(clips: Iterable[Tensor]) -> Tensor:
    device = comfy.model_management.intermediate_device()
    frames = [
        ((clip[0].movedim(0, -1).to(device, torch.float32) + 1) / 2).clamp(0, 1) for clip in clips
    ]
    return torch.cat(frames) if len(frames) > 1 else frames[0]


def _decoder(vae: Any, tile: int, calls: int) -> Callable[[Tensor], Tensor]:
    """Latents [1, 16, T, h, w] to pixels [1, 3, F, H, W] in -1..1, in `calls` calls."""
    bar = comfy.utils.ProgressBar(calls)

    def decode(latents: Tensor) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        side = (tile or _tile_that_fits(vae, latents)) // vae.spacial_compression_decode()
        if side:
            pixels = vae.decode_tiled(latents, tile_x=side, tile_y=side, overlap=side // 4)
        else:
            pixels = vae.decode(latents)
        bar.update(1)
        return pixels.movedim(-1, 1)

    return decode


def _tile_that_fits(vae: Any, latents: Tensor) -> int:
    """Side in pixels of the largest tile that an empty device could hold; 0 for no tiles."""
    memory = comfy.model_management.get_total_memory(vae.device)
    if vae.memory_used_decode(latents.shape, vae.vae_dtype) < memory:
        return 0
    for tile in AUTO_TILES:
        side = tile // vae.spacial_compression_decode()
        if vae.memory_used_decode((*latents.shape[:3], side, side), vae.vae_dtype) < memory:
            return tile
    return AUTO_TILES[-1]


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
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
        saved = []
        for i, sample in enumerate(latents.split(1)):
            file = f"{name}_{counter + i:05}_.safetensors"
            save_latents(Path(folder) / file, sample, cls._metadata(latent))
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
        latents, metadata = load_latents(folder_paths.get_annotated_filepath(file))
        window = int(metadata.get("latent_window_size", WINDOW))
        return io.NodeOutput(to_latent(latents, **{WINDOW_KEY: window}))

    @classmethod
    def fingerprint_inputs(cls, file: str, **inputs: Any) -> float:
        return os.path.getmtime(folder_paths.get_annotated_filepath(file))


def _latent_files() -> list[str]:
    output = Path(folder_paths.get_output_directory())
    own = [path.relative_to(output) for path in (output / SAVED).rglob("*.safetensors")]
    given = Path(folder_paths.get_input_directory()).glob("*.safetensors")
    return sorted(path.name for path in given) + sorted(f"{p.as_posix()}{OUTPUT_TAG}" for p in own)
