"""JSON and TOML that may come from anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..runtime.errors import FramePackError
from ..runtime.files import read_text

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
    try:
        return tomllib.loads(text)
    except UNREADABLE as error:
        raise FramePackError(f"{place}: not TOML ({error})") from None


def parse_json(text: str, place: str) -> Any:
    """What a text in JSON stands for; `place` is what an error calls it."""
    try:
        return json.loads(text)
    except UNREADABLE as error:
        raise FramePackError(f"{place}: not JSON ({error})") from None
