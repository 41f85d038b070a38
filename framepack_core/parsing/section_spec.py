r"""Section specs: one text that gives sections of a video their own prompt or image.

    spec     = part { ";;;" part }
    part     = [ sections ":" ] text
    sections = N | S-E

0 is the first section in time, -1 the last, and a range such as 0-2 or -3--1 holds both its ends. A
part without sections is for section 0. Later parts win over earlier ones, and a section counted
from the end wins over the same one counted from the start. Sections that no part names take the
text of section 0, or where there is none, that of the lowest section named.

`\;;;` stands for `;;;` in a text. Only the first colon of a part ends its sections, so a text that
begins with a number and a colon is written with its section in front: `0:3: the movie`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..runtime.errors import FramePackError

SEPARATOR = ";;;"
MAX_SECTIONS = 10_000  # that one part may name
ESCAPED = "\\" + SEPARATOR
_CUT = re.compile(f"{re.escape(ESCAPED)}|{SEPARATOR}")
_SECTIONS = re.compile(r"(-?\d+)(?:-(-?\d+))?")
_NUMBERS = re.compile(r"[-+.,\s]*\d[-+.,\s\d]*")
_EXCERPT = 24  # characters of a part that an error repeats


@dataclass(frozen=True)
class SectionSpec:
    """Texts by section, as written: keys below 0 count from the end; `name` is the input's."""

    texts: Mapping[int, str]
    name: str = "sections"

    @property
    def default_key(self) -> int | None:
        """The key whose text is for sections that have none; None if nothing was given."""
        if 0 in self.texts:
            return 0
        return min((key for key in self.texts if key > 0), default=min(self.texts, default=None))

    def key_of(self, section: int, sections: int) -> int | None:
        """The key that gives a section of a video of `sections` its text."""
        for key in (section - sections, section):
            if key in self.texts:
                return key
        return self.default_key

    def resolve(self, sections: int) -> list[str | None]:
        """The text of every section in time order; all None if nothing was given."""
        for key in self.texts:
            _check_exists(key, sections, self.name)
        keys = [self.key_of(section, sections) for section in range(sections)]
        return [None if key is None else self.texts[key] for key in keys]


def parse_spec(text: str | None, name: str = "sections") -> SectionSpec:
    """Read a section spec; `name` is what errors call the input.

    A text without separator and sections is one for section 0, to the letter; None is no text.
    """
    if text is None:
        return SectionSpec({}, name)
    parts = [_read_part(raw, position, name) for position, raw in _split(text, name)]
    if len(parts) == 1 and not parts[0].has_sections:
        return SectionSpec({0: _unescape(text)}, name)
    for part in parts:
        if not part.raw:
            raise part.error(f"an empty part; fill it, or take the '{SEPARATOR}' beside it out")
    owner = {key: part for part in parts for key in part.keys}
    for part in parts:
        if part not in owner.values():
            raise part.error(f"later parts replace all of it; give section {part.keys[0]} once")
    return SectionSpec({key: part.text for key, part in owner.items()}, name)


def format_spec(texts: Mapping[int, str]) -> str:
    """The spec of texts by section; reads back equal.

    Blanks around a text survive only in one that stands alone, for section 0.
    """
    if set(texts) == {0} and _sections_of(texts[0]) is None:
        return _escape(texts[0])
    return f" {SEPARATOR} ".join(f"{key}:{_escape(text)}" for key, text in texts.items())


def section_range(text: str, sections: int, name: str = "sections") -> range:
    """The sections that "N" or "S-E" means in a video of `sections`, by time."""
    try:
        keys = _read_sections(text)
    except ValueError as error:
        raise FramePackError(f"{name}: {error}") from None
    for key in keys:
        _check_exists(key, sections, name)
    return range(keys[0] % sections, keys[-1] % sections + 1)


@dataclass(frozen=True)
class _Part:
    """One part of a spec: where it begins (1 is the first character), and what it was read as."""

    position: int
    raw: str
    name: str
    has_sections: bool
    keys: range
    text: str

    def error(self, problem: str) -> FramePackError:
        return _error(self.name, self.raw, self.position, problem)


def _split(text: str, name: str) -> Iterator[tuple[int, str]]:
    """(position of its first character, part without the blanks around it) of every part."""
    start = 0
    for match in [*_CUT.finditer(text), None]:
        if match is not None and match[0] == ESCAPED:
            continue
        raw = text[start : match.start() if match else None]
        yield start + 1 + len(raw) - len(raw.lstrip()), raw.strip()
        start = match.end() if match else len(text)
        if match and text.startswith(";", start) and not text.startswith(SEPARATOR, start):
            problem = f"parts are separated by {SEPARATOR}, and {ESCAPED} is {SEPARATOR} in a text"
            raise _error(name, text[match.start() :], match.start() + 1, problem)


def _read_part(raw: str, position: int, name: str) -> _Part:
    head = _sections_of(raw)
    if head is None:
        return _Part(position, raw, name, False, range(1), _unescape(raw))
    try:
        keys = _read_sections(head)
    except ValueError as error:
        problem = f"{error} (if it is prose, write 0: in front of it)"
        raise _error(name, raw, position, problem) from None
    text = raw[len(head) + 1 :].strip()
    return _Part(position, raw, name, True, keys, _unescape(text))


def _sections_of(raw: str) -> str | None:
    """What stands before the first colon of a part, if it looks like sections and not prose."""
    head, colon, _ = raw.partition(":")
    return head if colon and _NUMBERS.fullmatch(head) else None


def _read_sections(text: str) -> range:
    """The keys of "N" or "S-E"; ValueError says what is wrong with them."""
    match = _SECTIONS.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text.strip()!r} is not a section; use 0, -1 or 0-2")
    first = int(match[1])
    last = first if match[2] is None else int(match[2])
    if (first < 0) != (last < 0):
        raise ValueError(f"{match[0]!r} counts from both ends of the video; give two parts")
    if last - first >= MAX_SECTIONS:
        raise ValueError(f"{match[0]!r} is more than {MAX_SECTIONS} sections")
    if last < first:
        raise ValueError(f"{match[0]!r} runs backwards; write {last}-{first}")
    return range(first, last + 1)


def _check_exists(key: int, sections: int, name: str) -> None:
    if not -sections <= key < sections:
        raise FramePackError(
            f"{name}: there is no section {key} in a video of {sections}, which are 0 to "
            f"{sections - 1} or -{sections} to -1; if {key} is the beginning of prose, write 0: "
            "in front of it"
        )


def _error(name: str, raw: str, position: int, problem: str) -> FramePackError:
    excerpt = raw if len(raw) <= _EXCERPT else f"{raw[:_EXCERPT]}..."
    return FramePackError(f"{name}: {excerpt!r} at character {position}: {problem}")


def _escape(text: str) -> str:
    return text.replace(SEPARATOR, ESCAPED)


def _unescape(text: str) -> str:
    return text.replace(ESCAPED, SEPARATOR)
