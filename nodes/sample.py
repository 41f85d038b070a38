"""The sampler: core's loop over the sections, each sampled by ComfyUI on the native MODEL."""

from __future__ import annotations

from functools import partial
from typing import Any, get_args

from comfy_api.latest import io

from ..framepack_core.sampling.generate import extend, generate
from ..framepack_core.sampling.plan import Direction, Plan
from .host import WINDOW_KEY, RunProgress, to_image_latent, to_latent, to_latents
from .section_run import Settings, check_mode, image_embeds, section_run, setting_inputs
from .types import CATEGORY, PlanSocket, advanced, schema


class Sampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelSampler",
            display_name="FramePack Sampler",
            category=CATEGORY,
            description="Makes the whole video, section by section, and returns its latents. With "
            "an existing video it makes sections after or before that one.",
            search_aliases=[
                "framepack",
                "framepack sampler",
                "image to video",
                "i2v",
                "KSampler",
                "extend video",
                "video extension",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A FramePack or F1 model, with LoRAs if you like.",
                ),
                PlanSocket.Input("plan", tooltip="Length and order, from FramePack Plan."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="What happens in the video; sections with a prompt of their own do "
                    "not see it.",
                ),
                io.Latent.Input(
                    "start_latent",
                    tooltip="The start image, from FramePack Start Frame or VAE Encode.",
                ),
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
                *setting_inputs(),
                io.Latent.Input(
                    "existing",
                    optional=True,
                    tooltip="A video to extend: latents of FramePack Sampler, Load FramePack "
                    "Latent, or VAE Encode of 4n + 1 frames. It is kept as it is.",
                ),
                advanced(
                    io.Combo.Input(
                        "direction",
                        options=list(get_args(Direction)),
                        default="forward",
                        optional=True,
                        tooltip="Where an existing video grows. forward: start_latent is its last "
                        "frame (framepack) or its first (f1). backward, only for framepack: "
                        "start_latent is the new first frame.",
                    )
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        plan: Plan,
        positive: list[Any],
        start_latent: dict[str, Any],
        clip_vision_output: Any = None,
        negative: list[Any] | None = None,
        existing: dict[str, Any] | None = None,
        direction: Direction = "forward",
        **settings: Any,
    ) -> io.NodeOutput:
        start = to_image_latent(start_latent, "start_latent")
        run = section_run(
            model,
            positive,
            Settings(**settings),
            (plan.window, *start.shape[3:]),
            partial(RunProgress, cls.hidden.unique_id, len(plan.sections)),
            clip_vision_output,
            negative,
        )
        check_mode(model, plan.mode, "FramePack Plan says")
        plan, seed = encoded(plan, model), run.settings.seed
        if existing is None:
            latents = generate(plan, run, start, seed)
        else:
            video = to_latents(existing, "existing")
            latents = extend(plan, run, video, seed, direction, start)
        return io.NodeOutput(to_latent(latents, **{WINDOW_KEY: plan.window}))


def encoded(plan: Plan, model: Any) -> Plan:
    """The plan with what core's loop and `SectionRun` take in place of what the guides gave it."""
    return plan.encoded(
        prompt=lambda guide: guide.value,
        image=lambda guide: guide.value,
        image_embeds=lambda guide: image_embeds(model, guide.value),
    )
