"""The section plan: which frames are made in which order, and what each section sees.

Plain integers, no tensors. Time is counted in latent frames; latent 0 is the start image, section s
(0 first) covers latents 1 + s W to (s + 1) W. Indices are the positions that the model's rotary
embedding gets (arXiv 2504.12626).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..runtime.errors import FramePackError

Mode = Literal["framepack", "f1"]

FPS = 30  # the rate FramePack was trained at; seconds mean this and nothing else
WINDOW = 9
MAX_WINDOW = 33
HISTORY = (1, 2, 16)  # latents kept at 1x, 2x and 4x
HISTORY_LENGTH = sum(HISTORY)
SIZE_MULTIPLE = 16
LATENT_STRIDE = 8


@dataclass(frozen=True)
class Section:
    """One section to be made: its place in time and the indices of all that the model sees."""

    index: int
    latent_indices: tuple[int, ...]
    clean_indices: tuple[int, ...]
    clean_2x_indices: tuple[int, ...]
    clean_4x_indices: tuple[int, ...]
    padding: int | None = None  # framepack: how many windows lie between it and the start image


@dataclass(frozen=True)
class Plan:
    """A whole video, its sections in the order in which they are made."""

    mode: Mode
    window: int
    sections: tuple[Section, ...]

    @property
    def latent_frames(self) -> int:
        return 1 + self.window * len(self.sections)

    @property
    def frames(self) -> int:
        return 1 + 4 * self.window * len(self.sections)

    @property
    def seconds(self) -> float:
        return self.frames / FPS

    def frames_of(self, section: Section) -> tuple[int, int]:
        """First and last video frame of a section; frame 0 is the start image."""
        length = 4 * self.window
        return section.index * length + 1, (section.index + 1) * length

    def describe(self, width: int | None = None, height: int | None = None) -> str:
        """What will be made, as text: size and length, then one line a section."""
        size = f"{width}x{height}, " if width and height else ""
        lines = [
            f"{self.mode}: {size}{self.frames} frames, {self.seconds:.2f} s at {FPS} fps, "
            f"{len(self.sections)} sections of {4 * self.window} frames (window {self.window})"
        ]
        for order, section in enumerate(self.sections, 1):
            first, last = self.frames_of(section)
            padding = "" if section.padding is None else f", padding {section.padding}"
            lines.append(
                f"  made {order}: section {section.index}, frames {first}-{last} "
                f"({first / FPS:.2f}-{last / FPS:.2f} s){padding}"
            )
        return "\n".join(lines)


def sections_for_seconds(seconds: float, window: int = WINDOW) -> int:
    """The nearest number of sections, at least 1, for a length in seconds of 30 fps."""
    if not seconds > 0:
        raise FramePackError(f"seconds: {seconds} is not a length; give a number above 0")
    _check_window(window)
    return max(1, round(seconds * FPS / (4 * window)))


def plan_framepack(
    sections: int, window: int = WINDOW, paddings: Sequence[int] | None = None
) -> Plan:
    """Inverted anti-drifting: the last section first, every one between start image and future.

    `paddings` (one a section, in the order made) replaces the default distances to the start.
    """
    _check_counts(sections, window)
    paddings = default_paddings(sections) if paddings is None else tuple(paddings)
    if len(paddings) != sections:
        raise FramePackError(
            f"paddings: {len(paddings)} given for {sections} sections; give one a section, "
            "in the order made (the last section of the video first)"
        )
    for value in paddings:
        if not isinstance(value, int) or value < 0:
            raise FramePackError(f"paddings: {value!r} is not a whole number of 0 or more")
    made = tuple(
        _framepack_section(sections - 1 - order, padding, window)
        for order, padding in enumerate(paddings)
    )
    return Plan("framepack", window, made)


def default_paddings(sections: int) -> tuple[int, ...]:
    """n-1, ..., 0 up to 4 sections; above that 3, 2, ..., 2, 1, 0, as the model was trained."""
    if sections <= 4:
        return tuple(reversed(range(sections)))
    return (3, *[2] * (sections - 3), 1, 0)


def _framepack_section(index: int, padding: int, window: int) -> Section:
    first = 1 + padding * window
    after = first + window
    return Section(
        index=index,
        latent_indices=_indices(first, window),
        clean_indices=(0, after),
        clean_2x_indices=_indices(after + 1, HISTORY[1]),
        clean_4x_indices=_indices(after + 1 + HISTORY[1], HISTORY[2]),
        padding=padding,
    )


def plan_f1(sections: int, window: int = WINDOW) -> Plan:
    """F1: sections in order of time, each after the frames before it."""
    _check_counts(sections, window)
    one, two, four = HISTORY
    layout = {
        "clean_4x_indices": _indices(1, four),
        "clean_2x_indices": _indices(1 + four, two),
        "clean_indices": (0, four + two + one),
        "latent_indices": _indices(1 + HISTORY_LENGTH, window),
    }
    return Plan("f1", window, tuple(Section(index=i, **layout) for i in range(sections)))


def plan_video(mode: Mode, sections: int, window: int = WINDOW) -> Plan:
    """The plan of a mode by name."""
    if mode == "framepack":
        return plan_framepack(sections, window)
    if mode == "f1":
        return plan_f1(sections, window)
    raise FramePackError(f"mode: {mode!r} is unknown; use 'framepack' or 'f1'")


def check_size(width: int, height: int) -> None:
    """Refuse a frame size that the patchifier cannot cut, naming the nearest one it can."""
    if all(size > 0 and size % SIZE_MULTIPLE == 0 for size in (width, height)):
        return
    nearest = [max(1, round(size / SIZE_MULTIPLE)) * SIZE_MULTIPLE for size in (width, height)]
    raise FramePackError(
        f"size: {width}x{height} (width x height) is not a multiple of {SIZE_MULTIPLE} on both "
        f"sides; use {nearest[0]}x{nearest[1]}"
    )


def _indices(first: int, count: int) -> tuple[int, ...]:
    return tuple(range(first, first + count))


def _check_counts(sections: int, window: int) -> None:
    if not isinstance(sections, int) or sections < 1:
        raise FramePackError(f"sections: {sections!r} is not a whole number of 1 or more")
    _check_window(window)


def _check_window(window: int) -> None:
    if not isinstance(window, int) or not 1 <= window <= MAX_WINDOW:
        raise FramePackError(
            f"window: {window!r} is not a whole number from 1 to {MAX_WINDOW}; FramePack and F1 "
            f"were trained at {WINDOW}"
        )
