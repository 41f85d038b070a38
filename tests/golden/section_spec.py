"""Section specs: the text that each section gets. Accidents of the reference are tagged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from framepack_core.parsing.section_spec import format_spec, parse_spec
from framepack_core.runtime.errors import FramePackError

from .result import Case, exact


def check(folder: Path) -> Iterator[Case]:
    cases = json.loads((folder / "section_spec.json").read_text())["cases"]
    for i, case in enumerate(cases):
        text, expected = case["input"], {int(key): text for key, text in case["result"].items()}
        name = f"{i}{'' if text is None else accident(text)}"
        try:
            spec = parse_spec(text)
        except FramePackError as error:
            yield exact(name, f"refused: {error}", expected)
            continue
        texts = dict(spec.texts)
        if spec.default_key is not None:
            texts.setdefault(0, texts[spec.default_key])
        yield exact(name, texts, expected)
        if texts:
            yield exact(f"{name}.written", parse_spec(format_spec(spec.texts)).texts, spec.texts)


def accident(text: str) -> str:
    """The tag of a spec that the reference reads in a way that nobody can have meant."""
    if "\\;;;" in text:
        return "[spec-escape]"
    parts = text.split(";;;")
    heads = [part.partition(":")[0].strip() if ":" in part else "" for part in parts]
    of_heads = [_accident_of_head(head) if head else "" for head in heads]
    if len(parts) == 1:
        prose = not re.search(r"\d", heads[0]) or of_heads[0] == "[spec-prose]"
        return "" if prose else "[spec-lone]"
    if any(not part.strip() or part.startswith(";") for part in parts):
        return "[spec-empty-part]"
    if any(part.lstrip().startswith(":") for part in parts):
        return "[spec-prose]"
    return next(filter(None, of_heads), "") or _replaced(heads)


def _accident_of_head(head: str) -> str:
    if re.fullmatch(r"-\d+--\d+", head):
        return "[spec-negative-range]"
    if match := re.fullmatch(r"(-?\d+)-(\d+)", head):
        first, last = int(match[1]), int(match[2])
        return "[spec-mixed-range]" if first < 0 else "[spec-backwards]" if last < first else ""
    if re.fullmatch(r"-?\d+", head):
        return ""
    return (
        "[spec-bad-number]" if re.fullmatch(r"[-+.,\s\d]*\d[-+.,\s\d]*", head) else "[spec-prose]"
    )


def _replaced(heads: list[str]) -> str:
    """Whether later parts take every section of an earlier one."""
    taken: set[int] = set()
    for head in reversed(heads):
        first, _, last = (head or "0").rpartition("-") if "-" in head[1:] else (head or "0", "", "")
        keys = set(range(int(first), int(last or first) + 1))
        if keys <= taken:
            return "[spec-replaced]"
        taken |= keys
    return ""
