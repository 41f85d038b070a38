"""A section plan as data: which frames are made in which order, and what each section sees.

Integers and the host's handles, no tensors. Time is counted in latent frames; latent 0 is the start
image, section s (0 first) covers latents 1 + s W to (s + 1) W. Indices are the positions that the
model's rotary embedding gets (arXiv 2504.12626).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..parsing.overrides import Overrides
from ..parsing.section_spec import parse_spec, section_range
from ..parsing.timeline import Timeline
from ..parsing.timestamps import is_timed, prompts_by_section
from ..runtime.errors import FramePackError
from ..runtime.options import validate

Mode = Literal["framepack", "f1"]
EndPolicy = Literal["persistent", "first_section"]
Direction = Literal["forward", "backward"]
Handle = Literal["prompt", "image", "image_embeds"]
Encode = Callable[[Any], Any]

FPS = 30  # the rate FramePack was trained at; seconds mean this and nothing else
HISTORY = (1, 2, 16)  # latents kept at 1x, 2x and 4x
HISTORY_LENGTH = sum(HISTORY)
FARTHEST = 3  # windows between a section of F1 and its end image: the most of default paddings
TIME_SCALE = 1000.0  # the timestep of the noise level 1
GUIDANCE = 10.0  # the distilled guidance scale that the model was trained for
LABEL = 40  # characters of a prompt that a description shows
END_LORA = "apply a LoRA of F1 that was trained with end frames (see docs/training.md)"
_NAMES = {(name,): name for name in Overrides.model_fields}  # what errors call them


class Section(Overrides):
    """One section to be made: its place in time and the indices of all that the model sees.

    What overrides the run's may be None. An image stands before the section, in the start image's
    place: at padding 0 the section continues it, else it is a reference.
    """

    index: int
    latent_indices: tuple[int, ...]
    clean_indices: tuple[int, ...]
    clean_2x_indices: tuple[int, ...]
    clean_4x_indices: tuple[int, ...]

    @classmethod
    def framepack(cls, index: int, padding: int, window: int) -> Section:
        """A section of inverted anti-drifting: `padding` empty windows after the start image."""
        validate(Overrides, {"padding": padding}, "padding", {("padding",): "paddings"})
        first = 1 + padding * window
        after = first + window
        return cls(
            index=index,
            latent_indices=index_run(first, window),
            clean_indices=(0, after),
            clean_2x_indices=index_run(after + 1, HISTORY[1]),
            clean_4x_indices=index_run(after + 1 + HISTORY[1], HISTORY[2]),
            padding=padding,
        )


@dataclass(frozen=True)
class EndImage:
    """What the video should end with; `image` is the host's handle, then its latent.

    image: None is the picture that the video itself begins with, so that it loops.
    policy: "persistent" leaves the latent behind the last section, in sight of all that are made
    later, as musubi-tuner; "first_section" shows it to the section made first alone, as diffusers.
    F1 sees it ahead of every section. strength multiplies the latent: 0 is no end image.
    """

    image: Any
    policy: EndPolicy = "persistent"
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.policy not in ("persistent", "first_section"):
            raise FramePackError(
                f"end image: policy {self.policy!r} is unknown; use 'persistent' or 'first_section'"
            )
        if not 0 <= self.strength <= 1:
            raise FramePackError(f"end image: strength {self.strength} is not from 0 to 1")

    @property
    def name(self) -> str:
        """What errors call it."""
        return "loop" if self.image is None else "end image"


@dataclass(frozen=True)
class Plan:
    """A whole video, its sections in the order in which they are made.

    existing: latent frames that are there before the run, which is the start image or a video to
    extend; with `backward` the sections come before that video, else after it. whole: how many
    sections the video has of which these are the first made; None is all of them.
    """

    mode: Mode
    window: int
    sections: tuple[Section, ...]
    end: EndImage | None = None
    existing: int = 1
    backward: bool = False
    whole: int | None = None

    def __post_init__(self) -> None:
        if self.mode == "f1" and self.end is not None and self.end.policy != "persistent":
            raise FramePackError(
                f"end image: policy {self.end.policy!r} is for the framepack mode, which makes the "
                "last section first; use 'persistent' with F1"
            )
        if self.mode == "f1" and self.backward:
            raise FramePackError(
                "direction: F1 only extends forward; use the framepack mode and model to extend "
                "backward"
            )
        if self.backward and self.end is not None:
            raise FramePackError(
                f"{self.end.name}: a video extended backward has its end already; take the "
                f"{self.end.name} out"
            )
        if self.loops and self.existing > 1:
            raise FramePackError(
                "loop: only a video that is made whole can lead into its own start; take the loop "
                "out, or give the existing video's first frame as end image"
            )

    @property
    def loops(self) -> bool:
        """Whether the last section leads into the first."""
        return self.end is not None and self.end.image is None

    @property
    def closes(self) -> bool:
        """Whether it loops and is made to its end."""
        return self.loops and len(self.sections) == self.last + 1

    @property
    def goal(self) -> EndImage | None:
        """The end, with the image that section 0 has of its own where a loop leads to that."""
        own = next((s.image for s in self.sections if s.index == 0), None)
        if self.end is None or not self.loops or own is None:
            return self.end
        return replace(self.end, image=own)

    @property
    def begins(self) -> bool:
        """Whether what the video begins with is made, which in the framepack mode comes last."""
        return self.mode == "f1" or any(section.index == 0 for section in self.sections)

    @property
    def latent_frames(self) -> int:
        missing = 0 if self.begins else 1 if self.backward else self.existing
        return self.existing - missing + self.window * len(self.sections)

    @property
    def frames(self) -> int:
        """Of the video: four a latent, and one of the start image's unless it loops."""
        return 4 * (self.latent_frames - 1) + self._shown

    @property
    def _shown(self) -> int:
        """Frames of the start image; in a loop the last frame is it already."""
        return 0 if self.closes else 1

    @property
    def seconds(self) -> float:
        return self.frames / FPS

    def frames_of(self, section: Section) -> tuple[int, int]:
        """First and last video frame of a section; frame 0 is the start image, if it is shown."""
        length = 4 * self.window
        if not self.begins:  # its first latent stands for one frame, as the start image's does
            earlier = section.index - min(other.index for other in self.sections)
            return max(0, earlier * length - 3), (earlier + 1) * length - 4
        before = 0 if self.backward else 4 * (self.existing - 1)
        first = self._shown + before + section.index * length
        return first, first + length - 1

    def first(self, made: int | None) -> Plan:
        """The plan of the sections that are made first, which are a whole video too; None is all.

        In the framepack mode they are its end: a video without its beginning and the start image,
        and forward without the video that it extends.
        """
        whole = self.whole or len(self.sections)
        made = len(self.sections) if made is None else made
        end = self.end if made >= whole else self.goal  # which may be gone with section 0
        return replace(self, sections=self.sections[:made], whole=whole, end=end)

    @property
    def last(self) -> int:
        """The index of the last section of the whole video."""
        return (self.whole or len(self.sections)) - 1

    def with_overrides(self, sections: str, **own: Any) -> Plan:
        """Give sections ("0", "-1", "0-2", by time) overrides of the run; None leaves it."""
        chosen = section_range(sections, len(self.sections))
        given = validate(Overrides, own, "section", _NAMES).given()
        if "padding" in given and self.mode != "framepack":
            raise FramePackError(f"padding: {self.mode} has none; leave it out")

        def change(section: Section) -> Section:
            if "padding" not in given:
                return section.model_copy(update=given)
            moved = Section.framepack(section.index, given["padding"], self.window)
            return moved.model_copy(update={**section.given(), **given})

        return self._each(lambda s: change(s) if s.index in chosen else s)

    def with_timeline(self, timeline: Timeline) -> Plan:
        """The plan with everything that sections have; its handles are texts and file names."""
        if len(timeline.sections) > len(self.sections):
            raise FramePackError(
                f"timeline: {len(timeline.sections)} sections for a video of "
                f"{len(self.sections)}; take the last ones out, or make the video longer"
            )
        plan = self
        for index, section in enumerate(timeline.sections):
            own = section.model_dump(exclude_none=True)
            if own:
                plan = plan.with_overrides(str(index), image_embeds=section.image, **own)
        return plan

    def texts(self, text: str | None, name: str) -> list[str | None]:
        """What a section spec, or prompts with times, give every section in order of time.

        All None for None. name: what errors call the input.
        """
        if text is not None and is_timed(text):
            seconds = 4 * self.window / FPS
            return list(prompts_by_section(text, len(self.sections), seconds))
        return parse_spec(text, name).resolve(len(self.sections))

    def scheduled(self, texts: Sequence[Any], *fields: Handle, run: str | None = None) -> Plan:
        """Give every section its text; those with the run's, by default the first one, keep that.

        A text may be a Blend too.
        """
        run = texts[0] if run is None and texts else run
        return self._each(
            lambda s: (
                s
                if texts[s.index] == run
                else s.model_copy(update=dict.fromkeys(fields, texts[s.index]))
            )
        )

    def with_end(self, image: Any, policy: EndPolicy = "persistent", strength: float = 1.0) -> Plan:
        """The plan of a video that should end with an image.

        F1 sees it where it is, behind the last section, but no further away than FARTHEST.
        """
        if self.loops:
            raise _two_ends()
        return self._ending(EndImage(image, policy, strength))

    def _ending(self, end: EndImage) -> Plan:
        plan = replace(self, end=end)
        return plan._each(plan._facing_end) if self.mode == "f1" else plan

    def _facing_end(self, section: Section) -> Section:
        """A section of F1 with a place for the end image, if there is anything of it to see."""
        assert self.end is not None
        own = section.clean_indices[: 1 + HISTORY[0]]
        if self.end.strength:
            between = min(len(self.sections) - 1 - section.index, FARTHEST)
            own = (*own, section.latent_indices[-1] + 1 + between * self.window)
        return section.model_copy(update={"clean_indices": own})

    def check_end(self, trained: bool) -> None:
        """Refuse an end image for F1 as it was released; trained: a LoRA taught it to see one."""
        if self.mode == "f1" and self.end is not None and not trained:
            raise FramePackError(
                f"{self.end.name}: F1 makes a video forwards and never sees what comes after; take "
                f"the {self.end.name} out, use the framepack mode and model, or {END_LORA}"
            )

    def with_loop(self) -> Plan:
        """The plan of a video whose last section leads into its first."""
        if self.end is not None and not self.loops:
            raise _two_ends()
        return self._ending(EndImage(None))

    def extending(self, existing: int, direction: Direction = "forward") -> Plan:
        """The plan of sections after or before a video of `existing` latent frames."""
        if direction not in ("forward", "backward"):
            raise FramePackError(f"direction: {direction!r} is unknown; use forward or backward")
        if existing < 2:
            raise FramePackError(f"extend: a video of {existing} latent frames; give 2 or more")
        return replace(self, existing=existing, backward=direction == "backward")

    def handles(self, field: Handle) -> list[Any]:
        """What the sections have of their own in a field, in order of time, each once."""
        found = [getattr(s, field) for s in sorted(self.sections, key=lambda s: s.index)]
        if field == "image" and self.end is not None:
            found.append(self.end.image)
        return list(dict.fromkeys(handle for handle in found if handle is not None))

    def encoded(self, **encode: Encode) -> Plan:
        """The plan with its handles put through functions of the host, by field."""

        def change(section: Section) -> Section:
            own = section.given()
            made = {name: encode[name](own[name]) for name in encode if name in own}
            return section.model_copy(update=made)

        plan = self._each(change)
        if plan.end is None or plan.loops or "image" not in encode:
            return plan
        return replace(plan, end=replace(plan.end, image=encode["image"](plan.end.image)))

    def _each(self, change: Callable[[Section], Section]) -> Plan:
        return replace(self, sections=tuple(change(section) for section in self.sections))

    def describe(self, width: int | None = None, height: int | None = None) -> str:
        """What will be made, as text: size and length, then one line a section."""
        size = f"{width}x{height}, " if width and height else ""
        lines = [
            f"{self.mode}: {size}{self.frames} frames, {self.seconds:.2f} s at {FPS} fps, "
            f"{len(self.sections)} sections of {4 * self.window} frames (window {self.window})"
        ]
        if self.existing > 1:
            place = "before" if self.backward else "after"
            lines[0] += f", {place} {4 * self.existing - 3} existing frames"
        if not self.begins:
            lines[0] += ", without the beginning of the video"
        for order, section in enumerate(self.sections, 1):
            first, last = self.frames_of(section)
            lines.append(
                f"  made {order}: section {section.index}, frames {first}-{last} "
                f"({first / FPS:.2f}-{last / FPS:.2f} s){_describe_own(section)}"
            )
        if self.loops:
            lines.append("  a loop: the last section leads into the first")
        elif self.end is not None:
            policy = self.end.policy.replace("_", " ")
            lines.append(
                f"  end image {_label(self.end.image)}, {policy}, strength {self.end.strength:g}"
            )
        return "\n".join(lines)

    def listed(self) -> list[dict[str, Any]]:
        """The sections in order of time, as JSON can hold them: frames, order made, what is own.

        Texts are whole; of what is no text its `label`, or None. frames: first and last.
        """
        found = []
        for order, section in enumerate(self.sections, 1):
            own = section.given()
            own.pop("image_embeds", None)
            for name in own.keys() & {"prompt", "image"}:
                own[name] = _text_of(own[name])
            place = {"section": section.index, "frames": self.frames_of(section), "made": order}
            found.append(place | own)
        return sorted(found, key=lambda entry: entry["section"])


def _two_ends() -> FramePackError:
    return FramePackError(
        "loop: a loop ends with the picture that it begins with; take the loop or the end image out"
    )


def _describe_own(section: Section) -> str:
    own = section.given()
    own |= {name: _label(own[name]) for name in ("prompt", "image") if name in own}
    own.pop("image_embeds", None)
    titles = {name: name.replace("_", " ").replace("lora", "LoRA") for name in own}
    return "".join(f", {titles[name]} {value}" for name, value in own.items())


def _label(handle: Any) -> str | None:
    """A text itself; of a host's object its `label`, if it has one; None of None."""
    if handle is None:
        return None
    label = _text_of(handle)
    if label is None:
        return "of its own"
    return repr(label if len(label) <= LABEL else f"{label[:LABEL]}...")


def _text_of(handle: Any) -> str | None:
    return handle if isinstance(handle, str) else getattr(handle, "label", None)


def index_run(first: int, count: int) -> tuple[int, ...]:
    return tuple(range(first, first + count))
