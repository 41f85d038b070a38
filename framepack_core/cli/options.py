"""Command line options from declared ones, and the settings that a command line gives."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Collection
from pathlib import Path
from typing import Any, get_args, get_origin

from ..runtime.options import Leaf, S, Settings, leaves, nested, parse_pairs, validate

PLACE = "command line"
METAVARS = {int: "N", float: "X", Path: "PATH", dict: "NAME=VALUE"}


def add_options(
    parser: ArgumentParser, kind: type[Settings], without: Collection[str] = ()
) -> None:
    """An option for each declared one, in a group for each model that has a title.

    without: names of fields that the command does not offer. What is not on the command line is not
    in the Namespace either.
    """
    groups: dict[type[Settings], Any] = {}
    for leaf in leaves(kind):
        if leaf.name in without or not leaf.option.cli:
            continue
        if leaf.group not in groups:
            about = leaf.group
            titled = parser.add_argument_group(about.title, about.about or None)
            groups[about] = titled if about.title else parser
        groups[leaf.group].add_argument(*_flags(leaf), **_arguments(leaf))


def read_options(kind: type[S], args: Namespace, base: dict[str, Any] | None = None) -> S:
    """The settings of a command line on top of those of `base`, such as a file's.

    Raises FramePackError that names the option for the first value that it cannot have.
    """
    found = list(leaves(kind))
    values = {leaf.path: _value(leaf, args) for leaf in found if hasattr(args, _dest(leaf))}
    names = {leaf.path: f"--{leaf.flag}" for leaf in found}
    return validate(kind, merged(base or {}, nested(values)), PLACE, names)


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Tables within tables, in which `over` wins."""
    both = dict(base)
    for name, value in over.items():
        inner = both.get(name)
        both[name] = merged(inner, value) if _tables(inner, value) else value
    return both


def help_text(leaf: Leaf) -> str:
    """The help of an option with its unit and default."""
    unit = f" ({leaf.option.unit})" if leaf.option.unit else ""
    return f"{leaf.option.help}{unit}{_default(leaf)}".replace("%", "%%")


def _default(leaf: Leaf) -> str:
    value = leaf.default
    if value is None or isinstance(value, bool) or value in ((), {}, "", ...):
        return " (default: on)" if value is True else ""
    shown = f"{value:g}" if isinstance(value, float) else f"{value}"
    return f" (default: {' '.join(map(str, value)) if isinstance(value, tuple) else shown})"


def _flags(leaf: Leaf) -> list[str]:
    return [f"--{name}" for name in leaf.option.flags or (leaf.name,)]


def _dest(leaf: Leaf) -> str:
    return ".".join(leaf.path)


def _arguments(leaf: Leaf) -> dict[str, Any]:
    """What argparse is told of an option: it only collects words, the model reads them."""
    common = {"dest": _dest(leaf), "default": SUPPRESS, "help": help_text(leaf)}
    if leaf.kind is bool:
        return {**common, "action": BooleanOptionalAction if leaf.default else "store_true"}
    return {**common, **_count(leaf), "metavar": _metavar(leaf)}


def _count(leaf: Leaf) -> dict[str, Any]:
    kind = get_origin(leaf.kind) or leaf.kind
    if kind is dict:
        return {"nargs": "+"}
    if kind in (tuple, list):
        parts = get_args(leaf.kind)
        fixed = kind is tuple and ... not in parts
        return {"nargs": len(parts) if fixed else "*"}
    return {}


def _metavar(leaf: Leaf) -> Any:
    if leaf.option.metavar is not None:
        return leaf.option.metavar
    if leaf.choices:
        return "{" + ",".join(map(str, leaf.choices)) + "}"
    kind = get_origin(leaf.kind) or leaf.kind
    if kind in (tuple, list):
        kind = get_args(leaf.kind)[0]
    return METAVARS.get(kind, "TEXT")


def _value(leaf: Leaf, args: Namespace) -> Any:
    value = getattr(args, _dest(leaf))
    if (get_origin(leaf.kind) or leaf.kind) is dict:
        return parse_pairs(value, f"--{leaf.flag}")
    return value


def _tables(one: Any, other: Any) -> bool:
    return isinstance(one, dict) and isinstance(other, dict)
