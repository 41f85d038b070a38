"""Loaders: each model from the files that people have, or all of them from one snapshot."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast, get_args

import torch
from comfy_api.latest import io

from ..framepack_core.models.compiling import COMPILING
from ..framepack_core.runtime.device import parse_dtype
from ..framepack_core.runtime.display import warn
from ..framepack_core.sampling.plan import Mode
from ..framepack_core.toyworld import SNAPSHOT
from ..framepack_core.toyworld.preview import LATENT_RGB
from ..framepack_core.toyworld.render import SIZE
from ..framepack_core.weights.formats import MADE
from ..framepack_core.weights.layouts import find_snapshot, is_standard_name
from ..framepack_core.weights.names import mode_by_name
from ..framepack_core.weights.precisions import STATED, Precision
from .comfyui.encoders import FramePackCLIPVision, FramePackVAE, load_clip
from .comfyui.model import ATTENTIONS, AUTO_ATTENTION, TrainedFor, load_model
from .comfyui.paths import (
    check_choice,
    model_choices,
    model_path,
    snapshot_choices,
    snapshot_path,
)
from .comfyui.progress import show_text
from .types import CATEGORY, advanced, schema

LOADERS = f"{CATEGORY}/loaders"
TOY_WORLD = "Toy World (built in)"
AUTO = "auto"
FP8 = ("fp8", "fp8_e5m2", "fp8_scaled")


def precision_input() -> io.WidgetInput:
    return advanced(
        io.Combo.Input(
            "precision",
            options=[AUTO, "bf16", "fp16", "fp32"],
            default=AUTO,
            tooltip="Number type of the weights. auto follows ComfyUI's choice for your "
            "hardware and its start options.",
        )
    )


def _dtype(precision: str) -> torch.dtype | None:
    return None if precision == AUTO else parse_dtype(precision)


class LoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelLoadModel",
            display_name="Load FramePack Model",
            category=LOADERS,
            description="Loads a FramePack or FramePack-F1 video model: a single file, any shard "
            "of a sharded one, or a downloaded folder. The result is a normal MODEL: LoRA loaders, "
            "samplers and Save Model work on it.",
            search_aliases=[
                "framepack",
                "framepack loader",
                "framepack i2v",
                "F1",
                "image to video",
                "i2v",
                "fp8",
                "gguf",
                "kijai",
                "FramePackWrapper",
                "UNETLoader",
            ],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=model_choices("dit"),
                    tooltip="A file in models/diffusion_models (of a sharded model its first "
                    "shard), or a folder in models/diffusers.",
                ),
                io.Combo.Input(
                    "precision",
                    options=[AUTO, "bf16", "fp16", "fp32", *FP8, *STATED],
                    default=AUTO,
                    tooltip="Number type of the weights. auto keeps quantised files as they are, "
                    "otherwise follows ComfyUI's choice for your hardware. fp8_scaled needs two "
                    "thirds of the memory of bf16 and is nearer to it than plain fp8. The others "
                    "quantise while loading; FramePack Save Merged Model makes files of them.",
                ),
                advanced(
                    io.Combo.Input(
                        "attention",
                        options=list(ATTENTIONS),
                        default=AUTO_ATTENTION,
                        optional=True,
                        tooltip="Attention kernel. auto measures the exact ones that are there, "
                        "ComfyUI's own among them, at the first step and says in the log which is "
                        "the fastest. comfyui is what ComfyUI was started with; sage and "
                        "comfy_kitchen_int8 are faster on some cards and less exact.",
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "compile",
                        default=False,
                        optional=True,
                        tooltip="Compile the blocks with torch.compile, once for all sizes and "
                        "lengths: the first step takes up to a minute longer, the others a little "
                        "less. ComfyUI then moves the weights in its older way, and with FramePack "
                        "Apply LoRA the blocks run uncompiled.",
                    )
                ),
            ],
            outputs=[io.Model.Output(display_name="model")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model: str, precision: str, attention: str = AUTO_ATTENTION, compile: bool = False
    ) -> io.NodeOutput:
        path, trained_for = model_path("dit", model), _mode_by_name(model)
        dtype, kept = _types(precision)
        made = load_model(path, dtype, trained_for, kept, attention, compile)
        if compile:
            show_text(cls.hidden.unique_id, COMPILING)
        return io.NodeOutput(made)

    @classmethod
    def validate_inputs(cls, model: str | None = None) -> bool | str:
        return check_choice("dit", model)


def _types(precision: str) -> tuple[torch.dtype | None, Precision]:
    """The type of weights, None for ComfyUI's choice, and what becomes of those in fp8."""
    if precision == AUTO or precision in MADE:
        return None, cast(Precision, precision)
    return parse_dtype(precision), "full"


def _mode_by_name(name: str) -> TrainedFor | None:
    """What the names of the released files say, of which the weights themselves say nothing."""
    mode = mode_by_name(name)
    if mode is None and is_standard_name(name):
        warn(
            f"{name}: FramePack and F1 are published under this same name; put the files into a "
            "folder FramePackI2V_HY or FramePack_F1_I2V_HY_20250503, so that the wrong mode is seen"
        )
    return None if mode is None else TrainedFor(mode, certain=False)


