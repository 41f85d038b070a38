"""What to make and how, as one value: a video or an edited frame with all options of its run.

Nothing here needs torch, so that `--help` stays instant.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field

from ..parsing.prompt_lines import line_options, parse_options
from ..runtime.codecs import ENCODERS
from ..runtime.errors import FramePackError
from ..runtime.options import NonEmpty, Settings, leaves, option, updated
from ..sampling.options import (
    DRAFT_STEPS,
    AnchorOption,
    BlendOption,
    DraftOption,
    DropOption,
    EndImageOptions,
    LengthOptions,
    LoopOption,
    PaddingOption,
    SamplingOptions,
    SectionOptions,
    StartPictureOption,
    VariantOptions,
    WindowOption,
)
from ..sampling.plan import END_LORA, FPS, Mode
from ..sampling.sections import MAX_SIZE, SIZE_MULTIPLE
from ..sampling.step_cache import StepCaches
from .options import (
    DecodingOptions,
    ExecutionOptions,
    Fp8Options,
    LoraOptions,
    ModelOptions,
    ModeOption,
)

LEDGER_FOLDER = ".ledger"  # in the output folder, where nothing else was asked for
Pixels = Annotated[int, Field(gt=0)]
if TYPE_CHECKING:
    Codec = str
else:
    Codec = Literal[tuple(ENCODERS)]
_SIDE: dict[str, Any] = {
    **{"cli": False, "unit": "pixels", "advanced": False, "ge": 1},
    **{"initial": 640, "low": SIZE_MULTIPLE, "high": MAX_SIZE, "step": SIZE_MULTIPLE},
}
OutputType = Literal["video", "images", "latent", "both", "latent_images"]
WITH_VIDEO = ("video", "both")


class PromptOptions(WindowOption, ModeOption):
    """What is shown."""

    title: ClassVar[str] = "prompt and image"
    prompt: str | None = option(
        None,
        "Prompt: what happens in the video, or in its sections: 0:walks;;;1-2:sits;;;-1:waves, "
        "where 0 is the first and -1 the last section. The others take that of section 0. Or with "
        "times: [0s: walks] [2.5s: sits].",
        metavar="TEXT",
        metadata="prompt",
    )
    negative_prompt: str | None = option(
        None,
        "Negative prompt: what to avoid. Needs another CFG scale than 1.",
        lines=("n",),
        metadata="negative_prompt",
    )
    custom_system_prompt: str | None = option(
        None, "System prompt for LLaMA.", metadata="custom_system_prompt"
    )
    image_path: NonEmpty | None = option(
        None,
        "Start image, or one for each of some sections, as for the prompt.",
        lines=("i",),
        metavar="FILE",
    )
    video_size: tuple[Pixels, Pixels] | None = option(
        None,
        "Size, height before width, in multiples of 16; the image is scaled and cropped to it.",
        absent="FramePack's 640 size nearest in shape to the image; 64 64 for toyworld",
        metavar=("H", "W"),
        reference=(256, 256),
    )
    width: int | None = option(None, "Width of the video.", lines=("w",), **_SIDE)
    height: int | None = option(None, "Height of the video.", lines=("h",), **_SIDE)

    @property
    def mode(self) -> Mode:
        """Which of the two models."""
        return "f1" if self.f1 else "framepack"

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) as far as given."""
        if self.video_size is None and (self.width is None) != (self.height is None):
            raise FramePackError("--w and --h: one of them is missing; give both")
        height, width = self.video_size or (None, None)
        width, height = self.width or width, self.height or height
        return None if width is None or height is None else (width, height)


class VideoGuidance(
    *(PaddingOption, BlendOption, EndImageOptions, LoopOption, AnchorOption, SectionOptions),
    *(StartPictureOption, DropOption, DraftOption),
):
    """What guides the sections of a video, and its end."""

    title: ClassVar[str] = "guidance of sections"
    image_mask_path: NonEmpty | None = option(
        None, "Start image mask: black parts are hidden.", lines=("im",), metavar="FILE"
    )
    end_image_path: NonEmpty | None = option(
        None,
        "End image: what the video ends with. F1 needs a LoRA that was trained with end frames.",
        lines=("ei",),
        metavar="FILE",
    )


