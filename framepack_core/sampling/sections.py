"""The planners: a length and a mode to a plan of sections."""

from __future__ import annotations

from collections.abc import Sequence

from ..runtime.errors import FramePackError
from .plan import FPS, HISTORY, HISTORY_LENGTH, Mode, Plan, Section, index_run

WINDOW = 9
MAX_WINDOW = 33
SIZE_MULTIPLE = 16
MAX_SIDE = 8192  # pixels, so that a slip of the finger does not take all memory
MAX_SECTIONS = 100_000  # more than a day of video, for the same reason
MAX_SIZE = 4096  # of a side that nodes offer
LATENT_STRIDE = 8
LATENT_CHANNELS = 16
MAX_DIGITS = 6  # of a number in a text


def sections_for_seconds(seconds: float, window: int = WINDOW) -> int:
    """The nearest number of sections, at least 1, for a length in seconds of 30 fps."""
    if not seconds > 0:
        raise FramePackError(f"seconds: {seconds} is not a length; give a number above 0")
    _check_window(window)
    return max(1, round(seconds * FPS / (4 * window)))


def sections_for_frames(frames: int, window: int = WINDOW) -> int:
    """The number of whole sections in a length of video frames that counts the start image."""
    _check_window(window)
    sections = (frames - 1) // (4 * window)
    if sections < 1:
        raise FramePackError(
            f"frames: {frames} is less than one section of window {window}; "
            f"give {4 * window + 1} or more"
        )
    return sections


def sections_to_hold(frames: int, window: int = WINDOW) -> int:
    """Sections of the shortest video that has so many frames."""
    _check_window(window)
    return max(1, -(-(frames - 1) // (4 * window)))


def parse_paddings(text: str, name: str = "latent_paddings") -> tuple[int, ...]:
    """Paddings such as "3,2,1,0", in the order made: the last section of the video first."""
    numbers = [number.strip() for number in text.split(",")]
    for place, number in enumerate(numbers, 1):
        if not number.isdecimal() or len(number) > MAX_DIGITS:
            raise FramePackError(
                f"{name}: {number!r}, the {place}. of {text!r}, is not a whole number of 0 or "
                "more; use a list such as 3,2,1,0"
            )
    return tuple(int(number) for number in numbers)


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
    made = tuple(
        Section.framepack(sections - 1 - order, padding, window)
        for order, padding in enumerate(paddings)
    )
    return Plan("framepack", window, made)


def default_paddings(sections: int) -> tuple[int, ...]:
    """n-1, ..., 0 up to 4 sections; above that 3, 2, ..., 2, 1, 0, as the model was trained."""
    if sections <= 4:
        return tuple(reversed(range(sections)))
    return (3, *[2] * (sections - 3), 1, 0)


def plan_f1(sections: int, window: int = WINDOW) -> Plan:
    """F1: sections in order of time, each after the frames before it."""
    _check_counts(sections, window)
    one, two, four = HISTORY
    layout = {
        "clean_4x_indices": index_run(1, four),
        "clean_2x_indices": index_run(1 + four, two),
        "clean_indices": (0, four + two + one),
        "latent_indices": index_run(1 + HISTORY_LENGTH, window),
    }
    return Plan("f1", window, tuple(Section(index=i, **layout) for i in range(sections)))


def plan_video(
    mode: Mode, sections: int, window: int = WINDOW, paddings: Sequence[int] | None = None
) -> Plan:
    """The plan of a mode by name; only framepack has paddings."""
    if mode == "framepack":
        return plan_framepack(sections, window, paddings)
    if mode == "f1":
        if paddings is not None:
            raise FramePackError("paddings: f1 has none; leave them out")
        return plan_f1(sections, window)
    raise FramePackError(f"mode: {mode!r} is unknown; use 'framepack' or 'f1'")


def check_size(width: int, height: int) -> None:
    """Refuse a frame size that the patchifier cannot cut, naming the nearest one it can."""
    if max(width, height) > MAX_SIDE:
        raise FramePackError(
            f"size: {width}x{height} (width x height) is more than {MAX_SIDE} pixels on a side; "
            "FramePack was made for about 640x640"
        )
    if all(size > 0 and size % SIZE_MULTIPLE == 0 for size in (width, height)):
        return
    nearest = [max(1, round(size / SIZE_MULTIPLE)) * SIZE_MULTIPLE for size in (width, height)]
    raise FramePackError(
        f"size: {width}x{height} (width x height) is not a multiple of {SIZE_MULTIPLE} on both "
        f"sides; use {nearest[0]}x{nearest[1]}"
    )


def _check_counts(sections: int, window: int) -> None:
    if not isinstance(sections, int) or sections < 1:
        raise FramePackError(f"sections: {sections!r} is not a whole number of 1 or more")
    if sections > MAX_SECTIONS:
        raise FramePackError(
            f"sections: {sections} are more than {MAX_SECTIONS}, which last longer than a day; "
            "give a shorter length"
        )
    _check_window(window)


def _check_window(window: int) -> None:
    if not isinstance(window, int) or not 1 <= window <= MAX_WINDOW:
        raise FramePackError(
            f"window: {window!r} is not a whole number from 1 to {MAX_WINDOW}; FramePack and F1 "
            f"were trained at {WINDOW}"
        )
