"""Inputs of nodes from declared options, and the settings that inputs give."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, get_origin

from comfy_api.latest import io

from ..framepack_core.runtime.options import (
    OFF,
    SAME,
    Leaf,
    S,
    Settings,
    leaves,
    nested,
    parse_pairs,
    validate,
)
from .types import advanced

WIDEST = 2**31 - 1  # of a number that is not bounded


def option_inputs(
    kind: type[Settings],
    names: Collection[str],
    *,
    optional: bool = True,
    control: Collection[str] = (),
) -> list[io.WidgetInput]:
    """The widgets of options by their names as inputs, in that order.

    A ValueError for a name that no option has: workflows hold values by position, so the order is
    the node's to say. control: the seeds that the interface may change after each run.
    """
    found = _by_input(kind)
    if unknown := [name for name in names if name not in found]:
        raise ValueError(f"{kind.__name__} has no option {', '.join(unknown)}")
    return [_input(found[name], optional, name in control) for name in names]


def other_names(kind: type[Settings], *names: Collection[str]) -> list[str]:
    """Names of the inputs that are in none of the lists, in the order of their declaration."""
    return [name for name in _by_input(kind) if not any(name in known for known in names)]


def read_inputs(kind: type[S], inputs: Mapping[str, Any], node: str) -> S:
    """The settings of a node's inputs; raises FramePackError that names the input."""
    found = _by_input(kind)
    values = {found[n].path: _value(found[n], v) for n, v in inputs.items() if n in found}
    rest = {(name,): value for name, value in inputs.items() if name not in found}
    names = {leaf.path: name for name, leaf in found.items()}
    return validate(kind, nested({**values, **rest}), node, names)


def input_values(kind: type[Settings], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """As tables have them, of those inputs that are a model's own options; nothing is checked."""
    found = _by_input(kind)
    return nested({found[n].path: _value(found[n], v) for n, v in inputs.items() if n in found})


def _by_input(kind: type[Settings]) -> dict[str, Leaf]:
    return {input_name(leaf): leaf for leaf in leaves(kind) if leaf.option.node != ""}


def default_inputs(kind: type[Settings], names: Collection[str]) -> dict[str, Any]:
    """What widgets hold before anybody changes them."""
    found = _by_input(kind)
    return {name: _initial(found[name]) for name in names}


def input_name(leaf: Leaf) -> str:
    """What an option is called as an input."""
    return leaf.option.node or leaf.name


def _input(leaf: Leaf, optional: bool, control: bool) -> io.WidgetInput:
    common: dict[str, Any] = {"optional": optional, "tooltip": _tooltip(leaf)}
    if input_name(leaf) == "seed":  # the interface adds a control to all that is named so
        common["control_after_generate"] = control
    widget = _widget(leaf, common)
    return advanced(widget) if leaf.option.advanced else widget


def _widget(leaf: Leaf, common: dict[str, Any]) -> io.WidgetInput:
    name, default = input_name(leaf), _initial(leaf)
    if leaf.kind is bool:
        return io.Boolean.Input(name, default=default, **common)
    if choices := list(leaf.option.labels or leaf.option.offered or leaf.choices):
        return io.Combo.Input(name, options=choices, default=default, **common)
    if leaf.kind is int or isinstance(default, int):
        low, high = map(int, _range(leaf))
        step = {"step": int(leaf.option.step)} if leaf.option.step else {}
        return io.Int.Input(name, default=default, min=low, max=high, **step, **common)
    if leaf.kind is float:
        low, high = map(float, _range(leaf))
        step = leaf.option.step or 0.001
        return io.Float.Input(name, default=default, min=low, max=high, step=step, **common)
    return io.String.Input(name, default=default, **common)


def _range(leaf: Leaf) -> tuple[float, float]:
    low, high = leaf.bounds
    least = -WIDEST if low is None else low
    if leaf.option.none is not None:
        least = min(least, leaf.option.none)
    return least, WIDEST if high is None else high


def _tooltip(leaf: Leaf) -> str:
    unit = f" In {leaf.option.unit}." if leaf.option.unit else ""
    none, absent = leaf.option.none, leaf.option.absent
    off = "" if none in (None, "") else f" {none:g} is {absent}."
    if _initial(leaf) == "" and leaf.optional and absent != OFF:
        off = f" Empty is {absent}."
    return f"{leaf.option.help}{unit}{off}"


def _initial(leaf: Leaf) -> Any:
    given = leaf.option.initial is not SAME
    return leaf.option.initial if given else _shown(leaf, leaf.default)


def _shown(leaf: Leaf, value: Any) -> Any:
    """A value as a widget has it: no None, and lists as words with spaces between them."""
    if value is None:
        return leaf.option.none if leaf.option.none is not None else ""
    if leaf.option.labels:
        return dict(zip(leaf.choices, leaf.option.labels, strict=True))[value]
    kind = get_origin(leaf.kind) or leaf.kind
    if kind is dict:
        return " ".join(f"{name}={item}" for name, item in value.items())
    if kind in (tuple, list):
        return " ".join(map(str, value))
    return str(value) if isinstance(value, Path) else value


def _value(leaf: Leaf, value: Any) -> Any:
    """A widget's value as the field has it."""
    none = "" if leaf.option.none is None else leaf.option.none
    if leaf.optional and leaf.option.initial is SAME and value == none:
        return None
    if leaf.option.labels:
        return dict(zip(leaf.option.labels, leaf.choices, strict=True)).get(value, value)
    kind = get_origin(leaf.kind) or leaf.kind
    if kind is dict and isinstance(value, str):
        return parse_pairs(value.split(), input_name(leaf))
    return tuple(value.split()) if kind in (tuple, list) and isinstance(value, str) else value
