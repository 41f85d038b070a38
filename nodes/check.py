"""What a run will make and take, before the model is moved to the device."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..framepack_core.runtime.errors import FramePackError
from ..framepack_core.runtime.video import probe_encoder
from ..framepack_core.sampling.options import SamplingOptions
from ..framepack_core.sampling.plan import Plan
from .comfyui.lora import check_section_loras
from .comfyui.needs import Needs
from .comfyui.progress import show_text
from .comfyui.section_run import check_model, check_model_attention
from .comfyui.sockets import to_image_latent
from .option_inputs import option_inputs
from .types import CATEGORY, PlanSocket, schema


class Check(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelCheck",
            display_name="FramePack Check",
            category=CATEGORY,
            description="Says what a run will make, how long it will take and whether memory and "
            "disk suffice, from a short trial before the model is loaded. Put it between FramePack "
            "Plan and FramePack Sampler: it stops a run that cannot end well.",
            search_aliases=["framepack preflight", "estimate", "time", "VRAM", "memory"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will make the video."),
                PlanSocket.Input("plan", tooltip="From FramePack Plan and the guides."),
                io.Latent.Input("start_latent", tooltip="The start image, for the video's size."),
                *option_inputs(SamplingOptions, ("steps",), optional=False),
            ],
            outputs=[
                PlanSocket.Output(display_name="plan"),
                io.String.Output(display_name="report"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model: Any, plan: Plan, start_latent: dict[str, Any], steps: int
    ) -> io.NodeOutput:
        check_model(model)
        check_model_attention(model)
        check_section_loras(plan, model)
        probe_encoder("libx264")
        needs = Needs(model, plan, to_image_latent(start_latent, "start_latent"), steps)
        problems = list(needs.problems())
        if problems:
            raise FramePackError("; ".join(problems))
        report = "\n".join(needs.lines())
        show_text(cls.hidden.unique_id, report)
        return io.NodeOutput(plan, report, ui=ui.PreviewText(report))
