"""What a run will make and take, before the model is moved to the device."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import folder_paths
from comfy_api.latest import io, ui
from torch import Tensor

from ..framepack_core.runtime.errors import FramePackError
from ..framepack_core.runtime.files import size_text
from ..framepack_core.runtime.memory import free_main_memory
from ..framepack_core.runtime.video import probe_encoder
from ..framepack_core.sampling.plan import HISTORY, Plan
from ..framepack_core.sampling.probe import probe_transformer
from ..framepack_core.sampling.sections import LATENT_STRIDE
from .comfyui.host import show_text, to_image_latent
from .comfyui.model import IMAGE_TOKENS, SECTION_PREFIX
from .comfyui.section_run import check_model, check_model_attention
from .lora import check_section_loras
from .types import CATEGORY, PlanSocket, schema

mm = comfy.model_management

TEXT_TOKENS = 100  # of a usual prompt
TRIAL_BLOCKS = 0.15  # of the model, which the trials need room for
LATENT_BYTES = 4


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
                io.Int.Input(
                    "steps", default=25, min=1, max=1000, tooltip="As in FramePack Sampler."
                ),
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


@dataclass(frozen=True)
class Needs:
    """What a run needs of this machine; start [B, 16, 1, h, w]."""

    model: Any
    plan: Plan
    start: Tensor
    steps: int

    def lines(self) -> Iterator[str]:
        height, width = (side * LATENT_STRIDE for side in self.start.shape[3:])
        yield self.plan.describe(width, height).partition("\n")[0]
        device, weights = self.model.load_device, self.model.model_size()
        total, working = mm.get_total_memory(device), self.working
        yield (
            f"{device}: {size_text(working)} to work in and {size_text(weights)} of weights, "
            f"{size_text(total)} in all"
            + ("; weights are streamed" if working + weights > total else "")
        )
        yield f"main memory: {size_text(free_main_memory())} free"
        yield f"disk: {size_text(self.disk)} for latents, {size_text(_free_disk())} free"
        seconds = self.pass_seconds()
        passes = len(self.plan.sections) * self.steps
        minutes = passes * seconds / 60
        yield (
            f"about {minutes:.1f} min ({passes} passes of {seconds:.2g} s), twice that with a cfg "
            "other than 1; and loading and decoding"
        )

    def problems(self) -> Iterator[str]:
        """What keeps a run from ending well, each with the one thing to change."""
        device = self.model.load_device
        total = mm.get_total_memory(device)
        if self.working > total:
            yield (
                f"{device}: {size_text(self.working)} are needed to work in, of {size_text(total)} "
                "in all; make the video smaller with FramePack Canvas"
            )
        if self.disk > _free_disk():
            yield f"disk: {size_text(self.disk)} are needed in ComfyUI's output folder; free some"

    @property
    def working(self) -> int:
        """Bytes that ComfyUI wants free for a pass, besides the weights."""
        batch, channels, _, *size = self.start.shape
        names = ("clean", "clean_2x", "clean_4x")
        one, two, four = HISTORY
        frames = dict(zip(names, (1 + one, two, four), strict=True))
        shapes = {
            SECTION_PREFIX + name: [[batch, channels, count, *size]]
            for name, count in frames.items()
        }
        shape = [batch, channels, self.plan.window, *size]
        return int(self.model.model.memory_required(shape, shapes))

    @property
    def disk(self) -> int:
        """Latents of the ledger and once more, if they are saved."""
        return 2 * LATENT_BYTES * self.start.numel() * self.plan.latent_frames

    def pass_seconds(self) -> float:
        """One pass of the model, by models of a few blocks of its size."""
        model, device = self.model.model, self.model.load_device
        mm.free_memory(int(TRIAL_BLOCKS * self.model.model_size()) + self.working, device)
        network = model.diffusion_model
        passes = self.start.shape[0]  # a batch costs about as much as one after the other
        return (
            passes
            * probe_transformer(
                network.config,
                self.plan.mode,
                self.plan.window,
                self.start[:1].to(device),
                TEXT_TOKENS,
                IMAGE_TOKENS,
                model.manual_cast_dtype or model.get_dtype(),
                network.host_attention,
            ).seconds
        )


def _free_disk() -> int:
    return shutil.disk_usage(folder_paths.get_output_directory()).free
