"""Workflows and blueprints saved with earlier releases: they open and mean what they meant.

`tests/saved_workflows/VERSION.json` holds them, the API prompts that they gave, and the inputs and
outputs of every node of that release. A file is written when a release is made, and never changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from workflow import NESTED, NOTES, to_api, widget_values

SAVED = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((Path(__file__).parents[1] / "saved_workflows").glob("*.json"))
}
OURS = "FPReel"  # how the ids of this pack's nodes begin
Info = dict[str, Any]


def cases(part: str) -> list[Any]:
    """(release, name) of everything in one part of all files."""
    found = [(release, name) for release, saved in SAVED.items() for name in saved[part]]
    return [pytest.param(*case, id="-".join(case)) for case in found]


def inputs_of(info: Info) -> dict[str, tuple[Any, Info]]:
    """Type and options of every input by name."""
    groups = (info["input"].get(group, {}) for group in ("required", "optional"))
    flat = {name: spec for group in groups for name, spec in group.items()}
    return {name: (spec[0], spec[1] if len(spec) > 1 else {}) for name, spec in flat.items()}


def has_input(inputs: dict[str, tuple[Any, Info]], name: str) -> bool:
    """Whether a node has this input, or the choice that "choice.input" belongs to."""
    choice, nested, _ = name.partition(".")
    return choice in inputs and (not nested or inputs[choice][0] == NESTED)


def same(was: Info, now: Info, node_info: Info) -> None:
    """The inputs of a node in a prompt: as before, and new ones at their defaults.

    Nodes of ComfyUI's have the inputs of this version, which may be older than the one saved with.
    """
    inputs, old = inputs_of(node_info[was["class_type"]]), was["inputs"]
    if not was["class_type"].startswith(OURS):
        old = {name: value for name, value in old.items() if has_input(inputs, name)}
    added = {name: now["inputs"][name] for name in now["inputs"].keys() - old.keys()}
    assert now["class_type"] == was["class_type"]
    assert {name: now["inputs"][name] for name in old} == old
    assert added == {name: inputs[name][1].get("default") for name in added}


@pytest.mark.parametrize(("release", "name"), cases("workflows"))
def test_workflows_give_the_same_prompt(release: str, name: str, node_info: Info) -> None:
    saved = SAVED[release]
    now, was = to_api(saved["workflows"][name], node_info), saved["prompts"][name]
    assert now.keys() == was.keys()
    for node in was:
        same(was[node], now[node], node_info)


@pytest.mark.parametrize(("release", "name"), cases("blueprints"))
def test_blueprints_keep_their_values(release: str, name: str, node_info: Info) -> None:
    saved = SAVED[release]
    nodes = {place: node for place, node in _inner(saved["blueprints"][name])}
    for place, was in saved["widgets"][name].items():
        node = nodes[place]
        values = iter(node["widgets_values"])
        inputs = dict(widget_values(node_info[node["type"]]["input"], values))
        left = list(values)
        assert not left, f"{place}: {left} belong to no widget"
        same(was, {"class_type": node["type"], "inputs": inputs}, node_info)


@pytest.mark.parametrize(("release", "name"), cases("schemas"))
def test_nodes_keep_inputs_and_outputs(release: str, name: str, node_info: Info) -> None:
    """New inputs are optional, as old ones may become; new outputs come last; choices only grow."""
    was, now = SAVED[release]["schemas"][name], node_info[name]
    inputs, required = inputs_of(now), now["input"].get("required", {})
    for key, old in was["inputs"].items():
        kind, options = inputs[key]
        assert ("COMBO" if isinstance(kind, list) else kind) == old["type"], key
        assert key not in required or old["group"] == "required", key
        if "default" in old:
            assert options["default"] == old["default"], key
        if "min" in old:
            assert options["min"] <= old["min"] and options["max"] >= old["max"], key
        choices = kind if isinstance(kind, list) else options.get("options", [])
        assert not [c for c in old.get("options", []) if c not in choices], key
    assert not [key for key in required if key not in was["inputs"]]
    outputs = [list(pair) for pair in zip(now["output_name"], now["output"], strict=True)]
    assert outputs[: len(was["outputs"])] == was["outputs"]


def _inner(blueprint: Info) -> Iterator[tuple[str, Info]]:
    for graph in blueprint["definitions"]["subgraphs"]:
        for node in graph["nodes"]:
            if node["type"] not in NOTES:
                yield f"{graph['name']}/{node['id']}", node
