"""JSON and TOML that may come from anywhere."""

from __future__ import annotations

import json
from typing import Any

from ..runtime.errors import FramePackError

# ValueError is also a number of too many digits, RecursionError what is nested too deeply.
UNREADABLE = (ValueError, RecursionError)


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
