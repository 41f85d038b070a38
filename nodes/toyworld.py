"""A start image and a prompt for the built-in model."""

from __future__ import annotations

from dataclasses import replace

import torch
from comfy_api.latest import io

from ..framepack_core.toyworld.render import (
    COLOUR_NAMES,
    FORMS,
    MOTIONS,
    caption,
    draw,
    start_image,
)
from .host import to_image
from .types import CATEGORY, schema


class ToyWorldScene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelToyWorldScene",
            display_name="Toy World Scene",
            category=CATEGORY,
            description="Draws a start image for the built-in Toy World model and writes the "
            "prompt that goes with it.",
            search_aliases=["toy world", "example image", "framepack example"],
            inputs=[
                io.Combo.Input("shape", options=list(FORMS), tooltip="What moves."),
                io.Combo.Input("colour", options=list(COLOUR_NAMES), tooltip="Its colour."),
                io.Combo.Input("motion", options=list(MOTIONS), tooltip="What it does."),
                io.Int.Input(
                    "scene_seed",
                    default=1,
                    min=0,
                    max=2**32 - 1,
                    tooltip="Draws the background, the place and the size.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image"),
                io.String.Output(display_name="prompt"),
            ],
        )

    @classmethod
    def execute(cls, shape: str, colour: str, motion: str, scene_seed: int) -> io.NodeOutput:
        form, paint = FORMS.index(shape), COLOUR_NAMES.index(colour)
        clip = draw([scene_seed], sections=1, central=True)
        clip = replace(clip, form=torch.tensor([form]), colour=torch.tensor([paint]))
        prompt = caption(form, paint, MOTIONS.index(motion))
        return io.NodeOutput(to_image(start_image(clip).numpy()), prompt)