class LoadTextEncoders(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelLoadTextEncoders",
            display_name="Load FramePack Text Encoders",
            category=LOADERS,
            description="Loads the two text encoders of FramePack. ComfyUI's own DualCLIPLoader "
            "with type hunyuan_video can be used instead.",
            search_aliases=["framepack clip", "llama", "llava", "text encoder"],
            inputs=[
                io.Combo.Input(
                    "llama",
                    options=model_choices("llama"),
                    tooltip="LLaMA text encoder (llava_llama3_fp16.safetensors, or a text_encoder "
                    "folder), in models/text_encoders or models/diffusers.",
                ),
                io.Combo.Input(
                    "clip_l",
                    options=model_choices("clip"),
                    tooltip="CLIP-L text encoder (clip_l.safetensors, or a text_encoder_2 folder), "
                    "in models/text_encoders or models/diffusers.",
                ),
                precision_input(),
            ],
            outputs=[io.Clip.Output(display_name="clip")],
        )

    @classmethod
    def execute(cls, llama: str, clip_l: str, precision: str) -> io.NodeOutput:
        paths = model_path("llama", llama), model_path("clip", clip_l)
        return io.NodeOutput(load_clip(*paths, _dtype(precision)))

    @classmethod
    def validate_inputs(cls, llama: str | None = None, clip_l: str | None = None) -> bool | str:
        checks = check_choice("llama", llama), check_choice("clip", clip_l)
        return "; ".join(c for c in checks if isinstance(c, str)) or True


class LoadVAE(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelLoadVAE",
            display_name="Load FramePack VAE",
            category=LOADERS,
            description="Loads the HunyuanVideo VAE that FramePack uses. ComfyUI's own Load VAE "
            "can be used instead; this one computes joins in time exactly as FramePack does.",
            search_aliases=["framepack vae", "hunyuan video vae"],
            inputs=[
                io.Combo.Input(
                    "vae",
                    options=model_choices("vae"),
                    tooltip="HunyuanVideo VAE in models/vae or models/diffusers, in any of its "
                    "three naming schemes (original .pt, diffusers, ComfyUI).",
                ),
                precision_input(),
            ],
            outputs=[io.Vae.Output(display_name="vae")],
        )

    @classmethod
    def execute(cls, vae: str, precision: str) -> io.NodeOutput:
        return io.NodeOutput(FramePackVAE(model_path("vae", vae), _dtype(precision)))

    @classmethod
    def validate_inputs(cls, vae: str | None = None) -> bool | str:
        return check_choice("vae", vae)


class LoadImageEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelLoadImageEncoder",
            display_name="Load FramePack Image Encoder",
            category=LOADERS,
            description="Loads the SigLIP image encoder of FramePack. ComfyUI's own Load CLIP "
            "Vision with sigclip_vision_patch14_384 can be used instead.",
            search_aliases=["framepack clip vision", "siglip", "sigclip"],
            inputs=[
                io.Combo.Input(
                    "image_encoder",
                    options=model_choices("image_encoder"),
                    tooltip="SigLIP in models/clip_vision (sigclip_vision_patch14_384.safetensors) "
                    "or an image_encoder folder in models/diffusers.",
                ),
                precision_input(),
            ],
            outputs=[io.ClipVision.Output(display_name="clip_vision")],
        )

    @classmethod
    def execute(cls, image_encoder: str, precision: str) -> io.NodeOutput:
        path = model_path("image_encoder", image_encoder)
        return io.NodeOutput(FramePackCLIPVision(path, _dtype(precision)))

    @classmethod
    def validate_inputs(cls, image_encoder: str | None = None) -> bool | str:
        return check_choice("image_encoder", image_encoder)


class LoadSnapshot(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelLoadSnapshot",
            display_name="Load FramePack Snapshot",
            category=LOADERS,
            description="Loads everything FramePack needs from one folder with a sub-folder for "
            "each model, or the tiny model that comes with this pack.",
            search_aliases=["framepack all in one", "diffusers folder", "toy world"],
            inputs=[
                io.Combo.Input(
                    "snapshot",
                    options=[TOY_WORLD, *snapshot_choices()],
                    default=TOY_WORLD,
                    tooltip="A folder in models/diffusers that holds transformer, vae, "
                    "text_encoder, text_encoder_2, tokenizer, tokenizer_2 and image_encoder. Toy "
                    "World is a tiny model of moving shapes to try things out with.",
                ),
                io.Combo.Input(
                    "model",
                    options=list(get_args(Mode)),
                    default="framepack",
                    tooltip="Which video model of the snapshot: framepack (made from the end "
                    "backwards) or f1 (made forwards). Choose the same mode in FramePack Plan.",
                ),
                precision_input(),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.Clip.Output(display_name="clip"),
                io.Vae.Output(display_name="vae"),
                io.ClipVision.Output(display_name="clip_vision"),
            ],
        )

    @classmethod
    def execute(cls, snapshot: str, model: Mode, precision: str) -> io.NodeOutput:
        if snapshot == TOY_WORLD:
            root, known = SNAPSHOT, {"size": (SIZE, SIZE), "latent_rgb": LATENT_RGB}
        else:
            root, known = snapshot_path(snapshot), {}
        trained_for = TrainedFor(model, certain=True, **known)
        return io.NodeOutput(*_load_all(root, trained_for, _dtype(precision)))


def _load_all(root: Path, trained_for: TrainedFor, dtype: torch.dtype | None) -> tuple[Any, ...]:
    folders = find_snapshot(root, f1=trained_for.mode == "f1")
    return (
        load_model(folders["dit"], dtype, trained_for),
        load_clip(folders["llama"], folders["clip"], dtype),
        FramePackVAE(folders["vae"], dtype),
        FramePackCLIPVision(folders["image_encoder"], dtype),
    )
