"""A workflow under construction: laid out in columns, written as ComfyUI's interface saves it."""

from __future__ import annotations

import sys
import uuid
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from comfy_host import PACK, PACK_NAME, REGISTRY_ID
from workflow import NOTES, WIDGETS

sys.path.append(str(PACK))

from framepack_core.weights.released import released_with

GAP, TITLE = (80, 30), 30  # between columns and nodes; the height of a node's title
ROW, TEXT_ROWS, PICTURE, TIMELINE = 24, 4, 280, 340  # heights
WIDTHS = {
    **{"SaveVideo": 480, "SaveImage": 400, "PreviewImage": 240, "MarkdownNote": 640},
    **{"FPReelPlan": 480},
}
MULTILINE = {"more_loras", "text", "prompts", "lines", "toml"}
SHOWS_PICTURE = {"LoadImage", "LoadVideo", "PreviewImage", "SaveImage", "SaveVideo"}
SHOWS_TEXT = {
    *("FPReelPlan", "FPReelGuideSections", "FPReelPromptSchedule", "FPReelEndFrame"),
    *("FPReelApplyLora", "FPReelSaveMerged"),
    *("FPReelDataset", "FPReelCacheLatents", "FPReelCacheText", "FPReelTrainLora"),
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
    position: tuple[int, int] = (0, 0)

    def __getitem__(self, output: str) -> Socket:
        return Socket(self, list(self.outputs).index(output), self.outputs[output])

    @property
    def size(self) -> tuple[int, int]:
        width = WIDTHS.get(self.type, 340)
        if self.type == "MarkdownNote":
            lines = self.widgets["text"].split("\n")
            return width, 60 + 22 * sum(1 + len(line) // 90 for line in lines)
        rows = max(len(self.sockets), len(self.outputs)) + len(self.widgets)
        rows += TEXT_ROWS * len(MULTILINE & self.widgets.keys())
        rows += 6 * (self.type in SHOWS_TEXT)
        pictures = PICTURE * (self.type in SHOWS_PICTURE) + TIMELINE * ("timeline" in self.widgets)
        return width, 10 + ROW * rows + pictures


class Graph:
    """A workflow under construction, column by column."""

    def __init__(self, name: str, note: str, node_info: dict[str, Any]) -> None:
        self.name, self.node_info = name, node_info
        self.nodes: list[Node] = []
        self.note = self._new("MarkdownNote", "Read me")
        self.note.widgets["text"] = note
        self.columns: list[list[Node]] = [[]]

    def column(self) -> None:
        self.columns.append([])

    def add(self, type: str, title: str | None = None, **inputs: Any) -> Node:
        """A node below the last one; sockets are linked, other values are those of widgets."""
        made = self._new(type, title)
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
        self.nodes.append(Node(len(self.nodes) + 1, type, *self._schema(type), title=title))
        return self.nodes[-1]

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
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{PACK_NAME}/{self.name}")),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(links),
            "nodes": [self._node_json(order, node, links) for order, node in enumerate(self.nodes)],
            "links": links,
            "groups": [],
            "config": {},
            "extra": {"ds": {"scale": 0.7, "offset": [60, 40 - self.note.position[1]]}},
            "version": 0.4,
        }

    def _lay_out(self) -> None:
        x = 0
        for column in self.columns:
            y = 0
            for node in column:
                node.position = (x, y)
                y += node.size[1] + TITLE + GAP[1]
            x += max(node.size[0] for node in column) + GAP[0]
        self.note.position = (0, -self.note.size[1] - TITLE - GAP[1])

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
            "flags": {},
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
            made["properties"] = {"cnr_id": owner, "Node name for S&R": node.type}
            if needed := downloads(node):
                made["properties"]["models"] = needed
        return made


def downloads(node: Node) -> list[dict[str, str]]:
    """The published files that a node's widgets name, as ComfyUI offers them for download."""
    chosen = (value for value in node.widgets.values() if isinstance(value, str))
    return [
        {"name": file.name, "url": file.url, "directory": file.folder}
        for value in chosen
        for file in released_with(value)
    ]
