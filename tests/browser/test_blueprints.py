"""Subgraph blueprints: offered without a complaint, runnable with Toy World, alive outside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from comfy_host import PACK, Server
from comfy_page import ComfyPage, read
from PIL import Image
from workflow import widget_values

from framepack_core.runtime.video import read_video

BLUEPRINTS = sorted((PACK / "subgraphs").glob("*.json"))
I2V = PACK / "subgraphs" / "FramePack Image to Video.json"
# What stands in for the real models, by the loader of each.
TOY_OUTPUTS = {
    "FPReelLoadModel": 0,
    "DualCLIPLoader": 1,
    "FPReelLoadVAE": 2,
    "FPReelLoadImageEncoder": 3,
}
COMPLETE = """(image) => {
    const graph = app.rootGraph ?? app.graph;
    const whole = graph.nodes[0];
    for (const name of ["image", "end_image"]) {
        const place = whole.inputs.findIndex((input) => input.name === name);
        if (place < 0) continue;
        const load = LiteGraph.createNode("LoadImage");
        graph.add(load);
        load.widgets[0].value = image;
        load.connect(0, whole, place);
    }
    const save = LiteGraph.createNode("SaveVideo");
    graph.add(save);
    whole.connect(0, save, 0);
}"""
SET = """(values) => {
    const whole = (app.rootGraph ?? app.graph).nodes.find((node) => node.subgraph);
    for (const widget of whole.widgets) {
        if (widget.name in values) widget.value = values[widget.name];
    }
}"""

pytestmark = pytest.mark.usefixtures("every_frontend")


def with_toy_world(prompt: dict[str, Any], mode: str) -> dict[str, Any]:
    """A prompt whose models are those of Toy World."""
    slots = {
        number: TOY_OUTPUTS[node["class_type"]]
        for number, node in prompt.items()
        if node["class_type"] in TOY_OUTPUTS
    }
    loader = {"snapshot": "Toy World (built in)", "model": mode, "precision": "auto"}
    made = {"toy": {"class_type": "FPReelLoadSnapshot", "inputs": loader}}
    for number, node in prompt.items():
        if number not in slots:
            inputs = {
                name: ["toy", slots[value[0]]] if is_link(value) and value[0] in slots else value
                for name, value in node["inputs"].items()
            }
            made[number] = node | {"inputs": inputs}
    return made


def is_link(value: Any) -> bool:
    return isinstance(value, list)


def test_blueprints_are_offered(page: ComfyPage, server: Server) -> None:
    offered = {entry["name"] for entry in server.get("/global_subgraphs").values()}
    assert {path.stem for path in BLUEPRINTS} <= offered
    assert page.page.locator(".p-toast-message-error").count() == 0


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_a_blueprint_with_a_picture_and_a_place_to_save_makes_a_video(
    path: Path, page: ComfyPage, server: Server
) -> None:
    Image.new("RGB", (96, 64), "teal").save(server.base / "input" / "start.png")
    page.load(read(path))
    if "Train" in path.stem:
        save = "(graph) => { const made = LiteGraph.createNode('FPReelSaveMerged'); "
        save += "graph.add(made); graph.nodes[0].connect(0, made, 0); }"
        page.page.evaluate(f"() => ({save})(app.rootGraph ?? app.graph)")
        classes = {node["class_type"] for node in page.prompt().values()}
        assert {"FPReelDataset", "FPReelCacheText", "FPReelTrainLora"} <= classes
        return
    page.page.evaluate(COMPLETE, "start.png")
    timeline = '{"version":1,"sections":[{"guidance":5}]}'
    page.page.evaluate(SET, {"seconds": 1.2, "steps": 2, "fps": 24, "timeline": timeline})
    prompt = with_toy_world(page.prompt(), "f1" if "F1" in path.stem else "framepack")
    node_info = server.get("/object_info")
    too_new = page.newer_nodes(node_info)
    for node in prompt.values():
        if node["class_type"] in too_new:
            defaults = dict(widget_values(node_info[node["class_type"]]["input"], iter(())))
            node["inputs"] = defaults | node["inputs"]
    outputs = server.run(prompt)
    (file,) = [f for o in outputs.values() for f in o.get("images", ()) if "mp4" in f["filename"]]
    video = server.base / file["type"] / file["subfolder"] / file["filename"]
    frames, fps = read_video(video)
    assert (frames.shape, fps) == ((37, 64, 64, 3), 24)


def timeline_of(page: ComfyPage) -> list[dict[str, Any]]:
    value = page.inputs("FPReelPlan")["timeline"]
    return json.loads(value)["sections"] if value else []


ROWS = """() => {
    let row = document.querySelector(".fpreel-timeline");
    while (row.parentElement.children.length < 6) row = row.parentElement;
    return [...row.parentElement.children].map((row) => row.innerText);
}"""


def test_the_timeline_is_shown_and_edited_on_the_outside(
    element_page: ComfyPage, renderer: str
) -> None:
    page = element_page
    page.load(read(I2V))
    page.page.evaluate("() => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [300, 100]; }")
    section = ".fpreel-timeline [role=option]:visible"
    page.page.wait_for_selector(section)
    assert page.page.locator(section).count() == 4
    # The frontend holds the field weakly, and makes a new one of it.
    page.page.context.new_cdp_session(page.page).send("HeapProfiler.collectGarbage")
    row = "() => app.graph.nodes[0].widgets.find((w) => w.name === 'timeline').hidden"
    assert page.page.evaluate(row), "the field of the text leaves an empty row"
    if renderer == "vue":  # which has elements for rows
        page.wait_for(lambda: all(page.page.evaluate(ROWS)), True)
    page.page.click(f"{section} >> nth=1")
    page.page.keyboard.press("Enter")
    page.page.keyboard.type("it jumps")
    page.page.keyboard.press("Escape")
    assert timeline_of(page) == [{}, {"prompt": "it jumps"}]
    page.page.click(".fpreel-timeline [data-tool=add]:visible")
    page.wait_for(lambda: page.page.locator(section).count(), 5)
    assert page.inputs("FPReelPlan")["seconds"] == 6

    workflow = page.workflow()
    page.load(workflow)
    page.wait_for(lambda: page.page.locator(section).count(), 5)
    assert timeline_of(page) == [{}, {"prompt": "it jumps"}]


def test_progress_is_shown_on_the_outside(open_page: Callable[..., ComfyPage]) -> None:
    page = open_page()
    page.load(read(I2V))
    script = """() => {
        const graph = app.rootGraph ?? app.graph;
        const whole = graph.nodes.find((node) => node.subgraph);
        const inner = whole.subgraph.nodes.find((node) => node.type === "FPReelSampler");
        const detail = {
            event: "fpreel.section", run: "a", workflow: graph.id, node: `${whole.id}:${inner.id}`,
            state: "sampling", sections: 2, order: 0, section: 1, step: 2, steps: 8, elapsed: 3,
            remaining: 21,
        };
        app.api.dispatchEvent(new CustomEvent("fpreel.section", { detail }));
    }"""
    page.page.evaluate(script)
    shown = "() => (app.rootGraph ?? app.graph).nodes.find((node) => node.subgraph).widgets"
    shown += ".filter((w) => w.name.startsWith('fpreel_live')).map((w) => w.element.innerText)"
    page.wait_for(lambda: len(page.page.evaluate(shown)), 1)
    page.wait_for(lambda: "step 2 of 8" in page.page.evaluate(shown)[0], True)
    assert "21 s left" in page.page.evaluate(shown)[0]
