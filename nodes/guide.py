"""What steers single sections of a plan, and the end of the video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from comfy_api.latest import io, ui

from ..framepack_core.parsing.blend import blended
from ..framepack_core.parsing.overrides import Overrides
from ..framepack_core.sampling.options import BlendOption, EndImageOptions
from ..framepack_core.sampling.plan import EndPolicy, Plan
from .comfyui.encode import encode_blend
from .comfyui.progress import show_text
from .comfyui.sockets import to_image_latent
from .condition import system_prompt_input
from .option_inputs import option_inputs, other_names, read_inputs
from .types import CATEGORY, PlanSocket, schema

NEEDED = ("padding", "seed", "guidance")
LATER = other_names(Overrides, NEEDED)  # optional, as workflows of before do not have them


@dataclass(frozen=True, eq=False)
class PlanValue:
    """Something of ComfyUI's that a plan carries to the sampler; plans show its `label`."""

    value: Any
    label: str | None = None

    def at(self, width: int, height: int) -> Any:
        """What the sampler takes for a video of that size."""
        return self.value


class SizedPlanValue(PlanValue):
    """A value that is made when the size is known: its value is a function of width and height."""

    def at(self, width: int, height: int) -> Any:
        return self.value(width, height)


def wrapped(value: Any, label: str | None = None) -> PlanValue | None:
    return None if value is None else PlanValue(value, label)


class GuideSections(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelGuideSections",
            display_name="FramePack Guide Sections",
            category=CATEGORY,
            description="Gives some sections of a plan a prompt, an image, a padding, a seed, a "
            "guidance or a LoRA strength of their own. Chain one for each group of sections; later "
            "ones win.",
            search_aliases=[
                "framepack section prompt",
                "section image",
                "keyframe",
                "timeline",
                "per section",
                "lora per section",
            ],
            inputs=[
                PlanSocket.Input("plan", tooltip="From FramePack Plan or another guide."),
                io.String.Input(
                    "sections",
                    default="0",
                    tooltip="Which sections, by time: 0 is the first, -1 the last, 0-2 the first "
                    "three, -2--1 the last two.",
                ),
                io.Conditioning.Input(
                    "conditioning", optional=True, tooltip="Prompt of these sections."
                ),
                io.Latent.Input(
                    "start_image",
                    optional=True,
                    tooltip="Image of these sections, from FramePack Start Frame at the video's "
                    "size. At padding 0 a section continues from it, else it is a reference.",
                ),
                io.ClipVisionOutput.Input(
                    "clip_vision_output",
                    optional=True,
                    tooltip="What the model recognises in that image, from the same FramePack "
                    "Start Frame.",
                ),
                *option_inputs(Overrides, NEEDED, optional=False),
                *option_inputs(Overrides, LATER),
            ],
            outputs=[PlanSocket.Output(display_name="plan")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        plan: Plan,
        sections: str,
        conditioning: list[Any] | None = None,
        start_image: dict[str, Any] | None = None,
        clip_vision_output: Any = None,
        **overrides: Any,
    ) -> io.NodeOutput:
        image = None if start_image is None else to_image_latent(start_image, "start_image")
        plan = plan.with_overrides(
            sections,
            prompt=wrapped(conditioning),
            image=wrapped(image),
            image_embeds=wrapped(clip_vision_output),
            **read_inputs(Overrides, overrides, "FramePack Guide Sections").given(),
        )
        return show_plan(plan, cls.hidden.unique_id)


class PromptSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelPromptSchedule",
            display_name="FramePack Prompt Schedule",
            category=CATEGORY,
            description="Gives every section of a plan its prompt from one text, in the grammar "
            "of the framepack command and musubi-tuner.",
            search_aliases=["framepack section prompts", "prompt travel", "prompt schedule"],
            inputs=[
                PlanSocket.Input("plan", tooltip="From FramePack Plan or another guide."),
                io.Clip.Input(
                    "clip",
                    tooltip="From Load FramePack Text Encoders or Snapshot, or ComfyUI's "
                    "DualCLIPLoader with type hunyuan_video.",
                ),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="Prompts between ;;; with their sections in front: 0:a cat sleeps;;;"
                    "1-2:it wakes up;;;-1:it runs. 0 is the first section in time, -1 the last. "
                    "Sections that are not named take the prompt of section 0. Or with times: "
                    "[0s: a cat sleeps] [2.5s: it wakes up].",
                ),
                system_prompt_input(),
                *option_inputs(BlendOption, ("blend",)),
            ],
            outputs=[
                PlanSocket.Output(display_name="plan"),
                io.Conditioning.Output(
                    display_name="positive", tooltip="The first section's, for the sampler."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, plan: Plan, clip: Any, prompts: str, system_prompt: str = "", blend: int = 0
    ) -> io.NodeOutput:
        over = read_inputs(BlendOption, {"blend": blend}, "FramePack Prompt Schedule").prompt_blend
        texts = blended(cast(list[str], plan.texts(prompts, "prompts")), over)
        encoded = {
            text: PlanValue(
                encode_blend(clip, text, system_prompt),
                text if isinstance(text, str) else text.label,
            )
            for text in dict.fromkeys(texts)
        }
        for index, text in enumerate(texts):
            plan = plan.with_overrides(str(index), prompt=encoded[text])
        return show_plan(plan, cls.hidden.unique_id, encoded[texts[0]].value)


class EndFrame(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelEndFrame",
            display_name="FramePack End Frame",
            category=CATEGORY,
            description="Gives the video an image to end with. F1, which makes a video forwards, "
            "needs a LoRA that was trained with end frames.",
            search_aliases=[
                "framepack end image",
                "end frame",
                "last frame",
                "first last frame",
                "flf2v",
                "loop",
            ],
            inputs=[
                PlanSocket.Input("plan", tooltip="From FramePack Plan or a guide."),
                io.Latent.Input(
                    "end_image",
                    tooltip="The image to end with, from FramePack Start Frame at the video's "
                    "size (FramePack Canvas fits both).",
                ),
                *option_inputs(EndImageOptions, ("strength", "policy"), optional=False),
                io.ClipVisionOutput.Input(
                    "clip_vision_output",
                    optional=True,
                    tooltip="What the model recognises in the end image; the last section then "
                    "looks at this instead of the start image. For an end that shows other things "
                    "than the start.",
                ),
            ],
            outputs=[PlanSocket.Output(display_name="plan")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        plan: Plan,
        end_image: dict[str, Any],
        strength: float,
        policy: EndPolicy,
        clip_vision_output: Any = None,
    ) -> io.NodeOutput:
        plan = plan.with_end(PlanValue(to_image_latent(end_image, "end_image")), policy, strength)
        plan = plan.with_overrides("-1", image_embeds=wrapped(clip_vision_output))
        return show_plan(plan, cls.hidden.unique_id)


def show_plan(plan: Plan, node_id: str, *outputs: Any) -> io.NodeOutput:
    """A plan, written on its node, and further outputs."""
    text = plan.describe()
    show_text(node_id, text)
    return io.NodeOutput(plan, *outputs, ui=ui.PreviewText(text))
