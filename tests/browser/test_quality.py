"""Accessibility, languages, load time, and that old frontends open every workflow."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfy_host import PACK_NAME, Server
from comfy_page import ComfyPage, read
from PIL import Image
from templates import NAMES, template
from workflow import to_api

from framepack_core.runtime.video import VideoWriter

WORKFLOWS = [template(name) for name in NAMES]
I2V = template("toyworld_i2v")
TRAIN = template("toyworld_train")
EVENTS = {"FPReelTrainLora": "fpreel.training", "FPReelSampler": "fpreel.section"}
DRIFT = {"colour": "0.04", "contrast": "1.01"}
SERIOUS = {"serious", "critical"}
ADDED = 150  # milliseconds that the pack may add to the loading of the page
MEASURED = 5  # times
LINE_CONTRAST, TEXT_CONTRAST = 3, 4.5  # that WCAG AA asks for
PAINT = """([selector, style, ground]) => {
    const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
    const pen = canvas.getContext("2d");
    for (const colour of [ground, getComputedStyle(document.querySelector(selector))[style]]) {
        pen.fillStyle = colour;
        pen.fillRect(0, 0, 1, 1);
    }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
}"""


def findings(page: ComfyPage, selector: str) -> list[str]:
    """What axe-core finds serious below a selector."""
    spec = find_spec("axe_playwright_python")
    if spec is None or spec.origin is None:
        pytest.skip("no axe-core: pip install axe-playwright-python")
    page.page.add_script_tag(path=Path(spec.origin).with_name("axe.min.js"))
    found = page.page.evaluate("(selector) => axe.run(selector)", selector)["violations"]
    return [f"{f['id']}: {f['nodes'][0]['html']}" for f in found if f["impact"] in SERIOUS]


@pytest.fixture(params=["dark", "light"])
def themed_page(
    element_page: ComfyPage, server: Server, request: pytest.FixtureRequest
) -> Iterator[Any]:
    """A page in each of ComfyUI's two themes."""
    script = "(theme) => app.extensionManager.setting.set('Comfy.ColorPalette', theme)"
    element_page.page.evaluate(script, request.param)
    element_page.page.wait_for_timeout(500)
    yield element_page
    server.post("/settings", {"Comfy.ColorPalette": "dark"})


@pytest.mark.usefixtures("every_frontend")
def test_timeline_is_accessible(themed_page: ComfyPage) -> None:
    themed_page.load(read(I2V))
    themed_page.show("FPReelPlan")
    themed_page.page.wait_for_selector(".fpreel-timeline [role=option]")
    assert findings(themed_page, ".fpreel-timeline") == []
    themed_page.page.click(".fpreel-timeline [data-tool=text]")
    assert findings(themed_page, ".fpreel-timeline") == []


@pytest.mark.usefixtures("every_frontend")
def test_results_are_accessible(themed_page: ComfyPage) -> None:
    page, workflow = themed_page, read(I2V) | {"id": str(uuid.uuid4())}
    page.load(workflow)
    done = [
        {"section": n, "stored": n == 2, "seconds": 3, "clip": None, "drift": DRIFT} for n in (2, 1)
    ]
    message = {"sections": 3, "order": 1, "section": 1, "done": done, "log": ["ledger: 1"] * 5}
    for state in ("sampling", "interrupted"):
        tell(page, workflow, "FPReelSampler", message | {"state": state})
        page.show("FPReelSampler")
        page.page.wait_for_selector(f".fpreel-result[data-state={state}]")
        assert findings(page, ".fpreel-result") == []


@pytest.mark.usefixtures("every_frontend")
def test_words_on_nodes_are_accessible(themed_page: ComfyPage) -> None:
    """Longer than their place, so that they scroll."""
    page = themed_page
    page.load(read(I2V))
    script = """
        const send = (name, detail) => app.api.dispatchEvent(new CustomEvent(name, { detail }));
        const node_id = String(node.id);
        send("fpreel.text", { node: node_id, text: argument.repeat(30) });
        send("execution_error", {
            node_id, node_type: node.type, exception_type: "FramePackError",
            exception_message: argument.repeat(30), traceback: [], prompt_id: "a",
        });
    """
    page.node("FPReelSampler", script, "a line of words\n")
    page.show("FPReelSampler")
    for words in (".fpreel-said", ".fpreel-error"):
        page.page.wait_for_selector(words)
        assert findings(page, words) == []


