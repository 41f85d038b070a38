"""Which modules some regular expressions choose, for applying a LoRA and for training one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ..runtime.errors import FramePackError


def select_names(
    names: Mapping[str, Sequence[str]],
    include: Iterable[str],
    exclude: Iterable[str],
    what: str,
    usual: Iterable[str],
) -> set[str]:
    """The names that some `include` expression is found in, and no `exclude` one.

    names: each with the spellings of it that are searched; usual: what is kept without an include
    expression; what: calls them all in errors. Raises FramePackError for an expression that is
    invalid or in no name.
    """
    include = list(include)
    kept = set().union(*(_matching(pattern, names, "include", what) for pattern in include))
    if not include:
        kept = set(usual)
    for pattern in exclude:
        kept -= _matching(pattern, names, "exclude", what)
    return kept


def _matching(
    pattern: str, names: Mapping[str, Sequence[str]], purpose: str, what: str
) -> set[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise FramePackError(
            f"{purpose} pattern {pattern!r} is not a regular expression ({error}); correct it"
        ) from None
    found = {name for name, spellings in names.items() if any(map(expression.search, spellings))}
    if not found:
        raise FramePackError(
            f"{purpose} pattern {pattern!r} matches none of the {len(names)} {what}; they are "
            f"named like {next(iter(names), '')}"
        )
    return found
