"""The section plan: how long the video is and in which order its sections are made."""

from __future__ import annotations

import os
from typing import Any, get_args

from comfy_api.latest import io

from ..framepack_core.parsing.timeline import parse_timeline
from ..framepack_core.runtime.errors import FramePackError
from ..framepack_core.runtime.files import is_file
from ..framepack_core.sampling.options import (
    LengthOptions,
    LoopOption,
    PaddingOption,
    WindowOption,
)
from ..framepack_core.sampling.plan import Mode
from ..framepack_core.sampling.sections import parse_paddings, plan_video, sections_for_seconds
from .comfyui.paths import input_path
from .option_inputs import option_inputs
from .timeline import encode_timeline
from .types import CATEGORY, PlanSocket, schema, shown_as

SECTIONS, SECONDS = "sections", "seconds"


class PlanVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelPlan",
            display_name="FramePack Plan",
            category=CATEGORY,
            description="Plans the sections of a video and shows their order and exact length "
            "before anything runs. On the timeline each section can have a prompt, an image, a "
            "padding, a seed, a guidance and a LoRA strength of its own.",
            search_aliases=[
                "framepack length",
                "section scheduler",
                "video length",
                "duration",
                "timeline",
                "keyframes",
            ],
            inputs=[
                io.Combo.Input(
                    "mode",
                    options=list(get_args(Mode)),
                    default="framepack",
                    tooltip="framepack: the original model, made from the end backwards, which "
                    "keeps quality over time. f1: FramePack-F1, made forwards, with freer motion. "
                    "It must be the mode that the model was trained for.",
                ),
                io.Combo.Input(
                    "length",
                    options=[SECONDS, SECTIONS],
                    default=SECONDS,
                    tooltip="Which of the next two numbers says how long the video is.",
                ),
                *option_inputs(LengthOptions, ("seconds", "sections"), optional=False),
                *option_inputs(WindowOption, ("window",), optional=False),
                *option_inputs(PaddingOption, ("paddings",)),
                shown_as(
                    "FPREEL_TIMELINE",
                    io.String.Input(
                        "timeline",
                        optional=True,
                        default="",
                        tooltip="Prompt, image, padding, seed, guidance and LoRA strength of "
                        "single sections. What a section does not have is the run's.",
                    ),
                ),
                io.Clip.Input(
                    "clip", optional=True, tooltip="Encodes the timeline's prompts, if it has any."
                ),
                io.Vae.Input(
                    "vae", optional=True, tooltip="Encodes the timeline's images, if it has any."
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="Looks at the timeline's images, if it has any.",
                ),
                *option_inputs(LoopOption, ("loop",)),
            ],
            outputs=[
                PlanSocket.Output(display_name="plan"),
                io.Int.Output(display_name="frames"),
            ],
        )

    @classmethod
    def execute(
        cls,
        mode: Mode,
        length: str,
        seconds: float,
        sections: int,
        window: int,
        paddings: str = "",
        timeline: str = "",
        clip: Any = None,
        vae: Any = None,
        clip_vision: Any = None,
        loop: bool = False,
    ) -> io.NodeOutput:
        if length == SECONDS:
            sections = sections_for_seconds(seconds, window)
        given = parse_paddings(paddings, "paddings") if paddings.strip() else None
        plan = plan_video(mode, sections, window, given).with_timeline(parse_timeline(timeline))
        plan = encode_timeline(plan.with_loop() if loop else plan, clip, vae, clip_vision)
        return io.NodeOutput(plan, plan.frames)

    @classmethod
    def validate_inputs(cls, timeline: str | None = "") -> bool | str:
        """Refuse a timeline before anything runs; None is one that comes by a link."""
        try:
            for name in parse_timeline(timeline or "").images:
                if not is_file(input_path(name)):
                    return f"timeline: there is no image {name} in ComfyUI's input folder"
        except FramePackError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, timeline: str | None = "", **inputs: Any) -> list[float]:
        """When the timeline's images changed, which ComfyUI cannot see in their names."""
        images = parse_timeline(timeline or "").images
        return [os.path.getmtime(input_path(name)) for name in images]