class OneFrameOptions(Settings):
    """An edited picture instead of a video."""

    title: ClassVar[str] = "one frame"
    about: ClassVar[str] = "an edited picture instead of a video"
    one_frame_inference: NonEmpty | None = option(
        None,
        "One frame: default, or any of no_2x,no_4x,no_post,target_index=1,control_index=0;10.",
        lines=("of",),
        metavar="OPTIONS",
        metadata="one_frame_inference",
    )
    control_image_path: tuple[NonEmpty, ...] = option(
        (),
        "Control images: pictures that the edit starts from. The start image is then only seen by "
        "SigLIP (default for it: the first of these).",
        lines=("ci",),
        metavar="FILE",
    )
    control_image_mask_path: tuple[NonEmpty, ...] = option(
        (),
        "Control image masks, one for each, black where it is hidden (default: its transparency).",
        lines=("cim",),
        metavar="FILE",
    )
    one_frame_auto_resize: bool = option(
        False,
        "Automatic size: the shape of the first control image, of about the pixels of the size "
        "that is given.",
    )


class LedgerOptions(Settings):
    """Where finished sections are kept."""

    save_path: Path = option(Path("output"), "Output folder.", metavar="DIR")
    ledger: Path | None = option(
        None,
        "Ledger: the folder in which each finished section is kept, so that the same command "
        "resumes after a stop.",
        absent=f"{LEDGER_FOLDER} in the output folder",
        metavar="DIR",
    )

    @property
    def ledger_folder(self) -> Path:
        """The folder named, or that in the output folder."""
        return self.ledger or self.save_path / LEDGER_FOLDER


class OutputOptions(LedgerOptions):
    """Which files are written."""

    title: ClassVar[str] = "output"
    no_ledger: bool = option(False, "No ledger: keep no sections to resume from.")
    output_type: OutputType = option("video", "Output type: what is written.")
    fps: float | None = option(
        None,
        f"Frames a second of the video file; FramePack makes motion of {FPS}.",
        absent=f"{FPS}",
        initial=float(FPS),
        gt=0.0,
        le=1000.0,
        low=1.0,
        high=240.0,
        step=1.0,
        advanced=False,
    )
    crf: int = option(
        16,
        "CRF: quality, lower is better and larger; 16 shows no loss.",
        ge=1,
        le=51,
        advanced=False,
    )
    codec: Codec = option("libx264", "Codec: the video encoder; libx264 plays everywhere.")
    audio: Path | None = option(
        None,
        "Audio: a file whose sound the video gets, a video too; cut to the video's length. Frames "
        "that are left out take their sound along.",
        metavar="FILE",
        node="",
    )
    hand_on: bool = option(
        False,
        "Hand on: also the last frame as NAME_last.png, its latent as NAME_last_latent.safetensors "
        "and the list of sections as NAME_sections.json.",
        node="",
    )
    no_metadata: bool = option(False, "No metadata: leave prompt and settings out of the files.")


class JobOptions(Settings):
    """What a video and an edited frame have in common."""

    models: ModelOptions = ModelOptions()
    fp8: Fp8Options = Fp8Options()
    execution: ExecutionOptions = ExecutionOptions()
    loras: LoraOptions = LoraOptions()
    prompt: PromptOptions = PromptOptions()
    sampling: SamplingOptions = SamplingOptions()
    step_cache: StepCaches = StepCaches()
    decoding: DecodingOptions = DecodingOptions()
    output: OutputOptions = OutputOptions()

    @property
    def noted(self) -> dict[str, Any]:
        """What files note of it by musubi-tuner's names: how it is sampled, and what was given."""
        found = [leaf for leaf in leaves(type(self)) if leaf.option.metadata]
        found = [x for x in found if x.group is SamplingOptions or x.on(self)]
        return {"mode": self.prompt.mode} | {x.option.metadata: x.of(self) for x in found}


NOT_OF_F1 = ("latent_paddings",)
ENDS = ("end_image_path", "loop")  # not of F1 as it was released
V = TypeVar("V", bound="VideoJob")


class VideoJob(JobOptions):
    """A video."""

    length: LengthOptions = LengthOptions()
    guidance: VideoGuidance = VideoGuidance()
    variants: VariantOptions = VariantOptions()

    def without_ignored(self: V) -> V:
        """Without what F1, which makes a video forwards, has no place for."""
        if not self.prompt.f1:
            return self
        plain = VideoGuidance()
        return updated(self, {("guidance", flag): getattr(plain, flag) for flag in self.not_of_f1})

    def drafted(self: V) -> V:
        """With few steps and a step cache where a draft is wanted."""
        if self.guidance.draft == "off":
            return self
        steps = min(self.sampling.infer_steps, DRAFT_STEPS)
        return updated(
            self, {("sampling", "infer_steps"): steps, ("step_cache",): self.step_cache.quick()}
        )

    @property
    def not_of_f1(self) -> tuple[str, ...]:
        """What F1 has no place for; a LoRA may have taught it to see what a video ends with."""
        ends = any(getattr(self.guidance, flag) for flag in ENDS)
        return (*NOT_OF_F1, *ENDS) if ends and not self.loras.see_end else NOT_OF_F1


