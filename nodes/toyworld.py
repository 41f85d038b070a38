"""Pictures, prompts and clips for the built-in model."""

from __future__ import annotations

from dataclasses import replace

import torch
from comfy_api.latest import io
from torch import Tensor

from ..framepack_core.parsing.section_spec import format_spec
from ..framepack_core.runtime.errors import FramePackError
from ..framepack_core.toyworld.render import (
    COLOUR_NAMES,
    FORMS,
    MAX_SECTIONS,
    MOTIONS,
    SECTION_FRAMES,
    SIZE,
    Clips,
    captions,
    coverage,
    draw,
    render_uint8,
    with_motions,
)
from .comfyui.sockets import to_image
from .types import CATEGORY, advanced, schema


class ToyWorldScene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelToyWorldScene",
            display_name="Toy World Scene",
            category=CATEGORY,
            description="Draws pictures for the built-in Toy World model and writes the prompts "
            "that go with them.",
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
                advanced(
                    io.String.Input(
                        "then",
                        default="",
                        optional=True,
                        tooltip="What it does in the sections after the first, such as: down, "
                        "left. The prompt then has one for each section.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "frame",
                        default=0,
                        min=0,
                        max=MAX_SECTIONS * SECTION_FRAMES,
                        optional=True,
                        tooltip="Which frame of the drawn clip is the image: 0 is the first, each "
                        f"section has {SECTION_FRAMES} more.",
                    )
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image"),
                io.String.Output(display_name="prompt"),
                io.Image.Output(display_name="clip", tooltip="All frames, as they should be."),
                io.Mask.Output(display_name="mask", tooltip="Where the shape is in the image."),
            ],
        )

    @classmethod
    def execute(
        cls,
        shape: str,
        colour: str,
        motion: str,
        scene_seed: int,
        then: str = "",
        frame: int = 0,
    ) -> io.NodeOutput:
        clip = draw([scene_seed], sections=1, central=True)
        form, paint = FORMS.index(shape), COLOUR_NAMES.index(colour)
        clip = replace(clip, form=torch.tensor([form]), colour=torch.tensor([paint]))
        clip = with_motions(clip, torch.tensor([_motions(motion, then)]))
        prompts = dict(enumerate(captions(clip)[0]))
        prompt = format_spec(prompts) if len(prompts) > 1 else prompts[0]
        frames = to_image(render_uint8(clip)[0].numpy())
        if frame >= len(frames):
            raise FramePackError(
                f"frame: {frame} is behind the clip's last, {len(frames) - 1}; add motions to then"
            )
        return io.NodeOutput(frames[frame : frame + 1], prompt, frames, _mask(clip, frame))


def _motions(first: str, then: str) -> list[int]:
    names = [first, *filter(None, (name.strip() for name in then.split(",")))]
    for name in names:
        if name not in MOTIONS:
            raise FramePackError(f"then: {name!r} is unknown; use {', '.join(MOTIONS)}")
    if len(names) > MAX_SECTIONS:
        raise FramePackError(f"then: {len(names)} motions; a clip has {MAX_SECTIONS} at most")
    return [MOTIONS.index(name) for name in names]


def _mask(clip: Clips, frame: int) -> Tensor:
    """MASK [1, 64, 64] of the shape."""
    x, y, radius = clip.track[0, frame].float()
    axis = torch.arange(SIZE) + 0.5
    return coverage(int(clip.form), axis[None] - x, axis[:, None] - y, radius)[None]
