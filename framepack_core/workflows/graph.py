"""Workflow files as graphs of nodes with named inputs: read, and written in their own format.

Formats: what the interface saves (0.4 with links as lists, 1 with links as tables, subgraphs in
`definitions`), and prompts of the API.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..runtime.errors import FramePackError
from .kinds import AFTER, KINDS, TYPES, kind_of_value

Id = int | str
Widgets = Mapping[str, Sequence[Sequence[str]]]  # by type of node: names in order, by version
OUTSIDE, RETURNED = -10, -20  # what a subgraph is given and what it gives, as nodes
MUTED, BYPASSED = 2, 4
LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")


class Link(NamedTuple):
    """An output of a node; part: which value of several that it carries as one."""

    node: Id
    slot: int
    part: str = ""


class MadeLink(Link):
    """An output of a node that takes the place of others."""


@dataclass
class Node:
    """A node: links and, of nodes whose widgets are known, values by name; saved: as in the file.

    at: where to draw a node that is made; empty for one from the file. read: names of inputs that
    were asked for.
    """

    id: Id
    type: str
    inputs: dict[str, Any]
    saved: dict[str, Any] = field(default_factory=dict)
    at: tuple[float, float] | None = None
    title: str = ""
    read: set[str] = field(default_factory=set)

    @property
    def mode(self) -> int:
        return self.saved.get("mode", 0)

    @property
    def links(self) -> Iterator[tuple[str, Link]]:
        return ((name, link) for name, link in self.inputs.items() if isinstance(link, Link))


class Graph:
    """One level of a workflow: the whole, or the inside of a subgraph."""

    nodes: dict[Id, Node]

    def free_id(self, others: Iterable[Id]) -> Id:
        """For a new node: unlike those of its own and of others."""
        ids = (int(id) for id in (*self.nodes, *others) if str(id).isdecimal())
        return 1 + max(ids, default=0)

    def write(self) -> None:
        """Put the nodes as they are now into the table that they were read from."""
        raise NotImplementedError


class Prompt(Graph):
    """A prompt of the API."""

    def __init__(self, table: dict[str, Any]) -> None:
        self.table = table
        self.nodes = {}
        for id, saved in table.items():
            inputs = {name: _link(v, table) for name, v in saved.get("inputs", {}).items()}
            self.nodes[id] = Node(id, str(saved["class_type"]), inputs, saved)

    def free_id(self, others: Iterable[Id]) -> Id:
        return str(super().free_id(others))

    def write(self) -> None:
        self.table.clear()
        for node in self.nodes.values():
            values = {n: v for n, v in node.inputs.items() if not n.endswith(AFTER)}
            if node.at is not None:
                values = KINDS[node.type].defaults() | values
            inputs = {n: [v.node, v.slot] if isinstance(v, Link) else v for n, v in values.items()}
            title = {"_meta": {"title": node.title}} if node.title else {}
            made = {"class_type": node.type, "inputs": inputs, **title}
            self.table[str(node.id)] = made if node.at is not None else {**node.saved, **made}


def _link(value: Any, prompt: Mapping[str, Any]) -> Any:
    is_link = isinstance(value, list) and len(value) == 2 and str(value[0]) in prompt
    return Link(str(value[0]), int(value[1])) if is_link else value


class Canvas(Graph):
    """What the interface saves: a workflow, or a subgraph of one."""

    def __init__(self, table: dict[str, Any], widgets: Widgets) -> None:
        self.table = table
        self._links = {link[0]: link for link in map(_as_list, table["links"])}
        self._ids: dict[tuple[Id, str], Id] = {}  # of links, by what they lead to
        self._as_tables = any(isinstance(link, dict) for link in table["links"])
        self.nodes = {}
        for saved in table["nodes"]:
            inputs = _values(saved, widgets.get(saved["type"]))
            for socket in saved.get("inputs") or ():
                self._take(inputs, saved["id"], socket["name"], socket.get("link"))
            self.nodes[saved["id"]] = Node(saved["id"], saved["type"], inputs, saved)
        if "outputNode" in table:
            inputs = {}
            for slot, output in enumerate(table.get("outputs", ())):
                for link in output.get("linkIds", ()):
                    self._take(inputs, RETURNED, str(slot), link)
            self.nodes[RETURNED] = Node(RETURNED, "", inputs)

    def _take(self, inputs: dict[str, Any], node: Id, name: str, link: Any) -> None:
        if link in self._links:
            inputs[name] = Link(*self._links[link][1:3])
            self._ids[node, name] = link

    def write(self) -> None:
        links: list[list[Any]] = []
        last = max([0, self.table.get("last_link_id", 0), *self._links])
        shown = [node for node in self.nodes.values() if node.id != RETURNED]
        for node in self.nodes.values():
            names = self._names(node)
            for name, link in node.links:
                id = None if node.at is not None else self._ids.get((node.id, name))
                if id is None:
                    id = last = last + 1
                kind = self._output_type(link)
                links.append([id, link.node, link.slot, node.id, names.index(name), kind])
        self.table["nodes"] = [self._saved(node, order, links) for order, node in enumerate(shown)]
        ids = [node.id for node in shown if isinstance(node.id, int)]
        if "last_node_id" in self.table:
            last_node = max([self.table["last_node_id"], *ids])
            self.table |= {"last_node_id": last_node, "last_link_id": last}
        if "state" in self.table:
            state = self.table["state"]
            last_node = max([state.get("lastNodeId", 0), *ids])
            self.table["state"] = {**state, "lastNodeId": last_node, "lastLinkId": last}
        self._write_ends(links)
        self.table["links"] = [self._as_saved(link) for link in links]

    def _names(self, node: Node) -> list[str]:
        """Names of the inputs that have a socket, in their order."""
        if node.id == RETURNED:
            return [str(slot) for slot in range(len(self.table["outputs"]))]
        if node.at is None:
            return [socket["name"] for socket in node.saved.get("inputs") or ()]
        kind = KINDS[node.type]
        linked = dict(node.links)
        return [*kind.sockets, *(name for name in kind.widgets if name in linked)]

    def _output_type(self, link: Link) -> str:
        if link.node == OUTSIDE:
            kind: str = self.table["inputs"][link.slot]["type"]
        else:
            node = self.nodes[link.node]
            if node.at is not None:
                return list(KINDS[node.type].outputs.values())[link.slot]
            kind = node.saved["outputs"][link.slot]["type"]
        return _renamed(kind)

    def _saved(self, node: Node, order: int, links: list[list[Any]]) -> dict[str, Any]:
        into = {link[4]: link[0] for link in links if link[3] == node.id}
        out: dict[int, list[Id]] = {}
        for link in links:
            if link[1] == node.id:
                out.setdefault(link[2], []).append(link[0])
        saved = copy.deepcopy(node.saved) if node.at is None else self._made(node)
        saved["order"] = order
        for slot, socket in enumerate(saved.get("inputs") or ()):
            socket["link"] = into.get(slot)
            socket["type"] = _renamed(socket["type"])
        for slot, output in enumerate(saved.get("outputs") or ()):
            output["links"] = out.get(slot)
            output["type"] = _renamed(output["type"])
        return saved

    def _made(self, node: Node) -> dict[str, Any]:
        kind = KINDS[node.type]
        sockets = [
            {"name": name, "type": kind.sockets[name]}
            if name in kind.sockets
            else {
                "name": name,
                "type": kind_of_value(kind.widgets[name]),
                "widget": {"name": name},
            }
            for name in self._names(node)
        ]
        values = {n: v for n, v in node.inputs.items() if not isinstance(v, Link)}
        values = kind.widgets | {n: v for n, v in values.items() if n in kind.widgets}
        rows = len(kind.sockets) + len(kind.widgets)
        made = {
            "id": node.id,
            "type": node.type,
            "pos": list(node.at or (0, 0)),
            "size": [300, 50 + 24 * rows],
            "flags": {},
            "order": 0,
            "mode": node.mode,
            "inputs": sockets,
            "outputs": [{"name": name, "type": type} for name, type in kind.outputs.items()],
            "properties": {"cnr_id": kind.pack, "Node name for S&R": node.type},
            "widgets_values": list(values.values()),
        }
        return made | ({"title": node.title} if node.title else {})

    def _write_ends(self, links: list[list[Any]]) -> None:
        """What a subgraph is given and gives."""
        if "outputNode" not in self.table:
            return
        for side, place, key in ((OUTSIDE, 1, "inputs"), (RETURNED, 3, "outputs")):
            for slot, end in enumerate(self.table.get(key, ())):
                end["linkIds"] = [k[0] for k in links if k[place : place + 2] == [side, slot]]
                end["type"] = _renamed(end["type"])

    def _as_saved(self, link: list[Any]) -> Any:
        if not self._as_tables:
            return link
        return dict(zip(LINK, link, strict=True))


def _as_list(link: Any) -> list[Any]:
    if isinstance(link, dict):
        return [link[name] for name in LINK]
    id, origin, slot, target, place, kind = link
    return [id, origin, slot, target, place, kind]


def _renamed(kind: Any) -> Any:
    return TYPES.get(kind, kind) if isinstance(kind, str) else kind


def _values(saved: Mapping[str, Any], versions: Sequence[Sequence[str]] | None) -> dict[str, Any]:
    """The widgets of a node whose type is known, by the longest list of names that they fill."""
    values = saved.get("widgets_values") or ()
    if isinstance(values, dict):
        return dict(values)
    if versions is None:
        return {}
    names = max((v for v in versions if len(v) <= len(values)), key=len, default=versions[-1])
    return dict(zip(names, values, strict=False))


def graphs_of(workflow: Any, widgets: Widgets, place: str) -> list[Graph]:
    """The levels of a workflow or a prompt, which write themselves into it.

    Raises FramePackError, naming the place, for what is neither.
    """
    if isinstance(workflow, dict) and isinstance(workflow.get("nodes"), list):
        inner = (workflow.get("definitions") or {}).get("subgraphs") or []
        return [Canvas(level, widgets) for level in (workflow, *inner)]
    prompt = workflow.get("prompt", workflow) if isinstance(workflow, dict) else None
    if isinstance(prompt, dict) and prompt and all("class_type" in n for n in prompt.values()):
        return [Prompt(prompt)]
    raise FramePackError(
        f"{place}: it is no workflow of ComfyUI; give a file of Save, Export or Export (API)"
    )
