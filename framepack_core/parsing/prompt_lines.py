r"""Prompts with options behind them, one a line: `a cat --w 640 --h 480 --d 42`.

An option is `--` and a letter at the beginning of a word, whatever its case, and its value reaches
up to the next one; of an option given twice the last counts. `\--` is `--` in a text. A file may
have blank lines, and lines that begin with `#`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_origin

from ..runtime.errors import FramePackError
from ..runtime.files import read_text, split_lines
from ..runtime.options import Leaf, Settings, leaves

_OPTION = re.compile(r"(?:^|(?<=\s))--(?=[A-Za-z])")
_ESCAPED = re.compile(r"(?<!\S)\\--")


def line_options(kind: type[Settings]) -> dict[str, Leaf]:
    """The options of a model that prompt lines can have, by their names there."""
    return {name: leaf for leaf in leaves(kind) for name in leaf.option.lines}


def parse_options(line: str, options: Mapping[str, Leaf]) -> dict[str, Any]:
    """The prompt of a line and what its options set, by the names of the command line's."""
    prompt, *parts = _OPTION.split(line)
    values: dict[str, Any] = {"prompt": _unescape(prompt)}
    for part in parts:
        name, *value = part.split(maxsplit=1)
        leaf = options.get(name.lower())
        if leaf is None:
            known = ", ".join(f"--{key}" for key in options)
            raise FramePackError(
                f"--{name}: unknown option; known are {known} (write \\--{name} if it is text)"
            )
        set_option(values, leaf, _unescape("".join(value)), f"--{name}")
    return values


def prompt_line(prompt: str, options: Mapping[str, str]) -> str:
    """The line of a prompt and its options, in which line breaks become blanks."""

    def escaped(text: str) -> str:
        return _OPTION.sub(r"\\--", " ".join(text.split()))

    return " ".join([escaped(prompt), *(f"--{key} {escaped(v)}" for key, v in options.items())])


def set_option(values: dict[str, Any], leaf: Leaf, text: str, name: str) -> None:
    """Read a value, or put it behind those that a repeated option has there already."""
    if repeats(leaf):
        values[leaf.flag] = (*values.get(leaf.flag, ()), *leaf.read((text,), name))
    else:
        values[leaf.flag] = leaf.read(text, name)


def repeats(leaf: Leaf) -> bool:
    """Whether a line may give it several times."""
    return get_origin(leaf.kind) is tuple


def read_prompt_file(path: str | Path) -> list[tuple[int, str]]:
    """(line number, line) of every prompt in a UTF-8 file; raises where there is none."""
    return number_prompts(read_text(path), path)


def number_prompts(text: str, source: str | Path) -> list[tuple[int, str]]:
    """(line number, line) of every prompt, leaving out blank lines and comments.

    Raises FramePackError where there is none; `source` says in it whose text this is.
    """
    stripped = enumerate((line.strip() for line in split_lines(text)), 1)
    prompts = [(number, line) for number, line in stripped if line and not line.startswith("#")]
    if not prompts:
        raise FramePackError(f"{source}: no prompt in it; write one a line")
    return prompts


def _unescape(text: str) -> str:
    return _ESCAPED.sub("--", text.strip())
