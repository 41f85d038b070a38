"""Workflows of other packs made into ones for this pack's nodes, by the table in `foreign`."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..runtime.errors import FramePackError
from .foreign import HELPERS, ROWS, WRAPPED
from .graph import Graph, Id, Link, MadeLink, Node, graphs_of
from .rows import NOTHING, Makes, Row, View

STEP = 60  # between nodes that are made for one
DAMAGED = (KeyError, TypeError, IndexError, ValueError, AttributeError)


@dataclass(frozen=True)
class Converted:
    """A workflow for this pack's nodes.

    replaced: how many nodes of each type are gone; lost: what has no equal, a line each; others:
    types of nodes that stay and say that they are of further packs.
    """

    workflow: dict[str, Any]
    replaced: dict[str, int]
    lost: list[str]
    others: list[str]


def convert(workflow: Any, place: str = "workflow") -> Converted:
    """A workflow or prompt of the wrapper packs for this pack's nodes; the one given stays.

    Raises FramePackError, naming the place, for what is no workflow and where nothing of it is to
    be replaced.
    """
    try:
        return _converted(copy.deepcopy(workflow), place)
    except FramePackError:
        raise
    except DAMAGED as error:
        raise FramePackError(
            f"{place}: damaged as a workflow of ComfyUI ({type(error).__name__}: {error}); save it "
            "again from ComfyUI"
        ) from error


def _converted(workflow: Any, place: str) -> Converted:
    graphs = graphs_of(workflow, {type: row.widgets for type, row in ROWS.items()}, place)
    types = {node.type for graph in graphs for node in graph.nodes.values()}
    if types.isdisjoint(ROWS.keys() - HELPERS):
        raise FramePackError(
            f"{place}: none of its nodes is of FramePackWrapper, its Plus or its PlusOne fork; "
            "there is nothing to convert"
        )
    lost: list[str] = []
    replaced: Counter[str] = Counter()
    for graph in graphs:
        replaced += _Run(graph, lost.append).convert()
    for graph in graphs:
        graph.write()
    kept = [node for graph in graphs for node in graph.nodes.values() if node.at is None]
    others = {node.type for node in kept if _is_other(node)}
    return Converted(workflow, dict(replaced), lost, sorted(others))


def _is_other(node: Node) -> bool:
    """Whether a node says itself that it is of a further pack."""
    properties = node.saved.get("properties") or {}
    pack = properties.get("cnr_id") or properties.get("aux_id") or "comfy-core"
    return pack not in ("comfy-core", "framepack-reel")


class _Run:
    """The conversion of one level of a workflow."""

    def __init__(self, graph: Graph, tell: Callable[[str], None]) -> None:
        self._graph = graph
        self._tell = tell
        self._join()
        self._before = dict(graph.nodes)
        self._gone: Counter[str] = Counter()
        # What takes the place of an output, by part.
        self._outputs: dict[Link, Any] = {}

    def convert(self) -> Counter[str]:
        """Replace what the table has rows for; how many of each type."""
        for node in self._before.values():
            if node.type in ROWS:
                self._replace(node, ROWS[node.type])
        for node in self._before.values():
            if self._graph.nodes.get(node.id) is not node:
                told = node.read.union(ROWS[node.type].silent)
                for name in (name for name, _ in node.links if name not in told):
                    self._tell(f"{node.type} {node.id}: {name}: nothing here takes it")
        for node in self._graph.nodes.values():
            for name, link in list(node.links):
                node.inputs[name] = self._resolved(link)
                if node.inputs[name] is NOTHING:
                    del node.inputs[name]
                    if link not in self._outputs:  # else it is meant so
                        self._tell(f"{node.type} {node.id}: {name} is linked to nothing now")
        return self._gone

    def _join(self) -> None:
        """Let links go straight that KJNodes' SetNode and GetNode make by names, or reroutes."""
        nodes = self._graph.nodes
        given = {_name(node): node for node in nodes.values() if node.type == "SetNode"}
        joined: dict[Id, Any] = {}
        for node in nodes.values():
            at = given.get(_name(node)) if node.type == "GetNode" else node
            if node.type in ("SetNode", "GetNode") or _carries_wrapped(node):
                joined[node.id] = next((link for _, link in at.links), NOTHING) if at else NOTHING
        for id in joined:
            del nodes[id]
        for node in nodes.values():
            for name, link in list(node.links):
                seen: set[Id] = set()
                while isinstance(link, Link) and link.node in joined and link.node not in seen:
                    seen.add(link.node)
                    link = joined[link.node]
                node.inputs[name] = link

    def _replace(self, node: Node, row: Row) -> None:
        view = View(node, self._before, self._tell)
        if row.no_equal:
            return view.lost(row.no_equal)
        if row.only is not None and not row.only(view):
            return None
        del self._graph.nodes[node.id]
        self._gone[node.type] += 1
        for name, (same, why) in row.lost.items():
            if (value := view.get(name)) is not NOTHING and value not in same:
                view.lost(f"{name}{'' if isinstance(value, Link) else f' {value}'}: {why}")
        for slot, name in enumerate(row.passes):
            self._outputs[Link(node.id, slot)] = view.get(name)
        main = next((makes for makes in reversed(row.makes) if makes.each is None), None)
        for makes in row.makes:
            view.outputs[makes.key] = self._make(view, makes, makes is main)
        for slot, parts in enumerate(row.outputs):
            for part, (key, output) in parts.items():
                self._outputs[Link(node.id, slot, part)] = view.made(key, output)
        return None

    def _make(self, view: View, makes: Makes, main: bool) -> Any:
        """The last node of a chain, or what stands for it where it is empty."""
        carried = makes.first(view) if makes.first else NOTHING
        node = None
        for each in makes.each(view) if makes.each else [view]:
            inputs = {
                name: each.get(source) if isinstance(source, str) else source(each)
                for name, source in makes.inputs.items()
            }
            if makes.carries:
                inputs[makes.carries] = carried
            inputs = {name: value for name, value in inputs.items() if value is not NOTHING}
            node = self._add(makes.type, each.node, inputs, main)
            carried = MadeLink(node.id, 0)
        return carried if node is None else node

    def _add(self, type: str, old: Node, inputs: dict[str, Any], main: bool) -> Node:
        """A new node; the main one takes the number and the title of that which it stands for."""
        nodes = self._graph.nodes
        id = old.id if main and old.id not in nodes else self._graph.free_id(self._before)
        beside = sum(node.at is not None and node.saved is old.saved for node in nodes.values())
        left, top = _place(old.saved.get("pos"))
        title = old.saved.get("title") or (old.saved.get("_meta") or {}).get("title") or ""
        at = (left - STEP * beside, top - STEP * beside)
        nodes[id] = Node(id, type, inputs, old.saved, at, title if main else "")
        return nodes[id]

    def _resolved(self, link: Link) -> Any:
        """What takes the place of a link; itself where nothing does."""
        value: Any = link
        while isinstance(value, Link) and not isinstance(value, MadeLink):
            if value.node in self._graph.nodes and self._graph.nodes[value.node].at is None:
                break
            if value.node not in self._before:
                break  # what a subgraph is given
            value = self._outputs.get(value, NOTHING)
        return value


def _name(node: Node) -> Any:
    return (node.saved.get("widgets_values") or [None])[0]


def _carries_wrapped(node: Node) -> bool:
    """Whether a node is a reroute for what only the wrapper packs know."""
    outputs = node.saved.get("outputs") or [{}]
    return node.type == "Reroute" and outputs[0].get("type") in WRAPPED


def _place(saved: Any) -> tuple[float, float]:
    """Left and top of a node, which older versions saved as a table."""
    if isinstance(saved, dict):
        saved = [saved.get("0", 0), saved.get("1", 0)]
    return (saved[0], saved[1]) if isinstance(saved, list) and len(saved) >= 2 else (0, 0)
