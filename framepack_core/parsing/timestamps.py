"""Prompts with times in front, as `[0s: a cat sleeps] [2.5s-4s: it wakes up]`."""

from __future__ import annotations

import re
from typing import NamedTuple

_SECONDS = r"\s*(\d+(?:\.\d+)?)s\s*"
_TIMED = re.compile(rf"\[{_SECONDS}(?:-{_SECONDS})?:\s*(.*?)\s*\]", re.DOTALL)


class TimedPrompt(NamedTuple):
    """A prompt and when it is meant, in seconds; end is None for until the next one."""

    start: float
    end: float | None
    text: str


def parse_timestamps(text: str) -> list[TimedPrompt]:
    """The prompts of a text in the order of their starts; one from 0 on where it has no times.

    What stands in front of the first time is meant from 0 until then; other text between is not
    read.
    """
    found = list(_TIMED.finditer(text))
    if not found:
        return [TimedPrompt(0.0, None, text.strip())]
    timed = [TimedPrompt(float(m[1]), float(m[2]) if m[2] else None, m[3]) for m in found]
    if before := text[: found[0].start()].strip():
        timed.append(TimedPrompt(0.0, min(prompt.start for prompt in timed), before))
    return sorted((p for p in timed if p.end is None or p.end > p.start), key=lambda p: p.start)


def is_timed(text: str) -> bool:
    """Whether a text has prompts with times in front."""
    return _TIMED.search(text) is not None


def prompts_by_section(text: str, sections: int, seconds: float) -> list[str]:
    """The prompt of every section, each of which takes `seconds`, with times at the nearest joins.

    A section that no time is meant for keeps the prompt of the one before, and the first ones take
    the first prompt.
    """
    timed = parse_timestamps(text)
    starts = [round(prompt.start / seconds) for prompt in timed] + [sections]
    found: list[str | None] = [None] * sections
    for index, prompt in enumerate(timed):
        end = starts[index + 1] if prompt.end is None else round(prompt.end / seconds)
        for section in range(starts[index], min(max(end, starts[index] + 1), sections)):
            found[section] = found[section] or prompt.text
    latest = timed[0].text if timed else ""
    filled = []
    for prompt in found:
        latest = prompt or latest
        filled.append(latest)
    return filled
