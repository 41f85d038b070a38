"""The sampler: core's loop over the sections, each sampled by ComfyUI on the native MODEL."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, get_args

from comfy_api.latest import io, ui
from torch import Tensor

from ..framepack_core.runtime.display import Display
from ..framepack_core.sampling.anchor import check_anchor
from ..framepack_core.sampling.generate import OnSection, SectionDone, extend, generate
from ..framepack_core.sampling.ledger import LedgerRun
from ..framepack_core.sampling.options import AnchorOption
from ..framepack_core.sampling.plan import Direction, Plan
from ..framepack_core.sampling.sections import LATENT_STRIDE
from .comfyui.ledger import open_ledger
from .comfyui.live_sections import ReportedProgress, SectionReport
from .comfyui.lora import check_end, check_section_loras
from .comfyui.section_run import SectionRun, check_mode, image_embeds
from .comfyui.sockets import WINDOW_KEY, to_image_latent, to_latent, to_latents
from .option_inputs import option_inputs, read_inputs
from .sampler_inputs import run_of, setting_inputs
from .types import CATEGORY, PlanSocket, advanced, schema

logger = logging.getLogger(__name__)


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
                "continue",
                "framepack i2v",
                "kijai",
                "FramePackSampler",
                "teacache",
                "magcache",
                "easycache",
                "F1",
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
                advanced(
                    io.Boolean.Input(
                        "ledger",
                        default=True,
                        optional=True,
                        tooltip="Keeps each finished section in ComfyUI's output folder, so that "
                        "the same run queued again after a stop or a crash resumes after them.",
                    )
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Shows every finished section as video on this node while the others "
                    "are made, for the time of one more decode.",
                ),
                *option_inputs(AnchorOption, ("anchor",)),
            ],
            outputs=[io.Latent.Output(display_name="latent")],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        plan: Plan,
        positive: list[Any],
        start_latent: dict[str, Any],
        existing: dict[str, Any] | None = None,
        direction: Direction = "forward",
        ledger: bool = True,
        vae: Any = None,
        anchor: float = 0.0,
        **inputs: Any,
    ) -> io.NodeOutput:
        anchor = read_inputs(AnchorOption, {"anchor": anchor}, "FramePack Sampler").anchor
        start = to_image_latent(start_latent, "start_latent")
        video = None if existing is None else to_latents(existing, "existing")
        if video is not None:
            plan = plan.extending(video.shape[2], direction)
        log = RunLog()
        report = SectionReport(cls.hidden, plan, start, vae, ledger, log.notes)
        progress = partial(ReportedProgress, report)
        shape = (plan.window, *start.shape[3:])
        run = run_of("FramePack Sampler", model, positive, shape, progress, inputs)
        check_mode(model, plan.mode, "FramePack Plan says", "set mode to {mode} in FramePack Plan")
        check_section_loras(plan, model)
        check_end(plan, model)
        check_anchor(plan, anchor, "anchor")
        plan = encoded(plan, model, start)
        origin: dict[str, Any] = {"start_latent": start, "existing": video}
        if anchor:  # off it has no name, so that sections of before are found
            origin["anchor"] = anchor
        kept = open_ledger(run, plan, origin, log.say) if ledger else None
        with report.run():
            followers = (log.on_section, report.on_section)
            latents = make(plan, run, start, video, followers, kept, anchor)
        made = to_latent(latents, **{WINDOW_KEY: plan.window})
        return io.NodeOutput(made, ui=ui.PreviewText(log.text))


def make(
    plan: Plan,
    run: SectionRun,
    start: Tensor,
    video: Tensor | None,
    followers: Sequence[OnSection],
    ledger: LedgerRun | None,
    anchor: float = 0.0,
) -> Tensor:
    """The latents of a plan's sections, with those of the video that it extends, if any."""

    def on_section(done: SectionDone) -> None:
        for follow in followers:
            follow(done)

    seed = run.settings.seed
    if video is None:
        return generate(plan, run, start, seed, on_section, ledger=ledger, anchor=anchor)
    direction: Direction = "backward" if plan.backward else "forward"
    return extend(plan, run, video, seed, direction, start, on_section, ledger, anchor)


class RunLog:
    """What a run has to say: what the ledger found, and how far each section has drifted."""

    def __init__(self) -> None:
        self.notes: list[str] = []  # the ledger's
        self._lines: list[str] = []
        self._display = Display("log of the run")

    def say(self, note: str) -> None:
        self.notes.append(note)
        self._tell(note)

    def on_section(self, done: SectionDone) -> None:
        if done.drift is not None:
            self._tell(f"section {done.section.index}: drift from the start image: {done.drift}")

    def _tell(self, line: str) -> None:
        with self._display:
            logger.info(line)
            self._lines.append(line)

    @property
    def text(self) -> str:
        return "\n".join(self._lines)


def encoded(plan: Plan, model: Any, start: Tensor) -> Plan:
    """The plan with what core's loop and `SectionRun` take in place of what the guides gave it.

    start [B, C, 1, h, w]: sets the size of the pictures.
    """
    height, width = (side * LATENT_STRIDE for side in start.shape[3:])
    return plan.encoded(
        prompt=lambda given: given.value,
        image=lambda given: given.at(width, height),
        image_embeds=lambda given: image_embeds(model, given.at(width, height)),
    )
