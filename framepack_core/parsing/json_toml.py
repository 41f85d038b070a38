"""JSON and TOML that may come from anywhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..runtime.errors import FramePackError
from ..runtime.files import read_text, split_lines

# ValueError is also a number of too many digits, RecursionError what is nested too deeply.
UNREADABLE = (ValueError, RecursionError)


def read_table(path: Path) -> dict[str, Any]:
    """The content of a .toml or .json file, which must be a table."""
    suffix = path.suffix.lower()
    if suffix not in (".toml", ".json"):
        raise FramePackError(f"{path}: settings are read from a .toml or a .json file")
    text = read_text(path)
    if suffix == ".toml":
        return parse_toml(text, f"{path}")
    table = parse_json(text, f"{path}")
    if not isinstance(table, dict):
        raise FramePackError(f"{path}: it should hold a table, as {{...}}")
    return table


def parse_toml(text: str, place: str) -> dict[str, Any]:
    """The table of a text in TOML; `place` is what an error calls it."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    text = text.removeprefix("\ufeff")  # the mark that some editors put first
    _check_backslashes(text, place)
    try:
        return tomllib.loads(text)
    except UNREADABLE as error:
        raise FramePackError(f"{place}: not TOML ({error})") from None


# In double quotes: D:\new, \\server\share, .\clips, clips\train.
_WINDOWS_PATH = re.compile(
    r'=\s*(?:\[\s*)?"((?:[A-Za-z]:|\\\\[^\\"\n]+|\.{1,2}|[\w .-]+)\\(?![\\"])[^"\n]*)"'
)


def _check_backslashes(text: str, place: str) -> None:
    """Refuse Windows paths in double quotes, where \\n is a line break and \\t a tab."""
    for number, line in enumerate(split_lines(text), 1):
        match = None if line.lstrip().startswith("#") else _WINDOWS_PATH.search(line)
        if match and not re.search(r"prompt|caption|comment", line.partition("=")[0]):
            raise FramePackError(
                f"{place} line {number}: in double quotes a backslash is no part of a path; write "
                f"'{match[1]}' in single quotes, or / for \\"
            )


def parse_json(text: str, place: str) -> Any:
    """What a text in JSON stands for; `place` is what an error calls it."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise FramePackError(
            f"{place}: it holds half of a character, such as \\ud83d; write the text as UTF-8"
        ) from None
    except UNREADABLE as error:
        raise FramePackError(f"{place}: not JSON ({error})") from None
    return value
