"""A workflow under construction: laid out in columns, written as ComfyUI's interface saves it."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from comfy_host import PACK, REGISTRY_ID
from workflow import NOTES, WIDGETS

sys.path.append(str(PACK))

from framepack_core.weights.released import released_as

VERSION = re.findall(
    r'^version = "(.+)"', (PACK / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
)[0]
CORE_VERSION = "0.3.64"  # the oldest that is supported
GAP, TITLE = (36, 18), 30  # between columns and nodes; the height of a node's title
PADDING, HEADING = 10, 36  # of a group: around its nodes, and above them
# Heights: of a slot, of a widget in either renderer, and of what is more than one of these.
SLOT, ROW, WIDE_ROW, TEXT_ROWS = 20, 24, 28, 2
PICTURE, TIMELINE, BADGE = 190, 345, 24
WINDOW, EDGES = (1600, 1000), (72, 88, 12, 8)  # in pixels; what ComfyUI lays over the canvas
WIDTH, COLLAPSED = 270, 140
WIDTHS = {
    **{"FPReelPlan": 460, "FPReelSampler": 280, "FPReelSaveVideo": 260, "FPReelOneFrame": 270},
    **{"FPReelStartFrame": 205, "FPReelEndFrame": 230, "FPReelControlImage": 205},
    **{"FPReelDataset": 290, "FPReelPromptFile": 310, "FPReelTrainConfig": 310},
    **{"FPReelTrainLora": 420, "FPReelCacheText": 230, "FPReelCanvas": 240, "VAEEncode": 205},
    **{"SaveImage": 200, "PreviewImage": 205, "GetVideoComponents": 225, "ImageFromBatch": 225},
    **{"FPReelCacheLatents": 240, "FPReelTextEncode": 240, "FPReelDecode": 205},
    **{"FPReelCheck": 240, "LoadImage": 240, "FPReelSamplePrompts": 240},
}
GROWS = {"FPReelSampler", "FPReelOneFrame", "FPReelTrainLora"}  # while they run
COLOURS = {
    "Models": "#3f789e",
    "Picture": "#8a6a2f",
    "Pictures": "#8a6a2f",
    "Video": "#8a6a2f",
    "Prompt and length": "#5f7d3b",
    "Prompt": "#5f7d3b",
    "Size and length": "#5f7d3b",
    "LoRA": "#7a5a8c",
    "Lessons": "#8a6a2f",
    "Data set": "#8a6a2f",
    "Before it starts": "#7a5a8c",
    "Settings": "#5f7d3b",
    "Make": "#9a4f4f",
    "Train": "#9a4f4f",
    "Result": "#4d7f7f",
}
MULTILINE = {"more_loras", "text", "prompts", "lines", "toml"}
SHOWS_PICTURE = {"LoadImage", "LoadVideo", "PreviewImage", "SaveImage", "FPReelSaveVideo"}
SHOWS_TEXT = {
    *("FPReelEndFrame", "FPReelApplyLora", "FPReelCheck"),
    *("FPReelDataset", "FPReelCacheLatents", "FPReelCacheText"),
}

# Sockets, widgets and outputs of ComfyUI's own nodes, as all supported versions have them.
CORE: dict[str, tuple[dict[str, str], dict[str, Any], dict[str, str]]] = {
    "CreateVideo": ({"images": "IMAGE", "audio": "AUDIO"}, {"fps": 30.0}, {"VIDEO": "VIDEO"}),
    "DualCLIPLoader": (
        {},
        {
            "clip_name1": "clip_l.safetensors",
            "clip_name2": "llava_llama3_fp16.safetensors",
            "type": "hunyuan_video",
            "device": "default",
        },
        {"CLIP": "CLIP"},
    ),
    "GetVideoComponents": (
        {"video": "VIDEO"},
        {},
        {"images": "IMAGE", "audio": "AUDIO", "fps": "FLOAT"},
    ),
    "ImageFromBatch": ({"image": "IMAGE"}, {"batch_index": 0, "length": 1}, {"IMAGE": "IMAGE"}),
    "LoadImage": (
        {},
        {"image": "example.png", "upload": "image"},
        {"IMAGE": "IMAGE", "MASK": "MASK"},
    ),
    "LoadVideo": ({}, {"file": "example.mp4", "upload": "image"}, {"VIDEO": "VIDEO"}),
    "LoraModelLoader": (
        {"model": "MODEL", "lora": "LORA_MODEL"},
        {"strength_model": 1.0},
        {"model": "MODEL"},
    ),
    "LossGraphNode": ({"loss": "LOSS_MAP"}, {"filename_prefix": "loss_graph"}, {}),
    "MarkdownNote": ({}, {"text": ""}, {}),
    "PreviewImage": ({"images": "IMAGE"}, {}, {}),
    "SaveImage": ({"images": "IMAGE"}, {"filename_prefix": "ComfyUI"}, {}),
    "SaveVideo": (
        {"video": "VIDEO"},
        {"filename_prefix": "video", "format": "auto", "codec": "auto"},
        {},
    ),
    "VAEEncode": ({"pixels": "IMAGE", "vae": "VAE"}, {}, {"LATENT": "LATENT"}),
}


class Socket(NamedTuple):
    """An output of a node, to be given to the input of another."""

    node: Node
    slot: int
    kind: str


@dataclass
class Node:
    """A node of a workflow: its inputs by name (type, optional), widgets, outputs and links."""

    id: int
    type: str
    sockets: dict[str, tuple[str, bool]]
    widgets: dict[str, Any]
    outputs: dict[str, str]
    links: dict[str, Socket] = field(default_factory=dict)
    title: str | None = None
    folded: int = 0  # widgets that Nodes 2.0 shows only when asked
    group: str | None = None
    span: int = 1  # columns that it is wide
    collapsed: bool = False
    width: int = 0  # where it is not that of its type
    position: tuple[int, int] = (0, 0)

    def __getitem__(self, output: str) -> Socket:
        return Socket(self, list(self.outputs).index(output), self.outputs[output])

    @property
    def size(self) -> tuple[int, int]:
        width = self.width or (COLLAPSED if self.collapsed else WIDTHS.get(self.type, WIDTH))
        if self.type == "MarkdownNote":
            return width, note_height(self.widgets["text"], width)
        if self.collapsed:
            return width, 0
        slots = SLOT * max(len(self.sockets.keys() - self.widgets.keys()), len(self.outputs))
        texts = TEXT_ROWS * len(MULTILINE & self.widgets.keys())
        classic = 10 + slots + ROW * (len(self.widgets) + texts)
        # A button unfolds what is folded away.
        rows = len(self.widgets) - self.folded + texts + bool(self.folded)
        wide = 18 + slots + WIDE_ROW * rows + BADGE * self.type.startswith("FPReel")
        more = 3 * ROW * (self.type in SHOWS_TEXT) + PICTURE * (self.type in SHOWS_PICTURE)
        shown = "timeline" in self.widgets and "timeline" not in self.links
        return width, max(classic, wide) + more + TIMELINE * shown


def note_height(text: str, width: int) -> int:
    """Of a note whose links show their words only."""
    shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    letters = (width - 40) // 6  # in a line
    return 70 + 18 * sum(1 + len(line) // letters for line in shown.split("\n"))


def box_of(node: Node) -> tuple[int, int, int, int]:
    """Left, top, right and bottom, with the title."""
    (x, y), (width, height) = node.position, node.size
    return x, y - TITLE, x + width, y + height


class Graph:
    """A workflow under construction, column by column: links lead from one to a later one."""

    def __init__(self, name: str, note: str, node_info: dict[str, Any]) -> None:
        self.name, self.node_info = name, node_info
        self.nodes: list[Node] = []
        self.note = self._new("MarkdownNote", "Read me")
        self.note.widgets["text"] = note
        self.columns: list[list[Node]] = []
        self.group: str | None = None

    def column(self, group: str | None = None) -> None:
        """Begin a column, in a group of its own or in that of the last column."""
        self.columns.append([])
        self.group = group or self.group

    def below(self, group: str) -> None:
        """Begin a group further down in the same column."""
        self.group = group

    def add(self, type: str, title: str | None = None, span: int = 1, **inputs: Any) -> Node:
        """A node below the last one; sockets are linked, other values are those of widgets.

        span: one that is wide, below all that is in so many columns.
        """
        made = self._new(type, title)
        made.group, made.span = self.group, span
        for name, value in inputs.items():
            if isinstance(value, Socket):
                made.links[name] = value
                if name in made.widgets:
                    made.sockets[name] = (value.kind, False)
            else:
                assert name in made.widgets, f"{type} has no widget {name}"
                made.widgets[name] = value
        self.columns[-1].append(made)
        return made

    def _new(self, type: str, title: str | None) -> Node:
        made = Node(len(self.nodes) + 1, type, *self._schema(type), title=title)
        made.folded = sum(self._is_advanced(type, name) for name in made.widgets)
        self.nodes.append(made)
        return made

    def _is_advanced(self, type: str, widget: str) -> bool:
        inputs = self.node_info.get(type, {}).get("input", {}) if type not in CORE else {}
        specs = (group[widget] for group in inputs.values() if widget in group)
        return any(len(spec) > 1 and spec[1].get("advanced") for spec in specs)

    def _schema(self, type: str) -> tuple[dict[str, tuple[str, bool]], dict[str, Any], dict]:
        if type in CORE:
            sockets, widgets, outputs = CORE[type]
            return {n: (k, n == "audio") for n, k in sockets.items()}, dict(widgets), dict(outputs)
        info = self.node_info[type]
        sockets, widgets = {}, {}
        for group in ("required", "optional"):
            for name, (kind, *rest) in info["input"].get(group, {}).items():
                options = rest[0] if rest else {}
                if kind in WIDGETS and not options.get("forceInput"):
                    widgets[name] = options.get("default", "")
                    if options.get("control_after_generate"):
                        widgets[f"{name} after"] = "fixed"
                else:
                    sockets[name] = (kind, group == "optional")
        return sockets, widgets, dict(zip(info["output_name"], info["output"], strict=True))

    def to_json(self) -> dict[str, Any]:
        self._lay_out()
        links = [
            [source.node.id, source.slot, node.id, list(node.sockets).index(name), source.kind]
            for node in self.nodes
            for name, source in node.links.items()
        ]
        links = [[number, *link] for number, link in enumerate(sorted(links), 1)]
        # Without an id, which ComfyUI gives it when it is opened: what runs report is kept by it.
        return {
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(links),
            "nodes": [self._node_json(order, node, links) for order, node in enumerate(self.nodes)],
            "links": links,
            "groups": list(self._groups()),
            "config": {},
            "extra": {"ds": self._view()},
            "version": 0.4,
        }

    def _lay_out(self) -> None:
        widths = [max(n.size[0] for n in column if n.span == 1) for column in self.columns]
        lefts = [sum(widths[:i]) + GAP[0] * i for i in range(len(widths))]
        ends: list[tuple[int, str | None]] = [(0, None)] * len(widths)  # bottom and last group

        def place(node: Node, first: int) -> None:
            columns = range(first, first + node.span)
            node.width = sum(widths[i] for i in columns) + GAP[0] * (node.span - 1)
            top = max(ends[i][0] for i in columns)
            if any(ends[i][1] != node.group for i in columns):
                top += (PADDING + GAP[1] if top else 0) + (HEADING if node.group else 0)
            node.position = (lefts[first], top + TITLE)
            for i in columns:
                ends[i] = top + TITLE + node.size[1] + GAP[1], node.group

        columns = list(enumerate(self.columns))
        placed = [(node, first) for first, column in columns for node in column]
        for node, first in sorted(placed, key=lambda each: each[0].span > 1):
            place(node, first)
        self._place_note(lefts, widths, ends)

    def _place_note(
        self, lefts: list[int], widths: list[int], ends: list[tuple[int, str | None]]
    ) -> None:
        """Below the group where it adds the least height, and where no run shows itself later."""
        columns = range(len(ends))
        grows = {i for i in columns if GROWS & {node.type for node in self.columns[i]}}
        places = []
        for group in dict.fromkeys(group for _, group in ends):
            below = [i for i in columns if ends[i][1] == group]
            width = sum(widths[i] for i in below) + GAP[0] * (len(below) - 1)
            top = max(ends[i][0] for i in below) + PADDING + GAP[1]
            height = note_height(self.note.widgets["text"], width)
            if grows.isdisjoint(below):
                places.append((top + height, top, lefts[below[0]], width))
        _, top, left, self.note.width = min(places)
        self.note.position = (left, top + TITLE)

    def _groups(self) -> Iterator[dict[str, Any]]:
        names = dict.fromkeys(node.group for node in self.nodes if node.group)
        for number, name in enumerate(names, 1):
            boxes = [box_of(node) for node in self.nodes if node.group == name]
            left, top = (min(box[i] for box in boxes) for i in (0, 1))
            right, bottom = (max(box[i] for box in boxes) for i in (2, 3))
            size = right - left + 2 * PADDING, bottom - top + HEADING + PADDING
            yield {
                "id": number,
                "title": name,
                "bounding": [left - PADDING, top - HEADING, *size],
                "color": COLOURS[name],
                "font_size": 24,
                "flags": {},
            }

    def _view(self) -> dict[str, Any]:
        """All of it in a window of usual size, and no larger than it is."""
        boxes = [box_of(node) for node in self.nodes]
        boxes += [(x, y, x + w, y + h) for x, y, w, h in (g["bounding"] for g in self._groups())]
        left, top = (min(box[i] for box in boxes) for i in (0, 1))
        right, bottom = (max(box[i] for box in boxes) for i in (2, 3))
        room = WINDOW[0] - EDGES[0] - EDGES[2], WINDOW[1] - EDGES[1] - EDGES[3]
        scale = min(1.0, room[0] / (right - left), room[1] / (bottom - top))
        scale = math.floor(scale * 1000) / 1000
        offset = [round(EDGES[0] / scale - left), round(EDGES[1] / scale - top)]
        return {"scale": scale, "offset": offset}

    def _node_json(self, order: int, node: Node, links: list[list[Any]]) -> dict[str, Any]:
        into = {link[4]: link[0] for link in links if link[3] == node.id}
        out = [
            [link[0] for link in links if link[1:3] == [node.id, slot]] or None
            for slot in range(len(node.outputs))
        ]
        made = {
            "id": node.id,
            "type": node.type,
            "pos": list(node.position),
            "size": list(node.size),
            "flags": {"collapsed": True} if node.collapsed else {},
            "order": order,
            "mode": 0,
            "inputs": [
                {"name": name, "type": kind}
                | ({"widget": {"name": name}} if name in node.widgets else {})
                | {"link": into.get(place)}
                | ({"shape": 7} if optional else {})  # drawn as a hollow circle
                for place, (name, (kind, optional)) in enumerate(node.sockets.items())
            ],
            "outputs": [
                {"name": name, "type": kind, "links": out[slot]}
                for slot, (name, kind) in enumerate(node.outputs.items())
            ],
            "properties": {},
            "widgets_values": list(node.widgets.values()),
        }
        if node.title:
            made["title"] = node.title
        if node.type not in NOTES:
            owner = REGISTRY_ID if node.type.startswith("FPReel") else "comfy-core"
            version = VERSION if owner == REGISTRY_ID else CORE_VERSION
            made["properties"] = {"cnr_id": owner, "ver": version, "Node name for S&R": node.type}
            if needed := downloads(node):
                made["properties"]["models"] = needed
        return made


def downloads(node: Node) -> list[dict[str, str]]:
    """The published files that a node's widgets name, as ComfyUI offers them for download."""
    chosen = (value for value in node.widgets.values() if isinstance(value, str))
    return [
        {"name": file.name, "url": file.url, "directory": file.folder}
        for file in filter(None, map(released_as, chosen))
    ]
