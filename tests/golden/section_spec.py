"""Section specs: the text that each section gets. Accidents of the reference are tagged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from framepack_core.parsing.section_spec import format_spec, parse_spec
from framepack_core.runtime.errors import FramePackError

from .result import Case, exact, exact_ours, refusal, refused

ESCAPED, HIDDEN = "\\;;;", "\0"


def check(folder: Path) -> Iterator[Case]:
    cases = json.loads((folder / "section_spec.json").read_text(encoding="utf-8"))["cases"]
    for i, case in enumerate(cases):
        text, expected = case["input"], {int(key): text for key, text in case["result"].items()}
        tag = "" if text is None else accident(text)
        rule = documented(text) if tag else expected
        try:
            actual: Any = texts_of(text)
        except FramePackError as error:
            names = named_fault(error, rule.faults) if isinstance(rule, Refused) else ()
            actual = refusal(error, *names)
            rule = refused(*names) if names else rule
        rule = refused(rule.faults[0]) if isinstance(rule, Refused) else rule
        if tag:
            yield exact_ours(str(i), tag, actual, rule=rule, reference=expected, inputs=text)
        else:
            yield exact(str(i), actual, expected)
        if isinstance(actual, dict) and actual:
            spec = parse_spec(text).texts
            yield exact(f"{i}.written", parse_spec(format_spec(spec)).texts, spec)


def texts_of(text: str | None) -> dict[int, str]:
    """The texts by section as the reference numbers them: 0 always has one."""
    spec = parse_spec(text)
    default = {} if spec.default_key is None else {0: spec.texts[spec.default_key]}
    return {**default, **spec.texts}


class Refused:
    """What our grammar makes of a malformed spec: an error that names one of its faults."""

    def __init__(self, *faults: str) -> None:
        self.faults = faults


def named_fault(error: Exception, faults: tuple[str, ...]) -> tuple[str]:
    """The first fault that an error names; the first of all if it names none."""
    return (next((fault for fault in faults if fault in str(error)), faults[0]),)


def documented(text: str) -> dict[int, str] | Refused:
    """The texts that our grammar gives a spec, read by this file's own means."""
    parts = text.replace(ESCAPED, HIDDEN).split(";;;")
    heads = [_head(part) for part in parts]
    if heads == [None]:
        return {0: parts[0].replace(HIDDEN, ";;;")}
    keys = [[0] if head is None else _keys(head) for head in heads]
    faults = [
        repr(str(h).strip())[1:-1] for h, of_head in zip(heads, keys, strict=True) if not of_head
    ]
    if not all(map(str.strip, parts)) or any(part.startswith(";") for part in parts[1:]):
        faults.append(";;;")
    if faults:
        return Refused(*faults)
    texts: dict[int, tuple[int, str]] = {}
    for place, (part, head) in enumerate(zip(parts, heads, strict=True)):
        body = part if head is None else part.removeprefix(f"{head}:")
        texts |= dict.fromkeys(keys[place], (place, body.strip().replace(HIDDEN, ";;;")))
    owners = {place for place, _ in texts.values()}
    if replaced := [str(of_part[0]) for i, of_part in enumerate(keys) if i not in owners]:
        return Refused(*replaced)
    found = {key: body for key, (_, body) in texts.items()}
    forward = [key for key in found if key >= 0]
    return {0: found[min(forward or found)], **found}


def _head(part: str) -> str | None:
    """What stands before the first colon, if it holds a digit and nothing but numbers."""
    head, colon, _ = part.partition(":")
    numeric = all(c in "-+.," or c.isspace() or c.isdecimal() for c in head)
    return head if colon and numeric and any(c.isdecimal() for c in head) else None


def _keys(head: str) -> list[int]:
    """The sections of "N" or "S-E"; none if it is malformed, mixed or backwards."""
    match = re.fullmatch(r"(-?\d+)(?:-(-?\d+))?", head.strip())
    if match is None:
        return []
    first, last = int(match[1]), int(match[2] or match[1])
    return list(range(first, last + 1)) if (first < 0) == (last < 0) else []


def accident(text: str) -> str:
    """The tag of a spec that the reference reads in a way that nobody can have meant."""
    if "\\;;;" in text:
        return "spec-escape"
    parts = text.split(";;;")
    heads = [part.partition(":")[0].strip() if ":" in part else "" for part in parts]
    of_heads = [_accident_of_head(head) if head else "" for head in heads]
    if len(parts) == 1:
        prose = not re.search(r"\d", heads[0]) or of_heads[0] == "spec-prose"
        return "" if prose else "spec-lone"
    if any(not part.strip() or part.startswith(";") for part in parts):
        return "spec-empty-part"
    if any(part.lstrip().startswith(":") for part in parts):
        return "spec-prose"
    return next(filter(None, of_heads), "") or _replaced(heads)


def _accident_of_head(head: str) -> str:
    if re.fullmatch(r"-\d+--\d+", head):
        return "spec-negative-range"
    if match := re.fullmatch(r"(-?\d+)-(\d+)", head):
        first, last = int(match[1]), int(match[2])
        return "spec-mixed-range" if first < 0 else "spec-backwards" if last < first else ""
    if re.fullmatch(r"-?\d+", head):
        return ""
    return "spec-bad-number" if re.fullmatch(r"[-+.,\s\d]*\d[-+.,\s\d]*", head) else "spec-prose"


def _replaced(heads: list[str]) -> str:
    """Whether later parts take every section of an earlier one."""
    taken: set[int] = set()
    for head in reversed(heads):
        first, _, last = (head or "0").rpartition("-") if "-" in head[1:] else (head or "0", "", "")
        keys = set(range(int(first), int(last or first) + 1))
        if keys <= taken:
            return "spec-replaced"
        taken |= keys
    return ""
