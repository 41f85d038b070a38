"""Long videos to files, decoded and written section by section."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from comfy_api.latest import InputImpl, io, ui
from torch import Tensor

from ..framepack_core.headless.job import OutputOptions
from ..framepack_core.headless.options import DecodingOptions
from ..framepack_core.runtime.errors import FramePackError
from ..framepack_core.runtime.files import free_path
from ..framepack_core.runtime.images import to_uint8
from ..framepack_core.runtime.video import VideoWriter, probe_encoder
from ..framepack_core.sampling.decode import check_drop, cut
from ..framepack_core.sampling.latents import save_latents
from ..framepack_core.sampling.options import DropOption
from ..framepack_core.sampling.sections import LATENT_STRIDE, WINDOW
from .comfyui.decode import SECTIONS, decode_video
from .comfyui.paths import metadata_of, output_folder, output_names
from .comfyui.progress import Interrupted
from .comfyui.sockets import LOOP_KEY, WINDOW_KEY, to_audio, to_image, to_latents
from .decode import SAVED, MadeWith, made_with
from .option_inputs import option_inputs
from .types import CATEGORY, schema

RESCUED = "rescued.safetensors"


class SaveVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelSaveVideo",
            display_name="Save FramePack Video",
            category=CATEGORY,
            description="Decodes latents and writes them to a video file section by section, so "
            "that memory does not grow with the length. If saving fails, the latents are kept.",
            search_aliases=["framepack save video", "SaveVideo", "stream", "long video", "mp4"],
            inputs=[
                io.Latent.Input("latent", tooltip="From FramePack Sampler or a latent file."),
                io.Vae.Input("vae", tooltip="HunyuanVideo VAE, from any loader."),
                io.String.Input(
                    "filename_prefix",
                    default="video/framepack",
                    tooltip="Folder and start of the name, in ComfyUI's output folder.",
                ),
                *option_inputs(OutputOptions, ("fps", "crf", "codec"), optional=False),
                *option_inputs(DecodingOptions, ("tile_size",), optional=False),
                *option_inputs(MadeWith, ("window",), optional=False),
                *option_inputs(DecodingOptions, ("overlap",), optional=True),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="Sound for the video, of Load Audio or Get Video Components; cut to "
                    "the video's length. Frames that are left out take their sound along.",
                ),
                *option_inputs(DropOption, ("drop_first",)),
            ],
            outputs=[
                io.Video.Output(display_name="video"),
                io.Image.Output(
                    display_name="last_frame",
                    tooltip="The last frame of each video, to go on from.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        latent: dict[str, Any],
        vae: Any,
        filename_prefix: str,
        fps: float,
        crf: int,
        codec: str,
        tile_size: int,
        window: int,
        overlap: int = 0,
        audio: dict[str, Any] | None = None,
        drop_first: int = 0,
    ) -> io.NodeOutput:
        latents, loop = to_latents(latent, "latent"), latent.get(LOOP_KEY, False)
        check_drop(drop_first, 4 * latents.shape[2] - 3, loop, "drop_first")
        probe_encoder(codec)
        window = window or latent.get(WINDOW_KEY, WINDOW)
        height, width = (side * LATENT_STRIDE for side in latents.shape[3:])
        folder, name, counter, subfolder = output_names(filename_prefix, width, height)
        options = {"width": width, "height": height, "fps": fps, "crf": crf, "codec": codec}
        way = SECTIONS, tile_size, window, overlap, loop
        results, last = [], []
        for number, sample in enumerate(latent["samples"].split(1), counter):
            path = folder / f"{name}_{number:05}_.mp4"
            sound = None if audio is None else to_audio(audio, number - counter)
            sound = sound and sound.after(drop_first / fps)
            video = VideoWriter(path, **options, metadata=cls._metadata(), audio=sound)
            with _latents_rescued(latents[number - counter :], made_with(latent, window)), video:
                for clip in cut(decode_video(sample, vae, *way), drop_first):
                    for frame in to_uint8(clip):
                        video.write(frame)
            results.append(ui.SavedResult(path.name, subfolder, io.FolderType.output))
            last.append(to_image(frame[None]))
        made = InputImpl.VideoFromFile(str(path)), torch.cat(last)
        return io.NodeOutput(*made, ui=ui.PreviewVideo(results))

    @classmethod
    def _metadata(cls) -> dict[str, str]:
        """The workflow as ComfyUI's Save Video writes it, so that a dropped file brings it back."""
        return metadata_of({**(cls.hidden.extra_pnginfo or {}), "prompt": cls.hidden.prompt})


@contextmanager
def _latents_rescued(latents: Tensor, about: dict[str, str]) -> Iterator[None]:
    """Keep the latents [B, 16, T, h, w] of videos that cannot be decoded or written."""
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        kept = []
        try:
            for sample in latents.split(1):
                path = free_path(output_folder() / SAVED / RESCUED)
                save_latents(path, sample, about)
                kept.append(str(path))
        except FramePackError:
            advice = "queue again: what was sampled is still there, unless ComfyUI is stopped"
            advice = f"kept are {', '.join(kept)}; for the others {advice}" if kept else advice
        else:
            advice = (
                f"the latents are kept as {', '.join(kept)}: open them with Load FramePack Latent"
            )
        raise FramePackError(f"{error}; {advice}") from error
