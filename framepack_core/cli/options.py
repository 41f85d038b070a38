"""Command line options from declared ones, and the settings that a command line gives."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin

from ..runtime.errors import FramePackError
from ..runtime.options import (
    OFF,
    RANDOM,
    SAME,
    Leaf,
    S,
    Settings,
    leaves,
    merged,
    nested,
    parse_pairs,
    validate,
)

Place = tuple[str, ...]  # of an option within a model

COMMAND_LINE = "command line"
METAVARS = {int: "N", float: "X", Path: "PATH", dict: "NAME=VALUE"}


@dataclass(frozen=True)
class Table:
    """Options of a file: values by path, what messages call them, and those that no option has."""

    values: dict[Place, Any]
    names: dict[Place, str]
    unknown: dict[str, Any]


def add_options(parser: ArgumentParser, kind: type[Settings], *, reference: bool = False) -> None:
    """An option for each declared one, in a group for each title.

    What is not on the command line is not in the Namespace either. reference: `read_options` then
    takes musubi-tuner's defaults.
    """
    parser.set_defaults(reference=reference)
    groups: dict[str, Any] = {"": parser}
    found = [leaf for leaf in leaves(kind) if leaf.option.cli]
    if reference:
        found = [leaf_of_reference(leaf) for leaf in found]
    for leaf in found:
        title = leaf.group.title
        if title not in groups:
            groups[title] = parser.add_argument_group(title, leaf.group.about or None)
        if leaf.option.switches:
            _add_switches(groups[title], leaf)
        if not leaf.option.pair and (leaf.option.flags or not leaf.option.switches):
            groups[title].add_argument(*_flags(leaf), **_arguments(leaf))
    for flag, members in _pairs(found).items():
        group = groups[next(iter(members.values())).group.title]
        about = " ".join(f"{name}: {help_text(leaf)}" for name, leaf in members.items())
        group.add_argument(
            f"--{flag}", dest=flag, nargs="+", default=SUPPRESS, metavar="NAME=VALUE", help=about
        )


def read_options(
    kind: type[S],
    args: Namespace,
    base: Mapping[str, Any] | None = None,
    table: Table | None = None,
) -> S:
    """The settings of a command line on top of a file's on top of those of `base`.

    Raises FramePackError that names the option for the first value that it cannot have.
    """
    table = table or Table({}, {}, {})
    found = list(leaves(kind))
    if args.reference:
        base = merged(_reference_values(found), base or {})
    given = _given(found, args)
    names = {leaf.path: leaf.command for leaf in found}
    names |= {path: name for path, name in table.names.items() if path not in given}
    values = merged(merged(base or {}, nested(table.values)), nested(given))
    return validate(kind, values, COMMAND_LINE, names)


def leaf_of_reference(leaf: Leaf) -> Leaf:
    """An option with musubi-tuner's default."""
    theirs = leaf.option.reference
    return leaf if theirs is SAME else replace(leaf, default=theirs)


def table_options(kind: type[Settings], table: Mapping[str, Any], place: str) -> Table:
    """The options of a file by their names on the command line; tables within it only group."""
    flags = {name: leaf for leaf in leaves(kind) for name in _names(leaf)}
    pairs = _pairs(leaves(kind))
    values: dict[Place, Any] = {}
    names: dict[Place, str] = {}
    unknown: dict[str, Any] = {}
    for name, value in _flat(table, flags.keys() | pairs.keys()):
        if name in pairs:
            given = _pair_values(pairs[name], value, f"{place}: {name}")
        elif name in flags:
            given = _flag_value(flags[name], name, value, f"{place}: {name}")
        else:
            unknown[name] = value
            continue
        values |= given
        names |= dict.fromkeys(given, f"{place}: {name}")
    return Table(values, names, unknown)


def flag_names(kind: type[Settings]) -> list[str]:
    """All that a file may call options."""
    found = list(leaves(kind))
    return [*(name for leaf in found for name in _names(leaf)), *_pairs(found)]


def help_text(leaf: Leaf) -> str:
    """The help of an option with its unit and default."""
    unit = f" ({leaf.option.unit})" if leaf.option.unit else ""
    default = default_of(leaf)
    default = f" (default: {default})" if default else ""
    return f"{leaf.option.help}{unit}{default}".replace("%", "%%")


def default_of(leaf: Leaf) -> str:
    """What an option is when it is left out; "" where there is nothing to tell."""
    if leaf.default is None and leaf.option.absent != OFF:
        return leaf.option.absent
    return shown_default(leaf.default)