@pytest.mark.usefixtures("every_frontend")
def test_training_is_accessible(themed_page: ComfyPage, server: Server) -> None:
    """In every state that train_display.py tells, with samples that do not fit beside."""
    page, workflow = themed_page, read(TRAIN) | {"id": str(uuid.uuid4())}
    page.load(workflow)
    progress = {"step": 30, "steps": 40, "lr": 1e-4, "speed": 0.4, "remaining": 25}
    told: list[dict[str, Any]] = [
        {"state": "loading", "losses": []},
        progress | {"state": "training", "losses": [[n, 1 / (n + 1)] for n in range(1, 31)]},
        {"state": "sampling", "samples": made_samples(server)},
        {"state": "saving", "saved": "demo-step00000030.safetensors"},
        {"state": "interrupted"},
        {"state": "finished"},
    ]
    found: list[str] = []
    for news in told:
        tell(page, workflow, "FPReelTrainLora", news)
        page.page.wait_for_selector(f".fpreel-training[data-state={news['state']}]")
        page.show("FPReelTrainLora")
        found += [f"{news['state']}: {f}" for f in findings(page, ".fpreel-training")]
    assert page.page.locator(".fpreel-sample :is(img, video)").count() == 6
    assert found == []

    chart = page.page.locator(".fpreel-chart")
    pixels = Image.open(io.BytesIO(chart.screenshot())).convert("RGB")
    _, ground = max(pixels.getcolors(pixels.width * pixels.height))
    lines = [contrast(page, f".fpreel-{name}", "stroke", ground) for name in ("raw", "smooth")]
    assert min(lines) >= LINE_CONTRAST
    assert contrast(page, ".fpreel-grid text", "fill", ground) >= TEXT_CONTRAST
    chart.focus()
    page.page.keyboard.press("+")
    assert contrast(page, ".fpreel-chart", "outlineColor", ground) >= LINE_CONTRAST
    assert (chart.get_attribute("aria-label") or "").startswith("Loss of steps ")
    assert "zoom" in (chart.get_attribute("aria-description") or "")


def contrast(page: ComfyPage, selector: str, style: str, ground: tuple[int, ...]) -> float:
    """Of a colour and what it is drawn on, by WCAG; axe cannot tell it on ComfyUI's canvas."""
    painted = page.page.evaluate(PAINT, [selector, style, f"rgb{ground}"])
    low, high = sorted(map(luminance, (ground, painted)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: Sequence[int]) -> float:
    """Relative, 0 to 1, of sRGB bytes."""
    parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


def test_training_reads_out_news_only(page: ComfyPage) -> None:
    """A screen reader hears each state once, not each of several steps a second."""
    states = [("training", 1), ("training", 2), ("saving", 2), ("training", 3)]
    told = [{"state": state, "step": step, "steps": 4} for state, step in states]
    heard = read_out(page, TRAIN, "FPReelTrainLora", ".fpreel-training", told)
    assert heard[0] == heard[1] == "Training · step 1 of 4"
    assert heard[2:] == ["Saving · step 2 of 4", "Training · step 3 of 4"]


def test_results_read_out_news_only(page: ComfyPage) -> None:
    """Each section once, when it is begun."""
    told = [
        {"state": "sampling", "sections": 2, "order": order, "section": 1 - order}
        | {"step": step, "steps": 4}
        for order, step in [(0, 1), (0, 2), (1, 1)]
    ]
    heard = read_out(page, I2V, "FPReelSampler", ".fpreel-result", told)
    assert heard[0] == heard[1] == "Section 1, made 1 of 2, step 1 of 4 · 1:15"
    assert heard[2] == "Section 0, made 2 of 2, step 1 of 4 · 1:15"


def read_out(
    page: ComfyPage, path: Path, node_type: str, view: str, told: list[dict[str, Any]]
) -> list[str]:
    """What a screen reader is given to say after each message of a run."""
    workflow = read(path) | {"id": str(uuid.uuid4())}
    page.load(workflow)
    heard = []
    for news in told:
        tell(page, workflow, node_type, news)
        page.page.wait_for_function(
            "([view, words]) => document.querySelector(`${view} .fpreel-summary`)"
            "?.textContent.includes(words)",
            arg=[view, f"step {news['step']} of 4"],
        )
        heard.append(page.page.inner_text(f"{view} [role=status]"))
    return heard


def tell(page: ComfyPage, workflow: dict[str, Any], node_type: str, news: dict[str, Any]) -> None:
    """A message of a run to its node, as nodes/comfyui/live.py sends it."""
    node = next(node for node in workflow["nodes"] if node["type"] == node_type)
    run = {"event": EVENTS[node_type], "run": "a", "workflow": workflow["id"], "elapsed": 75}
    page.node(
        node_type,
        "app.api.dispatchEvent(new CustomEvent(argument.event, { detail: argument }))",
        run | {"node": str(node["id"])} | news,
    )


def made_samples(server: Server) -> list[dict[str, Any]]:
    """Five pictures and a video in the output folder, as a training run tells of its samples."""
    folder = server.base / "output" / "loras" / "sample"
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(5):
        Image.new("RGB", (128, 96), (40 * n, 90, 160)).save(folder / f"{n}.png")
    with VideoWriter(folder / "5.mp4", width=128, height=96, fps=30) as video:
        for shade in range(0, 250, 25):
            video.write(np.full((96, 128, 3), shade, np.uint8))
    file = {"subfolder": "loras/sample", "type": "output", "step": 30, "prompt": "it hops"}
    return [file | {"filename": name} for name in (*(f"{n}.png" for n in range(5)), "5.mp4")]


@pytest.mark.parametrize(
    ("locale", "words"),
    [("en", "2 sections"), ("ja", "セクション 2 個"), ("zh", "2 段"), ("zh-TW", "2 段")],
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
    too_new = page.newer_nodes(node_info)
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
