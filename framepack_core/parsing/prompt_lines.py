r"""Prompts with options behind them, one a line: `a cat --w 640 --h 480 --d 42`.

An option is `--` and a letter at the beginning of a word, whatever its case, and its value reaches
up to the next one; of an option given twice the last counts. `\--` is `--` in a text. A file may
have blank lines, and lines that begin with `#`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from ..runtime.errors import FramePackError
from ..runtime.files import read_text, split_lines
from ..runtime.options import MAX_SEED

_OPTION = re.compile(r"(?:^|(?<=\s))--(?=[A-Za-z])")
_ESCAPED = re.compile(r"(?<!\S)\\--")


@dataclass(frozen=True)
class PromptLine:
    """A line of a batch; None is what the command line says, whose names the fields have."""

    prompt: str
    width: int | None = None
    height: int | None = None
    video_seconds: float | None = None
    video_sections: int | None = None
    seed: int | None = None
    infer_steps: int | None = None
    guidance_scale: float | None = None
    flow_shift: float | None = None
    negative_prompt: str | None = None
    image_path: str | None = None
    image_mask_path: str | None = None
    end_image_path: str | None = None
    control_image_path: tuple[str, ...] | None = None
    control_image_mask_path: tuple[str, ...] | None = None
    one_frame_inference: str | None = None
    magcache_retention_ratio: float | None = None
    magcache_threshold: float | None = None
    magcache_k: int | None = None

    def __post_init__(self) -> None:
        if self.video_seconds is not None and self.video_sections is not None:
            raise FramePackError("--f and --vs both say how long the video is; give one of them")

    def settings(self, video_size: tuple[int, int] | None = None) -> dict[str, Any]:
        """What the line sets, by the names of the command line's options, which it replaces.

        video_size: the command line's (height, width), for a line with only one of them.
        """
        given = given_fields(self)
        width, height = given.pop("width", None), given.pop("height", None)
        if width or height:
            if video_size is None and not (width and height):
                raise FramePackError("--w and --h: one of them is missing; give both")
            default_height, default_width = video_size or (height, width)
            given["video_size"] = [height or default_height, width or default_width]
        if self.video_seconds is not None:
            given["video_sections"] = None
        if self.video_sections is not None:
            given["video_seconds"] = None
        return given


def given_fields(line: Any) -> dict[str, Any]:
    """The fields of a dataclass that are set."""
    pairs = ((field.name, getattr(line, field.name)) for field in fields(line))
    return {name: value for name, value in pairs if value is not None}


class Option(NamedTuple):
    """The field that an option sets, how its value is read, and whether it may be repeated."""

    field: str
    read: Callable[[str], Any]
    repeats: bool = False


def _number(kind: type, expected: str, accepts: Callable[[Any], bool]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not accepts(value):
            raise ValueError(f"is not {expected}")
        return value

    return read


def _path(text: str) -> str:
    if not text:
        raise ValueError("is no path")
    return text


def _one_frame(text: str) -> str:
    if not text:
        raise ValueError("says nothing; use default for one frame without options")
    return text


COUNT = _number(int, "a whole number of 1 or more", lambda x: x >= 1)
SCALE = _number(float, "a number of 0 or more", lambda x: 0 <= x < math.inf)
ABOVE_ZERO = _number(float, "a number above 0", lambda x: 0 < x < math.inf)
RATIO = _number(float, "a number from 0 to 1", lambda x: 0 <= x <= 1)
SEED = _number(int, f"a whole number from 0 to {MAX_SEED}", lambda x: 0 <= x <= MAX_SEED)

SHARED_OPTIONS = {
    "w": Option("width", COUNT),
    "h": Option("height", COUNT),
    "d": Option("seed", SEED),
    "vs": Option("video_sections", COUNT),
    "n": Option("negative_prompt", str),
    "i": Option("image_path", _path),
    "ei": Option("end_image_path", _path),
    "ci": Option("control_image_path", _path, repeats=True),
    "cim": Option("control_image_mask_path", _path, repeats=True),
    "of": Option("one_frame_inference", _one_frame),
}
LINE_OPTIONS = {
    **SHARED_OPTIONS,
    "f": Option("video_seconds", ABOVE_ZERO),
    "s": Option("infer_steps", COUNT),
    "g": Option("guidance_scale", SCALE),
    "l": Option("guidance_scale", SCALE),
    "fs": Option("flow_shift", ABOVE_ZERO),
    "im": Option("image_mask_path", _path),
    "mcrr": Option("magcache_retention_ratio", RATIO),
    "mct": Option("magcache_threshold", SCALE),
    "mck": Option("magcache_k", COUNT),
}


def parse_prompt_line(line: str) -> PromptLine:
    """Read a line of `framepack batch` or `framepack interactive`; errors name the option."""
    return PromptLine(**parse_options(line, LINE_OPTIONS))


def parse_options(line: str, options: Mapping[str, Option]) -> dict[str, Any]:
    """The prompt of a line and the fields that its options set."""
    prompt, *parts = _OPTION.split(line)
    values: dict[str, Any] = {"prompt": _unescape(prompt)}
    for part in parts:
        name, *value = part.split(maxsplit=1)
        option = options.get(name.lower())
        if option is None:
            known = ", ".join(f"--{key}" for key in options)
            raise FramePackError(
                f"--{name}: unknown option; known are {known} (write \\--{name} if it is text)"
            )
        set_option(values, option, _unescape("".join(value)), f"--{name}")
    return values


def set_option(values: dict[str, Any], option: Option, text: str, name: str) -> None:
    """Read a value into its field, or behind what a repeated option has there already."""
    try:
        value = option.read(text)
    except ValueError as error:
        raise FramePackError(f"{name}: {text!r} {error}") from None
    if option.repeats:
        value = (*values.get(option.field, ()), value)
    values[option.field] = value


def read_prompt_file(path: str | Path) -> list[tuple[int, str]]:
    """(line number, line) of every prompt in a UTF-8 file; raises where there is none."""
    return number_prompts(read_text(path), path)


def number_prompts(text: str, source: str | Path) -> list[tuple[int, str]]:
    """(line number, line) of every prompt, leaving out blank lines and comments.

    Raises FramePackError where there is none; `source` says in it whose text this is.
    """
    stripped = enumerate((line.strip() for line in split_lines(text)), 1)
    prompts = [(number, line) for number, line in stripped if line and not line.startswith("#")]
    if not prompts:
        raise FramePackError(f"{source}: no prompt in it; write one a line")
    return prompts


def _unescape(text: str) -> str:
    return _ESCAPED.sub("--", text.strip())
