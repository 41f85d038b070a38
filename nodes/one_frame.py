"""One new picture beside control images: editing with a video model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..framepack_core.runtime.errors import FramePackError
from ..framepack_core.sampling.masks import latent_mask, mask_latents
from ..framepack_core.sampling.one_frame import (
    OneFrame,
    describe_one_frame,
    generate_one_frame,
    plan_one_frame,
)
from ..framepack_core.sampling.options import WindowOption
from ..framepack_core.sampling.sections import LATENT_STRIDE, WINDOW
from .comfyui.progress import RunProgress, show_text
from .comfyui.section_run import check_mode
from .comfyui.sockets import to_image_latent, to_latent
from .option_inputs import option_inputs
from .sampler_inputs import run_of, setting_inputs
from .types import CATEGORY, ControlsSocket, advanced, schema

HIDDEN, KEPT = "hidden", "kept"
MAX_INDEX = 1000
AFTER_WINDOW = -1


@dataclass(frozen=True, eq=False)
class Control:
    """A control image's latent [B, 16, 1, h, w], model-ready and masked, and its frame index."""

    latent: Tensor
    index: int


class ControlImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelControlImage",
            display_name="FramePack Control Image",
            category=CATEGORY,
            description="An image that FramePack One Frame looks at, with its place in time and a "
            "mask. Chain one for each image.",
            search_aliases=["framepack reference image", "kisekaeichi", "1f-mc", "control image"],
            inputs=[
                io.Latent.Input(
                    "image",
                    tooltip="From FramePack Start Frame or VAE Encode, all of one size. An Empty "
                    "HunyuanLatentVideo of length 1 stands for no image.",
                ),
                io.Int.Input(
                    "index",
                    default=0,
                    min=0,
                    max=MAX_INDEX,
                    tooltip="Frame index: 0 for the start image, more for a state later in time "
                    "(10 for the reference of kisekaeichi).",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Of the image before it was fitted, or after; it is cropped as "
                    "FramePack Canvas crops the image.",
                ),
                io.Combo.Input(
                    "masked_part",
                    options=[HIDDEN, KEPT],
                    default=HIDDEN,
                    optional=True,
                    tooltip="What becomes of the white part of the mask. hidden: as Load Image "
                    "gives it for transparent pixels and the mask editor's strokes. kept: all "
                    "else is hidden, as in mask files of musubi-tuner.",
                ),
                ControlsSocket.Input(
                    "controls", optional=True, tooltip="Control images that come before this one."
                ),
            ],
            outputs=[ControlsSocket.Output(display_name="controls")],
        )

    @classmethod
    def execute(
        cls,
        image: dict[str, Any],
        index: int,
        mask: Tensor | None = None,
        masked_part: str = HIDDEN,
        controls: tuple[Control, ...] = (),
    ) -> io.NodeOutput:
        latent = to_image_latent(image, "image")
        if controls and latent.shape != controls[0].latent.shape:
            raise FramePackError(
                f"image: its latent is {list(latent.shape)}, that of the first control image "
                f"{list(controls[0].latent.shape)}; fit all to one size with FramePack Canvas"
            )
        if mask is not None:
            weights = 1 - mask if masked_part == HIDDEN else mask
            latent = mask_latents(latent, [_latent_mask(weights, latent)])
        return io.NodeOutput((*controls, Control(latent, index)))


def _latent_mask(mask: Tensor, latent: Tensor) -> Tensor:
    """Weights [1, 1, 1, h, w] of a latent from MASK [N, H, W] or [H, W]; the first counts."""
    levels = (mask.reshape(-1, *mask.shape[-2:])[0].float() * 255).round().clamp(0, 255)
    height, width = (LATENT_STRIDE * side for side in latent.shape[3:])
    return latent_mask(levels.to("cpu", torch.uint8).numpy(), width, height)


class MakeOneFrame(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelOneFrame",
            display_name="FramePack One Frame",
            category=CATEGORY,
            description="Makes a single new picture from control images and a prompt, by placing "
            "it among them in time: an edit, a change of clothes, or what comes later.",
            search_aliases=[
                "framepack one frame",
                "single frame",
                "image edit",
                "kisekaeichi",
                "1f-mc",
                "oichi",
            ],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The original FramePack model; usually with a one-frame LoRA."
                ),
                io.Conditioning.Input("positive", tooltip="What the new picture shows."),
                ControlsSocket.Input("controls", tooltip="From FramePack Control Image."),
                io.ClipVisionOutput.Input(
                    "clip_vision_output",
                    optional=True,
                    tooltip="What the model recognises in the start image, from FramePack Start "
                    "Frame or CLIP Vision Encode (crop: none). FramePack models need it.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What to avoid; used only where cfg is not 1.",
                ),
                io.Int.Input(
                    "target_index",
                    default=WINDOW,
                    min=0,
                    max=MAX_INDEX,
                    tooltip="Frame index of the new picture. 1 changes little, 9 a lot; LoRAs name "
                    "the one they were trained with.",
                ),
                io.Boolean.Input(
                    "no_2x",
                    default=False,
                    tooltip="Leave out the blank context at half size; LoRAs say if they need it.",
                ),
                io.Boolean.Input(
                    "no_4x", default=False, tooltip="The same for the context at a quarter."
                ),
                io.Boolean.Input(
                    "no_post",
                    default=False,
                    tooltip="Leave out the blank frame after the window; set it where a control "
                    "image stands there.",
                ),
                *setting_inputs(),
                advanced(
                    io.Int.Input(
                        "post_index",
                        default=AFTER_WINDOW,
                        min=AFTER_WINDOW,
                        max=MAX_INDEX,
                        optional=True,
                        tooltip="Frame index of the blank frame after the window; "
                        f"{AFTER_WINDOW} is window + 1.",
                    )
                ),
                *option_inputs(WindowOption, ("window",)),
            ],
            outputs=[io.Latent.Output(display_name="latent")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: list[Any],
        controls: tuple[Control, ...],
        target_index: int,
        no_2x: bool,
        no_4x: bool,
        no_post: bool,
        post_index: int = AFTER_WINDOW,
        window: int = WINDOW,
        **inputs: Any,
    ) -> io.NodeOutput:
        indices = tuple(control.index for control in controls)
        if post_index != AFTER_WINDOW:
            if no_post:
                raise FramePackError("post_index: no_post leaves it out; set one of the two")
            indices = (*indices, post_index)
        options = OneFrame(target_index, indices, no_2x, no_4x, no_post)
        section = plan_one_frame(options, len(controls), window)
        latents = torch.cat([control.latent for control in controls], dim=2)
        shape = (1, *latents.shape[3:])
        progress = partial(RunProgress, cls.hidden.unique_id, 1)
        run = run_of("FramePack One Frame", model, positive, shape, progress, inputs)
        check_mode(model, "framepack", "one frame needs")
        latent = generate_one_frame(section, run, latents, run.settings.seed)
        text = describe_one_frame(section, len(controls))
        show_text(cls.hidden.unique_id, text)
        return io.NodeOutput(to_latent(latent), ui=ui.PreviewText(text))
