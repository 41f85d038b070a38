"""Settings that come from people: validated, with one line that names file, key and fix."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ..parsing.json_toml import parse_json, parse_toml
from ..runtime.errors import FramePackError
from ..runtime.files import read_text


class Settings(BaseModel):
    """A frozen table of settings; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Settings)


def validate(kind: type[S], values: Mapping[str, Any], place: str) -> S:
    """The settings of a table; `place` is what an error calls it."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise FramePackError(f"{place}: {_first_line(error, kind)}") from None


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


def parse_pairs(words: Iterable[str], place: str) -> dict[str, Any]:
    """NAME=VALUE words, where values are Python literals or else texts."""
    pairs = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise FramePackError(f"{place}: {word!r} is not NAME=VALUE")
        try:
            pairs[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            pairs[name] = value
    return pairs


def _first_line(error: ValidationError, kind: type[Settings]) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if isinstance(part, str | int))
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown; known are {', '.join(kind.model_fields)}"
    if first["type"] == "missing":
        return f"{key}: missing; give it"
    message = first["msg"].removeprefix("Value error, ")
    given = repr(first["input"])
    shown = f" (given: {given})" if key and len(given) < 60 else ""
    return f"{key + ': ' if key else ''}{message}{shown}"
