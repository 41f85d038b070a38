"""Prompts that turn into each other over several sections, and not from one to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Blend:
    """A section's prompt as parts of several texts, which add up to 1."""

    parts: tuple[tuple[float, str], ...]

    @property
    def label(self) -> str:
        """What people read of it."""
        return " + ".join(f"{part:.2f} {text}" for part, text in self.parts)


def blended(prompts: Sequence[str], over: int) -> list[str | Blend]:
    """The prompts of sections, in order of time, mixed over so many sections about each change.

    A section takes all prompts within half of `over` from its middle, each by its part of that
    time; what is before and behind the video is as at its ends. Below 2 nothing is mixed.
    """
    return [_blend(prompts, place, over) for place in range(len(prompts))]


def _blend(prompts: Sequence[str], place: int, over: int) -> str | Blend:
    if over < 2:
        return prompts[place]
    parts: dict[str, float] = {}
    first = place + 0.5 - over / 2
    for position in range(place - over, place + over + 1):
        part = (min(first + over, position + 1) - max(first, position)) / over
        if part > 0:
            text = prompts[min(max(position, 0), len(prompts) - 1)]
            parts[text] = parts.get(text, 0.0) + part
    return prompts[place] if len(parts) == 1 else Blend(tuple((p, t) for t, p in parts.items()))
