"""Accessibility, languages, load time, and that old frontends open every workflow."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from comfy_host import PACK, PACK_NAME, Server
from comfy_page import ComfyPage, read
from workflow import NESTED, to_api

WORKFLOWS = sorted((PACK / "example_workflows").glob("*.json"))
I2V = PACK / "example_workflows" / "toyworld_i2v.json"
SERIOUS = {"serious", "critical"}
ADDED = 150  # milliseconds that the pack may add to the loading of the page
MEASURED = 5  # times


def findings(page: ComfyPage, selector: str) -> list[str]:
    """What axe-core finds serious below a selector."""
    spec = find_spec("axe_playwright_python")
    if spec is None or spec.origin is None:
        pytest.skip("no axe-core: pip install axe-playwright-python")
    page.page.add_script_tag(path=Path(spec.origin).with_name("axe.min.js"))
    found = page.page.evaluate("(selector) => axe.run(selector)", selector)["violations"]
    return [f"{f['id']}: {f['nodes'][0]['html']}" for f in found if f["impact"] in SERIOUS]


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_timeline_is_accessible(page: ComfyPage, theme: str, server: Server) -> None:
    page.load(read(I2V))
    page.page.evaluate("(t) => app.extensionManager.setting.set('Comfy.ColorPalette', t)", theme)
    page.page.wait_for_timeout(500)
    page.show("FPReelPlan")
    page.page.wait_for_selector(".fpreel-timeline [role=option]")
    try:
        assert findings(page, ".fpreel-timeline") == []
        page.page.click(".fpreel-timeline [data-tool=text]")
        assert findings(page, ".fpreel-timeline") == []
    finally:
        server.post("/settings", {"Comfy.ColorPalette": "dark"})


def test_results_are_accessible(page: ComfyPage) -> None:
    workflow = read(I2V) | {"id": str(uuid.uuid4())}
    page.load(workflow)
    done = [{"section": 1, "stored": False, "seconds": 3, "clip": None}]
    message = {"event": "fpreel.section", "run": "a", "workflow": workflow["id"]}
    message |= {"state": "sampling", "sections": 3, "order": 1, "section": 1, "elapsed": 4}
    sampler = next(node for node in workflow["nodes"] if node["type"] == "FPReelSampler")
    message |= {"node": str(sampler["id"]), "done": done}
    page.node(
        "FPReelSampler",
        "app.api.dispatchEvent(new CustomEvent('fpreel.section', { detail: argument }))",
        message,
    )
    page.show("FPReelSampler")
    page.page.wait_for_selector(".fpreel-result")
    assert findings(page, ".fpreel-result") == []


@pytest.mark.parametrize(
    ("locale", "words"), [("en", "2 sections"), ("ja", "セクション 2 個"), ("zh", "2 个片段")]
)
def test_languages(open_page: Callable[..., ComfyPage], locale: str, words: str) -> None:
    page = open_page(locale)
    page.load(read(I2V))
    page.show("FPReelPlan")
    page.page.wait_for_selector(".fpreel-timeline [role=option]")
    assert page.page.inner_text(".fpreel-timeline .fpreel-summary").startswith(words)
    shown = page.node("FPReelPlan", "return node.title ?? node.type")
    assert locale == "en" or shown != "FramePack Plan"
    assert "timeline." not in page.page.inner_text(".fpreel-timeline")


@pytest.mark.usefixtures("every_frontend")
def test_every_workflow_opens(page: ComfyPage, server: Server) -> None:
    """Every node is there, and Run would send just what the file says."""
    node_info = server.get("/object_info")
    too_new = newer_nodes(page, node_info)
    for path in WORKFLOWS:
        workflow = read(path)
        page.load(workflow)
        missing = page.page.evaluate(
            "() => (app.rootGraph ?? app.graph).nodes"
            ".filter((node) => !(node.constructor.nodeData || node.isVirtualNode))"
            ".map((node) => node.type)"
        )
        assert missing == [], path.name
        sent = widget_values(page.prompt(), too_new)
        assert sent == widget_values(to_api(workflow, node_info), too_new), path.name


def newer_nodes(page: ComfyPage, node_info: dict[str, Any]) -> set[str]:
    """ComfyUI's own nodes with nested choices, where the frontend is older than those."""
    if NESTED in page.page.evaluate("() => Object.keys(app.widgets)"):
        return set()
    nested = {
        name
        for name, info in node_info.items()
        if any(spec[0] == NESTED for group in info["input"].values() for spec in group.values())
    }
    assert not any(name.startswith("FPReel") for name in nested)
    return nested


def widget_values(prompt: dict[str, Any], left_out: set[str]) -> dict[str, Any]:
    """Of every node what its widgets say, and its class; a browser writes 1.0 as 1."""
    return {
        node_id: {n: v for n, v in node["inputs"].items() if not isinstance(v, list)}
        | {"class": node["class_type"]}
        for node_id, node in prompt.items()
        if node["class_type"] not in left_out
    }


def test_the_page_loads_as_fast_as_without(browser: Any, server: Server, renderer: str) -> None:
    """The best of several loads with the scripts of this pack and with them cut off."""

    def load(cut: bool) -> float:
        context = browser.new_context()
        page = context.new_page()
        if cut:
            page.route(f"**/extensions/{PACK_NAME}/**", lambda route: route.abort())
        page.goto(server.url)
        page.wait_for_function("window.app?.graph && window.app.canvas && window.app.vueAppReady")
        took = page.evaluate("() => performance.now()")
        requested = page.evaluate(
            "(pack) => performance.getEntriesByType('resource')"
            ".filter((entry) => entry.name.includes(pack) && entry.name.endsWith('.css')).length",
            PACK_NAME,
        )
        assert requested == 0, "styles are loaded for a graph that needs none"
        context.close()
        return took

    with_pack, without = [], []
    for _ in range(MEASURED):
        without.append(load(cut=True))
        with_pack.append(load(cut=False))
    added = min(with_pack) - min(without)
    print(f"adds {added:.0f} ms to {min(without):.0f} ms")
    assert added <= ADDED
