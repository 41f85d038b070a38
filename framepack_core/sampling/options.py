"""Options of sampling and of a video's sections, each declared once; nothing here needs torch."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import create_model

from ..parsing.overrides import by_section
from ..runtime.errors import FramePackError
from ..runtime.options import MAX_SEED, NonEmpty, Settings, option
from .plan import GUIDANCE, EndPolicy
from .sections import MAX_WINDOW, WINDOW

MAX_STEPS = 1000  # of a node
MAX_BLEND = 100  # sections
DRAFT_STEPS = 10  # at most
Draft = Literal["off", "steps", "half"]
MAX_VARIANTS = 64  # a slip of the finger should not fill a night


class SamplingOptions(Settings):
    """How every section is sampled."""

    title: ClassVar[str] = "sampling"
    seed: int | None = option(
        None,
        "Seed. The same seed and settings give the same video.",
        absent="random, and printed",
        lines=("d",),
        initial=0,
        ge=0,
        le=MAX_SEED,
        advanced=False,
    )
    infer_steps: int = option(
        25,
        "Steps of each section; 25 is usual.",
        lines=("s",),
        node="steps",
        ge=1,
        high=MAX_STEPS,
        advanced=False,
        metadata="infer_steps",
    )
    embedded_cfg_scale: float = option(
        GUIDANCE,
        "Distilled guidance scale: how strongly the prompt is followed, without extra time; 10 is "
        "usual. In ComfyUI a FluxGuidance node on the prompt wins over it.",
        node="guidance",
        low=0.0,
        high=100.0,
        step=0.1,
        advanced=False,
        metadata="embedded_cfg_scale",
    )
    guidance_scale: float = option(
        1.0,
        "CFG scale: classifier-free guidance with the negative prompt, which takes twice the time. "
        "Leave it at 1 for the released models.",
        lines=("g", "l"),
        node="cfg",
        ge=0.0,
        high=100.0,
        step=0.1,
        advanced=False,
        metadata="guidance_scale",
    )
    guidance_rescale: float = option(
        0.0,
        "CFG rescale: takes back the contrast that a CFG scale above 1 adds; 0 is off.",
        node="rescale",
        low=0.0,
        high=1.0,
        step=0.01,
        metadata="guidance_rescale",
    )
    flow_shift: float | None = option(
        None,
        "Flow shift of the noise schedule. In ComfyUI shift nodes on the model count only through "
        "a sigmas input.",
        lines=("fs",),
        node="shift",
        none=0.0,
        absent="by the video's size, as FramePack does (7 at usual sizes)",
        gt=0.0,
        high=100.0,
        step=0.01,
    )
    sample_solver: Literal["unipc"] = option(
        "unipc", "Solver; there is only UniPC.", node="", metadata="sample_solver"
    )
    unipc_variant: Literal["bh1", "bh2"] = option(
        "bh1",
        "UniPC variant of the solver; bh1 is FramePack's. In ComfyUI a sampler input replaces it.",
        node="solver",
        labels=("unipc_bh1", "unipc_bh2"),
    )
    rope_scaling_timestep_threshold: float | None = option(
        None,
        "RoPE scaling threshold: shrinks the positions in height and width while the timestep "
        "(1000 x sigma) is at least this, so that larger pictures than the model knows keep their "
        "composition; try 800. Meant for one frame.",
        node="rope_threshold",
        none=0.0,
        low=0.0,
        high=1000.0,
        step=1.0,
    )
    rope_scaling_factor: float = option(
        0.5,
        "RoPE scaling factor: how far positions shrink, 0.5 for twice the usual size, 0.7 for one "
        "and a half.",
        node="rope_factor",
        gt=0.0,
        low=0.01,
        high=1.0,
        step=0.01,
    )


class LengthOptions(Settings):
    """How long a video is."""

    title: ClassVar[str] = "length"
    video_seconds: float | None = option(
        None,
        "Length in seconds at 30 frames a second, rounded to whole sections.",
        absent="5",
        lines=("f",),
        node="seconds",
        initial=5.0,
        gt=0.0,
        low=0.1,
        high=600.0,
        step=0.1,
        advanced=False,
    )
    video_sections: int | None = option(
        None,
        "Sections: the length as their number. Each is 4 x window frames (36, or 1.2 seconds).",
        lines=("vs",),
        node="sections",
        initial=4,
        ge=1,
        high=500,
        advanced=False,
    )


class WindowOption(Settings):
    """How many latent frames a section has."""

    latent_window_size: int | None = option(
        None,
        f"Latent window size: latent frames of a section. The models were trained at {WINDOW}; "
        "more needs more memory and can give smoother motion.",
        absent=f"{WINDOW}, or that of the latents",
        node="window",
        initial=WINDOW,
        ge=1,
        le=MAX_WINDOW,
    )


class EndImageOptions(Settings):
    """How an end image counts."""

    end_image_strength: float = option(
        1.0,
        "End image strength: how much of it the model sees; 0 is none of it.",
        node="strength",
        ge=0.0,
        le=1.0,
        step=0.01,
        advanced=False,
        metadata="end_image_strength",
    )
    end_image_policy: EndPolicy = option(
        "persistent",
        "End image policy. persistent: all sections see the image, behind what follows them. "
        "first_section: only the section made first, the last of the video, sees it; not for F1.",
        node="policy",
        advanced=False,
        metadata="end_image_policy",
    )


class PaddingOption(Settings):
    """Where the sections of the framepack mode stand."""

    latent_paddings: str | None = option(
        None,
        "Paddings: how far each section stands from the start image, in windows, in the order "
        "made, such as 3,2,1,0. At 0 a section continues its image, above it the image is a "
        "reference; all 0 gives more motion at the start. Not for F1.",
        absent="FramePack's own rule",
        node="paddings",
        metavar="LIST",
        metadata="latent_paddings",
    )


class BlendOption(Settings):
    """How prompts change from section to section."""

    prompt_blend: int = option(
        0,
        "Prompt blend: over how many sections prompts turn into each other where they change, half "
        "of them on each side; below 2 they change at once.",
        node="blend",
        ge=0,
        le=MAX_BLEND,
        metadata="prompt_blend",
    )


class DraftOption(Settings):
    """Whether a video is made quickly, to try it."""

    draft: Draft = option(
        "off",
        f"Draft, to try a plan and its seeds. steps: at most {DRAFT_STEPS} steps and TeaCache, "
        "which show much the same. half: half as large too, for a quarter of the work; its noise "
        "is the video's own at half the resolution. With off the same seed makes the video.",
        advanced=False,
        metadata="draft",
    )


class StartPictureOption(Settings):
    """What a video begins with where there is no picture."""

    start_picture: NonEmpty | None = option(
        None,
        "Start picture: made in place of a start image, for text to video. noise (by the seed), "
        "gradient, or a colour such as grey or #405060.",
        absent="none; a start image is needed",
        metavar="KIND",
        advanced=False,
        metadata="start_picture",
    )


class DropOption(Settings):
    """Where a video begins."""

    drop_first_frames: int = option(
        0,
        "Drop first frames: how many to leave out at the start of the video, so that it does not "
        "begin with a picture that was made for it (5 are that picture and the first latent "
        "behind it).",
        unit="frames",
        node="drop_first",
        ge=0,
        high=1000,
        metadata="drop_first_frames",
    )


class LoopOption(Settings):
    """Whether a video leads into its own start."""

    loop: bool = option(
        False,
        "Loop: the last section leads into the first, so that the video can be played over and "
        "over without a jump. In place of an end image; F1 needs the same LoRA as for that.",
        advanced=False,
    )


class AnchorOption(Settings):
    """How far finished sections are held to the start image."""

    anchor: float = option(
        0.0,
        "Drift anchor: how far colours and contrast of each finished section are brought back to "
        "the start image's, before the next section sees it; 0 is off, 1 all the way. For long "
        "videos, most of all of F1. Sections with a picture of their own stay as they are.",
        ge=0.0,
        le=1.0,
        step=0.05,
        advanced=False,
        metadata="anchor",
    )


class VariantOptions(Settings):
    """How many videos of one plan, and where they end."""

    title: ClassVar[str] = "variants and early end"
    variants: int = option(
        1,
        "Variants: so many videos of one plan, with the seeds seed, seed + 1 and so on, each "
        "exactly as it is made alone.",
        lines=("va",),
        ge=1,
        le=MAX_VARIANTS,
        advanced=False,
    )
    finish_after: int | None = option(
        None,
        "Finish after so many sections: those made first are a whole video, and the run without "
        "this goes on from there. The original model makes the end of a video first, so this video "
        "is without its beginning and the start image; F1 makes the beginning.",
        lines=("fa",),
        none=0,
        absent="all sections",
        ge=1,
        high=500,
        advanced=False,
    )
    pick: int | None = option(
        None,
        "Pick: the number of the variant to go on with, counted from 1. It is made alone and to "
        "the end, from the sections that it has already.",
        cli=False,
        none=0,
        absent="all variants",
        ge=1,
        le=MAX_VARIANTS,
        advanced=False,
    )

    def seeds(self, seed: int) -> list[int]:
        """Of the variants to be made, in their order; raises FramePackError for one too many."""
        seeds = [(seed + number) % (MAX_SEED + 1) for number in range(self.variants)]
        if self.pick is None:
            return seeds
        if self.pick > self.variants:
            raise FramePackError(
                f"pick: there is no variant {self.pick} of {self.variants}; give a number up to "
                f"{self.variants}, or 0 for all"
            )
        return [seeds[self.pick - 1]]

    @property
    def sections(self) -> int | None:
        """After how many they end; None is all, which a picked one is made with."""
        return self.finish_after if self.pick is None else None


def _spec(help: str, flag: str) -> Any:
    text = f"{help} A section spec: 1:7;;;-1:8 is 7 in section 1 and 8 in the last."
    return str | None, option(None, text, metavar="SPEC", node="", metadata=flag)


SectionOptions: type[Settings] = create_model(
    "SectionOptions",
    __base__=Settings,
    **{leaf.flag: _spec(leaf.option.help, leaf.flag) for leaf in by_section()},
)
"""A section spec for each override that the command line has."""