def shown_default(value: Any) -> str:
    """A default as the command line has it; "" where there is none to tell."""
    if value is None or isinstance(value, bool) or value in ((), {}, "", ...):
        return "on" if value is True else ""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def _flags(leaf: Leaf) -> list[str]:
    if leaf.option.positional:
        return [_dest(leaf)]
    return [f"--{name}" for name in leaf.option.flags or (leaf.name,)]


def _dest(leaf: Leaf) -> str:
    return ".".join(leaf.path)


def _arguments(leaf: Leaf) -> dict[str, Any]:
    """What argparse is told of an option: it only collects words, the model reads them."""
    common: dict[str, Any] = {"default": SUPPRESS, "help": help_text(leaf)}
    if not leaf.option.positional:
        common["dest"] = _dest(leaf)
    if leaf.kind is bool:
        return {**common, "action": BooleanOptionalAction if leaf.default else "store_true"}
    if leaf.option.bare is not None:
        common |= {"nargs": "?", "const": leaf.option.bare}
    return {**common, **_count(leaf), "metavar": _metavar(leaf)}


def _count(leaf: Leaf) -> dict[str, Any]:
    kind = get_origin(leaf.kind) or leaf.kind
    if kind is dict:
        return {"nargs": "+"}
    if kind in (tuple, list) and not leaf.option.joined:
        parts = get_args(leaf.kind)
        if ... in parts or kind is list:
            return {"nargs": "+" if leaf.option.positional else "*"}
        return {"nargs": "+" if isinstance(leaf.option.metavar, str) else len(parts)}
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


def _add_switches(group: Any, leaf: Leaf) -> None:
    exclusive = group.add_mutually_exclusive_group()
    for name, (value, about) in leaf.option.switches.items():
        exclusive.add_argument(
            f"--{name}",
            action="store_const",
            const=value,
            dest=_dest(leaf),
            default=SUPPRESS,
            help=about,
        )


def _names(leaf: Leaf) -> list[str]:
    """All that a file may call an option."""
    own = [] if leaf.option.pair else [name.removeprefix("--") for name in _flags(leaf)]
    return [*own, *leaf.option.switches] if leaf.option.cli else []


def _pairs(found: Iterable[Leaf]) -> dict[str, dict[str, Leaf]]:
    """Options that are NAME=VALUE, by their flag and NAME."""
    pairs: dict[str, dict[str, Leaf]] = {}
    for leaf in found:
        if leaf.option.pair:
            pairs.setdefault(leaf.flag, {})[leaf.option.pair] = leaf
    return pairs


def _given(found: Collection[Leaf], args: Namespace) -> dict[Place, Any]:
    """Values that the command line has, by path."""
    values: dict[Place, Any] = {}
    for leaf in found:
        if hasattr(args, _dest(leaf)):
            values[leaf.path] = _value(leaf, getattr(args, _dest(leaf)), leaf.command)
    for flag, members in _pairs(found).items():
        if hasattr(args, flag):
            values |= _pair_values(members, getattr(args, flag), f"--{flag}")
    return values


def _reference_values(found: Iterable[Leaf]) -> dict[str, Any]:
    """musubi-tuner's defaults where they are others, as tables within tables."""
    theirs = ((leaf.path, leaf.option.reference) for leaf in found)
    return nested({path: v for path, v in theirs if v is not SAME and v is not RANDOM})


def _pair_values(members: Mapping[str, Leaf], words: Any, place: str) -> dict[Place, Any]:
    given = words if isinstance(words, dict) else parse_pairs(_words(words), place)
    if unknown := [name for name in given if name not in members]:
        known = ", ".join(members)
        raise FramePackError(f"{place}: {', '.join(unknown)}: unknown; known are {known}")
    return {members[name].path: value for name, value in given.items()}


def _flag_value(leaf: Leaf, name: str, value: Any, place: str) -> dict[Place, Any]:
    if name in leaf.option.switches:
        return {leaf.path: leaf.option.switches[name][0]} if value else {}
    return {leaf.path: _value(leaf, value, place)}


def _value(leaf: Leaf, value: Any, place: str) -> Any:
    if (get_origin(leaf.kind) or leaf.kind) is dict and not isinstance(value, dict):
        return parse_pairs(_words(value), place)
    return value


def _words(value: Any) -> list[str]:
    return [str(word) for word in (value if isinstance(value, list) else [value])]


def _flat(table: Mapping[str, Any], known: Collection[str]) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict) and name not in known:
            yield from _flat(value, known)
        else:
            yield name, value
