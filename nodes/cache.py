"""What the encoders make of a training set, written beside its clips before training."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any, NoReturn, get_args

import comfy.model_management
import torch
from comfy_api.latest import io
from torch import Tensor

from ..framepack_core.models.prompt import TextCondition
from ..framepack_core.runtime.errors import FramePackError
from ..framepack_core.runtime.images import Pixels
from ..framepack_core.training.cache import (
    CacheProgress,
    LatentEncoders,
    OneFrameOptions,
    TextEncoder,
    cache_latents,
    cache_text,
    check_cached,
)
from ..framepack_core.training.dataset import TrainMode
from ..framepack_core.training.encoders import latent_identity, state_identity, text_identity
from .comfyui.host import NodeBar, NodeText, show_text, to_image, to_latents
from .condition import encode_prompt
from .dataset import TRAINING, Dataset
from .types import DatasetSocket, advanced, schema


class CacheLatents(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelCacheLatents",
            display_name="FramePack Cache Latents",
            category=TRAINING,
            description="Encodes the clips of a dataset once, so that training needs neither VAE "
            "nor image encoder. What is cached and still fits is left; a stopped run goes on. "
            "musubi-tuner reads the files too.",
            search_aliases=["latent caching", "vae cache", "musubi cache", "lora training"],
            inputs=[
                DatasetSocket.Input("dataset", tooltip="From FramePack Dataset."),
                io.Vae.Input("vae", tooltip="A HunyuanVideo VAE, as for FramePack Start Frame."),
                io.ClipVision.Input("clip_vision", tooltip="SigLIP, as for FramePack Start Frame."),
                io.Combo.Input(
                    "mode",
                    options=list(get_args(TrainMode)),
                    default="framepack",
                    tooltip="What the LoRA is for: the original model, F1, or one-frame edits of "
                    "pictures. Each mode needs a cache folder of its own.",
                ),
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
                advanced(
                    io.Boolean.Input(
                        "end_frames",
                        default=False,
                        optional=True,
                        tooltip="Also keep each clip's last frame, to train with end_frame.",
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "no_2x",
                        default=False,
                        optional=True,
                        tooltip="For one-frame: leave out the blank 2x context.",
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "no_4x",
                        default=False,
                        optional=True,
                        tooltip="For one-frame: leave out the blank 4x context.",
                    )
                ),
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
        done = cache_latents(
            dataset.found,
            mode,
            latent_encoders(vae, clip_vision, tile or None),
            one_frame=OneFrameOptions(no_2x, no_4x),
            end_frames=end_frames,
            on_item=_progress(cls.hidden.unique_id, "clips"),
        )
        report = _report(cls.hidden.unique_id, "clips", done)
        return io.NodeOutput(dataset.cached_for(mode), report)


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
        on_item = _progress(cls.hidden.unique_id, "captions")
        done = cache_text(dataset.found, text_encoder(clip), on_item=on_item)
        return io.NodeOutput(dataset, _report(cls.hidden.unique_id, "captions", done))


# ComfyUI's objects as the core's encoders


def latent_encoders(vae: Any, clip_vision: Any, tile: int | None = None) -> LatentEncoders:
    """VAE and CLIP_VISION as the encoders of a latent cache."""

    def encode(pixels: Tensor) -> Tensor:
        clips = [_encode_clip(vae, clip, tile) for clip in pixels]
        return torch.cat(clips)

    def see(image: Pixels) -> Tensor:
        return clip_vision.encode_image(to_image(image[None]), crop=False).last_hidden_state

    models = {"vae": vae.first_stage_model, "image encoder": clip_vision.model}
    return LatentEncoders(encode, see, latent_identity(state_identity(models), tile))


def _encode_clip(vae: Any, pixels: Tensor, tile: int | None) -> Tensor:
    """Model-ready latents [1, 16, T, h, w] of pixels [3, F, H, W] in -1..1."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    image = pixels.permute(1, 2, 3, 0).add(1).div(2)
    if tile is None:
        return to_latents({"samples": _encode_whole(vae, image)}, "vae")
    whole = len(image)  # in time: FramePack's own tiles are in space alone
    samples = vae.encode_tiled(image, tile_x=tile, tile_y=tile, overlap=tile // 4, tile_t=whole)
    return to_latents({"samples": samples}, "vae")


def _encode_whole(vae: Any, image: Tensor) -> Tensor:
    """Without ComfyUI's own tiles where memory runs out: their seams would stay in the cache."""

    def refuse(*_args: Any, **_options: Any) -> NoReturn:
        raise FramePackError(
            "vae: not enough memory for whole frames; set tile to 256, or free memory"
        )

    vae = copy.copy(vae)
    vae.encode_tiled_3d = refuse
    return vae.encode(image)


def text_encoder(clip: Any) -> TextEncoder:
    """CLIP as the encoder of a caption cache."""
    if clip.patcher.patches:
        raise FramePackError("clip: it carries LoRAs; captions are cached without, so unplug them")

    def encode(caption: str) -> TextCondition:
        comfy.model_management.throw_exception_if_processing_interrupted()
        [[words, extra]] = encode_prompt(clip, caption)
        mask = extra.get("attention_mask")
        count = words.shape[1] if mask is None else int(mask.sum())
        return TextCondition(words[:, :count], extra["pooled_output"])

    return TextEncoder(encode, text_identity(state_identity({"clip": clip.cond_stage_model})))


# What is shown


def _progress(node_id: str, what: str) -> Callable[[CacheProgress], None]:
    label, bar, start = NodeText(node_id), NodeBar(), time.monotonic()

    def on_item(progress: CacheProgress) -> None:
        left = (time.monotonic() - start) / progress.encoded * (progress.total - progress.done)
        text = f"{progress.done} of {progress.total} {what}, {duration(left)} left"
        label.show(f"{text}\n{progress.name}")
        bar.move_to(progress.done, progress.total)

    return on_item


def _report(node_id: str, what: str, done: CacheProgress) -> str:
    text = f"{done.total} {what}: {done.encoded} encoded now, {done.total - done.encoded} before"
    show_text(node_id, text)
    return text


def duration(seconds: float) -> str:
    """As people read it: 45 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
