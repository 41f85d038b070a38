"""The sampler: core's loop over the sections, each sampled by ComfyUI on the native MODEL."""

from __future__ import annotations

import json
import logging
from functools import partial
from typing import Any, get_args

from comfy_api.latest import io, ui
from torch import Tensor

from ..framepack_core.runtime.display import Display
from ..framepack_core.runtime.errors import FramePackError
from ..framepack_core.sampling.anchor import check_anchor
from ..framepack_core.sampling.generate import SectionDone, VideoVariant, generate_variants
from ..framepack_core.sampling.options import AnchorOption, Draft, DraftOption, VariantOptions
from ..framepack_core.sampling.plan import Direction, Plan
from ..framepack_core.sampling.sections import LATENT_STRIDE
from .comfyui.draft import HalfSize, draft_inputs
from .comfyui.ledger import open_ledger
from .comfyui.live_sections import ReportedProgress, SectionReport
from .comfyui.lora import check_end, check_section_loras
from .comfyui.section_run import check_mode, image_embeds
from .comfyui.sockets import LOOP_KEY, WINDOW_KEY, to_image_latent, to_latent, to_latents
from .comfyui.tiny_vae import tiny_vae
from .guide import PlanValue
from .option_inputs import option_inputs, read_inputs
from .sampler_inputs import LATER, NEEDED, run_of, setting_inputs
from .types import CATEGORY, PlanSocket, advanced, schema

logger = logging.getLogger(__name__)
NODE = "FramePack Sampler"
VARIANTS = ("variants", "finish_after", "pick")

_finished_early: list[dict[str, Any]] = []  # the inputs of runs whose users asked for it


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
                *option_inputs(VariantOptions, VARIANTS),
                *option_inputs(DraftOption, ("draft",)),
            ],
            outputs=[
                io.Latent.Output(display_name="latent"),
                io.Latent.Output(
                    display_name="last_latent",
                    tooltip="The last latent frame, to start or end another video with.",
                ),
                io.String.Output(
                    display_name="sections",
                    tooltip="The sections as JSON: frames, order made, and what each has of its "
                    "own.",
                ),
            ],
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
        draft: Draft = "off",
        **inputs: Any,
    ) -> io.NodeOutput:
        anchor = read_inputs(AnchorOption, {"anchor": anchor}, NODE).anchor
        given = {name: inputs.pop(name) for name in VARIANTS if name in inputs}
        chosen = read_inputs(VariantOptions, given, NODE)
        widgets = inputs | {"draft": draft}
        start = to_image_latent(start_latent, "start_latent")
        video = None if existing is None else to_latents(existing, "existing")
        if video is not None:
            plan = plan.extending(video.shape[2], direction)
        draft, half = read_inputs(DraftOption, {"draft": draft}, NODE).draft, None
        if draft != "off":
            inputs = draft_inputs(inputs)
        if draft == "half":
            if video is not None:
                raise FramePackError("draft: an existing video keeps its size; set it to steps")
            half = HalfSize(start, model, vae)
            start = half.start
        log, count = RunLog(), len(chosen.seeds(0))
        for name, latents in (("start_latent", start), ("existing", video)):
            if count > 1 and latents is not None and latents.shape[0] > 1:
                raise FramePackError(
                    f"variants: {name} has {latents.shape[0]} samples; give one, or set variants "
                    "to 1"
                )
        made = plan.first(chosen.sections)
        small = tiny_vae(model)
        report = SectionReport(cls.hidden, made, start, vae or small, ledger, log.notes, count)
        shape = (plan.window, *start.shape[3:])

        def progress(patcher: Any, steps: int) -> ReportedProgress:
            return ReportedProgress(report, patcher, count * steps, small)

        run = run_of(NODE, model, positive, shape, progress, inputs)
        check_mode(model, plan.mode, "FramePack Plan says", "set mode to {mode} in FramePack Plan")
        check_section_loras(plan, model)
        check_end(plan, model)
        check_anchor(plan, anchor, "anchor")
        plan = encoded(plan, model, start, half).first(chosen.sections)
        origin: dict[str, Any] = {"start_latent": start, "existing": video}
        if anchor:  # off it has no name, so that sections of before are found
            origin["anchor"] = anchor
        if half is not None:
            origin["draft of"] = list(half.draft_of)
        runs = run.variants(chosen.seeds(run.settings.seed))
        keep = partial(open_ledger, plan=plan, inputs=origin, say=log.say)
        variants = [VideoVariant(r, r.settings.seed, keep(r) if ledger else None) for r in runs]

        def on_section(done: SectionDone) -> None:
            log.on_section(done)
            report.on_section(done)

        with report.run():
            latents = generate_variants(
                plan,
                variants,
                start,
                on_section,
                existing=video,
                anchor=anchor,
                finish=report.finishing,
                draft_of=half and half.draft_of,
            )
            if report.finished < len(plan.sections):
                names = (*NEEDED, *LATER, "draft")
                _finished_early.append({n: widgets[n] for n in names if n in widgets})
                log.say(
                    f"finished early, with {report.finished} of {len(plan.sections)} sections; "
                    "queue again with the same seed to make the others"
                )
        done = plan.first(report.finished)
        latent = to_latent(latents, **{WINDOW_KEY: plan.window, LOOP_KEY: done.closes})
        last = to_latent(latents[:, :, -1:])
        sections = json.dumps(made.first(report.finished).listed(), ensure_ascii=False)
        return io.NodeOutput(latent, last, sections, ui=ui.PreviewText(log.text))

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> int:
        """Another number after a run was finished early: queued again it goes on.

        Runs are told by their widgets; what links bring is not known yet when this is asked.
        """
        widgets = {n: v for n, v in inputs.items() if isinstance(v, int | float | str)}
        return sum(all(run.get(n, v) == v for n, v in widgets.items()) for run in _finished_early)


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


def encoded(plan: Plan, model: Any, start: Tensor, half: HalfSize | None = None) -> Plan:
    """The plan with what core's loop and `SectionRun` take in place of what the guides gave it.

    start [B, C, 1, h, w]: sets the size of the pictures. half: of a draft, whose pictures are
    smaller.
    """
    height, width = (side * LATENT_STRIDE for side in start.shape[3:])

    def image(given: PlanValue) -> Tensor:
        latent = given.at(width, height)
        return latent if half is None else half.of(latent)

    return plan.encoded(
        prompt=lambda given: given.value,
        image=image,
        image_embeds=lambda given: image_embeds(model, given.at(width, height)),
    )