class EditJob(JobOptions):
    """One edited frame."""

    one_frame: OneFrameOptions = OneFrameOptions()


class AnyJob(VideoJob, EditJob):
    """All options of both, of which --one_frame_inference decides which is meant."""

    @classmethod
    def of(cls, job: JobOptions) -> AnyJob:
        """A job that has only the options of a video, or more than those of both."""
        return _part(cls, job)

    def decided(self) -> VideoJob | EditJob:
        """The one that is meant; raises FramePackError for others' options."""
        if self.one_frame.one_frame_inference is not None:
            return _part(EditJob, self)
        for flag in ("control_image_path", "control_image_mask_path"):
            if getattr(self.one_frame, flag):
                raise FramePackError(
                    f"--{flag} is for an edited frame; add --one_frame_inference default, or "
                    "take it out"
                )
        return _part(VideoJob, self).without_ignored().drafted()

    def unused(self) -> Iterator[str]:
        """What was given but has no effect, and why."""
        given = {leaf.flag for leaf in leaves(AnyJob) if leaf.on(self)}
        for flags, reason in self._without_effect():
            yield from (f"--{flag} has no effect {reason}" for flag in flags if flag in given)

    def _without_effect(self) -> Iterator[tuple[Iterable[str], str]]:
        """The rules: flags that do nothing with the other options as they are."""
        if self.sampling.guidance_scale == 1:
            yield ("negative_prompt", "guidance_rescale"), "while --guidance_scale is 1"
        for _, cache in self.step_cache:
            switch, *others = _flags(type(cache))
            if others and not cache.switch().on(cache):
                yield others, f"without --{switch}"
        if self.one_frame.one_frame_inference is not None:
            only = set(_flags(VideoJob)) - set(_flags(EditJob))
            flags = [flag for flag in _flags(VideoJob) if flag in only]
            yield [*flags, "audio", "hand_on"], "with --one_frame_inference"
            return
        yield ("one_frame_auto_resize",), "without --one_frame_inference"
        ignored = self.not_of_f1 if self.prompt.f1 else ()
        yield NOT_OF_F1 if self.prompt.f1 else (), "with --f1, which makes a video forwards"
        if set(ENDS) <= set(ignored):
            flags = (*ENDS, *_flags(EndImageOptions))
            yield flags, f"with --f1, which makes a video forwards; {END_LORA}"
        elif self.guidance.end_image_path is None:
            yield _flags(EndImageOptions), "without --end_image_path"
        if self.prompt.image_path is not None:
            yield ("start_picture",), "with --image_path; give one of them"
        elif self.guidance.start_picture is not None:
            yield ("image_mask_path",), "with --start_picture"
        if self.output.no_ledger:
            yield ("ledger",), "with --no_ledger"
        if self.output.output_type not in WITH_VIDEO:
            yield ("audio",), f"with --output_type {self.output.output_type}"
        if self.length.video_sections is not None:
            yield ("video_seconds",), "with --video_sections; give one of them"

    def with_line(self, line: Mapping[str, Any]) -> AnyJob:
        """This job with the options of a prompt line, by their flags, in the place of its own."""
        values = {flag: value for flag, value in line.items() if (flag, value) != ("prompt", "")}
        if values.keys() & set(_LENGTHS):  # said in one way it replaces what was said in the other
            values = dict.fromkeys(_LENGTHS) | values
        paths = {leaf.flag: leaf.path for leaf in leaves(AnyJob)}
        return updated(self, {paths[flag]: value for flag, value in values.items()})


_LENGTHS = tuple(leaf.flag for leaf in leaves(LengthOptions))
LINE_OPTIONS = line_options(AnyJob)


def parse_prompt_line(line: str) -> dict[str, Any]:
    """What a line of `framepack batch` or `framepack interactive` sets, by the flags' names."""
    return parse_options(line, LINE_OPTIONS)


def _flags(kind: type[Settings]) -> list[str]:
    return [leaf.flag for leaf in leaves(kind)]


J = TypeVar("J", bound=JobOptions)


def _part(kind: type[J], job: JobOptions) -> J:
    """A job of a kind with those groups of another that both have."""
    return kind(**{n: getattr(job, n) for n in kind.model_fields if n in job.model_fields_set})
