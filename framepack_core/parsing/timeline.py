"""A timeline: what each section of a video has of its own, as one JSON text.

    {"version": 1, "sections": [{"prompt": "a cat sleeps", "seed": 7}, {}, {"image": "awake.png"}]}

Sections are in order of time. Those that are not listed, and names that are left out, keep what the
plan and the run have. An empty text is a timeline in which no section has anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from ..runtime.errors import FramePackError
from ..runtime.options import leaves
from .overrides import Overrides

MAX_TEXT = 1 << 20  # characters of a timeline
MAX_SECTIONS = 500
MAX_PROMPT, MAX_NAME = 10_000, 1_000  # characters
MAX_NUMBER = 2**53 - 1  # the largest that a browser's JSON reads exactly


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Pictured(_Strict):
    """What is said in words: a prompt, and a file name of the host's."""

    prompt: str | None = Field(None, max_length=MAX_PROMPT)
    image: str | None = Field(None, min_length=1, max_length=MAX_NAME)


def _numbers() -> Iterator[tuple[str, Any]]:
    for leaf in leaves(Overrides):
        low, high = leaf.bounds
        most = MAX_NUMBER if high is None else min(high, MAX_NUMBER)
        yield leaf.name, (leaf.kind | None, Field(None, ge=low, le=most))


if TYPE_CHECKING:
    TimelineSection = _Pictured
else:
    TimelineSection = create_model("TimelineSection", __base__=_Pictured, **dict(_numbers()))
"""What one section has instead of the run's."""


class Timeline(_Strict):
    """Sections in order of time."""

    version: Literal[1] = 1
    sections: tuple[TimelineSection, ...] = Field(default=(), max_length=MAX_SECTIONS, strict=False)

    @property
    def images(self) -> list[str]:
        """The file names of the images, each once."""
        return list(dict.fromkeys(s.image for s in self.sections if s.image is not None))


def parse_timeline(text: str) -> Timeline:
    """Read a timeline, which is untrusted text; FramePackError names the place of a mistake."""
    if not text.strip():
        return Timeline()
    if len(text) > MAX_TEXT:
        raise FramePackError(f"timeline: {len(text)} characters; at most {MAX_TEXT} are read")
    try:
        return Timeline.model_validate(json.loads(text))
    except ValidationError as error:
        raise FramePackError(f"timeline: {_first_mistake(error)}") from None
    except (ValueError, RecursionError) as error:
        raise FramePackError(f"timeline: not JSON ({error}); leave it empty or fix it") from None


def _first_mistake(error: ValidationError) -> str:
    mistake = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in mistake["loc"])
    if mistake["type"] == "extra_forbidden":
        kind = TimelineSection if len(mistake["loc"]) > 1 else Timeline
        return f"{place}: unknown; known are {', '.join(kind.model_fields)}"
    return f"{place}: {mistake['msg']}" if place else mistake["msg"]
