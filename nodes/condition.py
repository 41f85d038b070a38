"""What steers a video: the prompt, the fitted start image, and the start image as latents."""

from __future__ import annotations

from typing import Any

import numpy as np
from comfy_api.latest import io, ui
from torch import Tensor

from ..framepack_core.runtime.display import warn
from ..framepack_core.runtime.errors import FramePackError
from ..framepack_core.runtime.images import (
    made_picture,
    nearest_bucket,
    resize_and_crop,
    size_for_area,
)
from ..framepack_core.sampling.options import SamplingOptions, StartPictureOption
from ..framepack_core.sampling.sections import MAX_SIZE, SIZE_MULTIPLE, check_size
from .comfyui.encode import encode_prompt
from .comfyui.progress import show_text
from .comfyui.section_run import only_size
from .comfyui.sockets import to_image, to_latents, to_uint8
from .option_inputs import option_inputs
from .types import CATEGORY, advanced, schema

BUCKET, AREA, EXACT = "FramePack's sizes (640)", "area", "exact"


class TextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelTextEncode",
            display_name="FramePack Text Encode",
            category=CATEGORY,
            description="Encodes a prompt as FramePack was trained: plain text without weight "
            "syntax, at most 256 tokens. CLIP Text Encode works too; it reads (word:1.2) and "
            "embedding: with ComfyUI's own text encoders.",
            search_aliases=["framepack prompt", "CLIPTextEncode"],
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="From Load FramePack Text Encoders or Snapshot, or ComfyUI's "
                    "DualCLIPLoader with type hunyuan_video.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What happens in the video. Short sentences about motion work best.",
                ),
                system_prompt_input(),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning")],
        )

    @classmethod
    def execute(cls, clip: Any, text: str, system_prompt: str = "") -> io.NodeOutput:
        return io.NodeOutput(encode_prompt(clip, text, system_prompt))


def system_prompt_input() -> io.WidgetInput:
    return advanced(
        io.String.Input(
            "system_prompt",
            multiline=True,
            optional=True,
            default="",
            tooltip="Replaces the instruction that FramePack puts before the prompt. Leave it "
            "empty for the one the model was trained with.",
        )
    )


class Canvas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        size = {"min": SIZE_MULTIPLE, "max": MAX_SIZE, "step": SIZE_MULTIPLE}
        return schema(
            node_id="FPReelCanvas",
            display_name="FramePack Canvas",
            category=CATEGORY,
            description="Fits the start image to a size that FramePack can make: scaled to cover "
            "it, the rest cropped evenly. An end image is fitted to the same size. Without an "
            "image it makes a start picture, for text to video.",
            search_aliases=[
                *("framepack resize", "framepack bucket", "image size", "resolution"),
                *("text to video", "t2v", "empty image", "noise image"),
            ],
            inputs=[
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="Start image of any size; or the frames of a video, all fitted alike. "
                    "Without one start_picture says what is made, in the shape of width and "
                    "height.",
                ),
                io.Combo.Input(
                    "fit",
                    options=[BUCKET, AREA, EXACT],
                    default=BUCKET,
                    tooltip=f"{BUCKET}: the size of FramePack's list nearest in shape, best "
                    "quality. area: the image's own shape at about resolution x resolution pixels. "
                    "exact: width x height.",
                ),
                io.Int.Input(
                    "resolution",
                    default=640,
                    **size,
                    tooltip="For area: the side of a square with as many pixels as the video. "
                    "640 is what FramePack was trained at; smaller is faster.",
                ),
                io.Int.Input("width", default=640, **size, tooltip="For exact: multiple of 16."),
                io.Int.Input("height", default=640, **size, tooltip="For exact: multiple of 16."),
                io.Image.Input(
                    "end_image", optional=True, tooltip="Last frame, fitted to the same size."
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="A model that can make one size only, such as Toy World, sets it "
                    f"where fit is {BUCKET}.",
                ),
                *option_inputs(StartPictureOption, ("start_picture",)),
                *option_inputs(SamplingOptions, ("seed",)),
            ],
            outputs=[
                io.Image.Output(display_name="image"),
                io.Image.Output(display_name="end_image"),
                io.Int.Output(display_name="width"),
                io.Int.Output(display_name="height"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        fit: str,
        resolution: int,
        width: int,
        height: int,
        image: Tensor | None = None,
        end_image: Tensor | None = None,
        model: Any = None,
        start_picture: str = "",
        seed: int = 0,
    ) -> io.NodeOutput:
        if image is None and not start_picture:
            raise FramePackError(
                "image: not connected; connect one, or say in start_picture what is to be made"
            )
        shape = (height, width) if image is None else (image.shape[1], image.shape[2])
        only = None if model is None else only_size(model)
        if fit == BUCKET and only is not None:
            width, height = only
        elif fit == BUCKET:
            height, width = nearest_bucket(*shape)
        elif fit == AREA:
            width, height = size_for_area(shape[1], shape[0], resolution**2)
        check_size(width, height)
        if image is None:
            made = made_picture(start_picture, (width, height), seed, "start_picture")
            image = to_image(made[None])
        elif start_picture:
            warn("start_picture has no effect while an image is connected")
        text = f"{width}x{height}" + (f", all {len(image)} pictures" if len(image) > 1 else "")
        show_text(cls.hidden.unique_id, text)
        images = (None if x is None else _fitted(x, width, height) for x in (image, end_image))
        return io.NodeOutput(*images, width, height, ui=ui.PreviewText(text))


def _fitted(image: Tensor, width: int, height: int) -> Tensor:
    return to_image(np.stack([resize_and_crop(x, width, height) for x in to_uint8(image)]))


class StartFrame(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelStartFrame",
            display_name="FramePack Start Frame",
            category=CATEGORY,
            description="Encodes the start image for the sampler: as the first latent frame, and "
            "as what the model recognises in it.",
            search_aliases=["framepack image encode", "start image", "first frame"],
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="Start image, with both sides multiples of 16 as FramePack Canvas "
                    "makes them. Only the first of a batch is used.",
                ),
                io.Vae.Input(
                    "vae",
                    tooltip="A HunyuanVideo VAE, from Load FramePack VAE or Snapshot, or Load VAE.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    tooltip="SigLIP, from Load FramePack Image Encoder or Snapshot, or Load CLIP "
                    "Vision with sigclip_vision_patch14_384.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="start_latent"),
                io.ClipVisionOutput.Output(display_name="clip_vision_output"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, image: Tensor, vae: Any, clip_vision: Any) -> io.NodeOutput:
        if len(image) > 1:
            show_text(cls.hidden.unique_id, f"the first of {len(image)} pictures")
        image = image[:1, ..., :3]
        check_size(image.shape[2], image.shape[1])
        latent = {"samples": vae.encode(image)}
        to_latents(latent, "vae")
        # FramePack squashes the picture to the encoder's square instead of cropping it.
        return io.NodeOutput(latent, clip_vision.encode_image(image, crop=False))
