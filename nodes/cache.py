"""What the encoders make of a training set, written beside its clips before training."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..framepack_core.training.cache import (
    OneFrameContexts,
    cache_latents,
    cache_text,
    check_cached,
)
from ..framepack_core.training.config import CacheOptions, TrainMode
from ..framepack_core.training.dataset_config import DataOptions
from .comfyui.encode import latent_encoders, text_encoder
from .comfyui.progress import item_progress, item_report
from .dataset import TRAINING, Dataset
from .option_inputs import option_inputs
from .types import DatasetSocket, advanced, schema


class CacheLatents(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelCacheLatents",
            display_name="FramePack Cache Latents",
            category=TRAINING,
            description="Encodes the clips of a dataset once, so that training needs neither VAE "
            "nor image encoder. What is cached and still fits is left; a stopped run resumes. "
            "musubi-tuner reads the files too.",
            search_aliases=["latent caching", "vae cache", "musubi cache", "lora training"],
            inputs=[
                DatasetSocket.Input("dataset", tooltip="From FramePack Dataset."),
                io.Vae.Input("vae", tooltip="A HunyuanVideo VAE, as for FramePack Start Frame."),
                io.ClipVision.Input("clip_vision", tooltip="SigLIP, as for FramePack Start Frame."),
                *option_inputs(DataOptions, ["mode"], optional=False),
                advanced(
                    io.Int.Input(
                        "tile",
                        default=0,
                        min=0,
                        max=4096,
                        step=64,
                        optional=True,
                        tooltip="Side of a tile in pixels, for large clips on small GPUs; 0 "
                        "encodes frames whole.",
                    )
                ),
                *option_inputs(CacheOptions, ["end_frames", "no_2x", "no_4x"]),
            ],
            outputs=[
                DatasetSocket.Output(display_name="dataset"),
                io.String.Output(display_name="report"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        dataset: Dataset,
        vae: Any,
        clip_vision: Any,
        mode: TrainMode,
        tile: int = 0,
        end_frames: bool = False,
        no_2x: bool = False,
        no_4x: bool = False,
    ) -> io.NodeOutput:
        check_cached(dataset.found, mode)
        encoders = latent_encoders(vae, clip_vision, tile or None)
        done = cache_latents(
            dataset.found,
            mode,
            encoders,
            one_frame=OneFrameContexts(no_2x, no_4x),
            end_frames=end_frames,
            on_item=item_progress(cls.hidden.unique_id, "clips"),
        )
        report = item_report(cls.hidden.unique_id, "clips", done)
        return io.NodeOutput(dataset.cached_for(mode, encoders.identity), report)


class CacheText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelCacheText",
            display_name="FramePack Cache Captions",
            category=TRAINING,
            description="Encodes the captions of a dataset once, so that training needs no text "
            "encoders. Captions that changed are encoded again.",
            search_aliases=["text encoder cache", "caption caching", "lora training"],
            inputs=[
                DatasetSocket.Input("dataset", tooltip="From FramePack Cache Latents."),
                io.Clip.Input("clip", tooltip="The text encoders, as for FramePack Text Encode."),
            ],
            outputs=[
                DatasetSocket.Output(display_name="dataset"),
                io.String.Output(display_name="report"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, dataset: Dataset, clip: Any) -> io.NodeOutput:
        on_item = item_progress(cls.hidden.unique_id, "captions")
        encoder = text_encoder(clip)
        done = cache_text(dataset.found, encoder, on_item=on_item)
        report = item_report(cls.hidden.unique_id, "captions", done)
        return io.NodeOutput(dataset.captioned(encoder.identity), report)
