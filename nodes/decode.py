"""Latents to pictures, and to and from files."""

from __future__ import annotations

import os
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..framepack_core.headless.options import DecodingOptions
from ..framepack_core.runtime.files import natural_key
from ..framepack_core.runtime.options import Settings, option
from ..framepack_core.sampling.decode import check_drop, cut
from ..framepack_core.sampling.latents import LOOP_KEY as FILES_LOOP
from ..framepack_core.sampling.latents import load_latents, loops, save_latents, window_of
from ..framepack_core.sampling.options import DropOption
from ..framepack_core.sampling.sections import LATENT_STRIDE, MAX_WINDOW, WINDOW
from .comfyui.decode import (
    SECTIONS,
    WHOLE,
    collect,
    decode_video,
)
from .comfyui.paths import input_files, input_path, metadata_of, output_folder, output_names
from .comfyui.sockets import LOOP_KEY, WINDOW_KEY, to_latent, to_latents
from .option_inputs import option_inputs
from .types import CATEGORY, schema

SAVED = "latents"  # folder in ComfyUI's output
OUTPUT_TAG = " [output]"


class MadeWith(Settings):
    """What finished latents say themselves."""

    window: int | None = option(
        None,
        "Latent window size: latent frames of a section.",
        none=0,
        absent="what the latents were made with",
        ge=1,
        le=MAX_WINDOW,
    )


def made_with(latent: dict[str, Any], window: int) -> dict[str, str]:
    """What a latent file says of a LATENT, by the names of the command."""
    loop = {FILES_LOOP: str(True)} if latent.get(LOOP_KEY) else {}
    return {"latent_window_size": str(window), **loop}


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
                *option_inputs(DecodingOptions, ("tile_size",), optional=False),
                *option_inputs(MadeWith, ("window",), optional=False),
                *option_inputs(DecodingOptions, ("overlap",), optional=True),
                *option_inputs(DropOption, ("drop_first",)),
            ],
            outputs=[
                io.Image.Output(display_name="images"),
                io.Image.Output(
                    display_name="last_frame",
                    tooltip="The last frame of each video, to go on from.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        latent: dict[str, Any],
        vae: Any,
        mode: str,
        tile_size: int,
        window: int,
        overlap: int = 0,
        drop_first: int = 0,
    ) -> io.NodeOutput:
        frames = 4 * to_latents(latent, "latent").shape[2] - 3
        window, loop = window or latent.get(WINDOW_KEY, WINDOW), latent.get(LOOP_KEY, False)
        check_drop(drop_first, frames, loop, "drop_first")
        videos = [
            collect(
                cut(decode_video(sample, vae, mode, tile_size, window, overlap, loop), drop_first),
                frames - drop_first,
            )
            for sample in latent["samples"].split(1)
        ]
        last = torch.cat([video[-1:] for video in videos])
        return io.NodeOutput(torch.cat(videos) if len(videos) > 1 else videos[0], last)


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
        window = latent.get(WINDOW_KEY, WINDOW)
        return made_with(latent, window) | metadata_of(cls.hidden.extra_pnginfo or {})


class LoadLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelLoadLatent",
            display_name="Load FramePack Latent",
            category=CATEGORY,
            description="Loads latents that Save FramePack Latent, the framepack command or "
            "musubi-tuner wrote.",
            search_aliases=["framepack load latent", "LoadLatent", "continue", "resume"],
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
        about = {WINDOW_KEY: window_of(metadata), LOOP_KEY: loops(metadata)}
        return io.NodeOutput(to_latent(latents, **about))

    @classmethod
    def fingerprint_inputs(cls, file: str, **inputs: Any) -> float:
        return os.path.getmtime(input_path(file))


def _latent_files() -> list[str]:
    output = output_folder()
    saved = [path.relative_to(output) for path in (output / SAVED).rglob("[!.]*.safetensors")]
    return [
        *input_files(".safetensors"),
        *sorted((f"{path.as_posix()}{OUTPUT_TAG}" for path in saved), key=natural_key),
    ]
