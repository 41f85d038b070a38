"""Subgraph blueprints: offered without a complaint, and runnable with Toy World."""

from __future__ import annotations

from pathlib import Path

import pytest
from comfy_host import PACK, Server
from comfy_page import ComfyPage, read
from workflow import widget_values

BLUEPRINTS = sorted((PACK / "subgraphs").glob("*.json"))
SOURCES = {
    "model": ("FPReelLoadSnapshot", 0),
    "clip": ("FPReelLoadSnapshot", 1),
    "vae": ("FPReelLoadSnapshot", 2),
    "clip_vision": ("FPReelLoadSnapshot", 3),
    "image": ("FPReelToyWorldScene", 0),
    "end_image": ("FPReelToyWorldScene", 0),
}
CONNECT = """([sources, type]) => {
    const graph = app.rootGraph ?? app.graph;
    const made = {};
    for (const [name, [source, slot]] of Object.entries(sources)) {
        const place = graph.nodes[0].inputs.findIndex((input) => input.name === name);
        if (place < 0) continue;
        if (!made[source]) graph.add((made[source] = LiteGraph.createNode(source)));
        made[source].connect(slot, graph.nodes[0], place);
    }
    const save = LiteGraph.createNode(type);
    graph.add(save);
    graph.nodes[0].connect(0, save, 0);
}"""

pytestmark = pytest.mark.usefixtures("every_frontend")


def test_blueprints_are_offered(page: ComfyPage, server: Server) -> None:
    offered = {entry["name"] for entry in server.get("/global_subgraphs").values()}
    assert {path.stem for path in BLUEPRINTS} <= offered
    assert page.page.locator(".p-toast-message-error").count() == 0


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_a_blueprint_is_complete(path: Path, page: ComfyPage, server: Server) -> None:
    """Connected to Toy World it is a prompt that the server accepts, and videos come out of it."""
    page.load(read(path))
    is_video = "Train" not in path.stem
    page.page.evaluate(CONNECT, [SOURCES, "SaveVideo" if is_video else "FPReelSampler"])
    prompt = page.prompt()
    classes = {node["class_type"] for node in prompt.values()}
    if not is_video:
        assert {"FPReelDataset", "FPReelCacheText", "FPReelTrainLora"} <= classes
        return
    node_info = server.get("/object_info")
    too_new = page.newer_nodes(node_info)
    for node in prompt.values():
        if node["class_type"] in too_new:
            defaults = dict(widget_values(node_info[node["class_type"]]["input"], iter(())))
            node["inputs"] = defaults | node["inputs"]
        if node["class_type"] == "FPReelLoadSnapshot":
            node["inputs"]["model"] = "f1" if "F1" in path.stem else "framepack"
        if node["class_type"] == "FPReelCanvas":
            node["inputs"] |= {"fit": "exact", "width": 64, "height": 64}
        if node["class_type"] == "FPReelSampler":
            node["inputs"]["steps"] = 2
        if node["class_type"] == "FPReelPlan":
            node["inputs"] |= {"seconds": 1.2, "timeline": '{"sections": [{"guidance": 5}]}'}
    outputs = server.run(prompt)
    assert any(shown.get("images") for shown in outputs.values())
