"""What nodes show of runs, while they run and to a page that was opened later."""

from __future__ import annotations

import time
import uuid
from typing import Any

import pytest
from comfy_host import Server
from comfy_page import ComfyPage, read
from templates import template

RUN = 120_000  # milliseconds that a run may take
RESULT = ".fpreel-result"
TOLD = f"""() => {{
    const element = document.querySelector("{RESULT}");
    return element && {{
        state: element.dataset.state,
        words: element.querySelector(".fpreel-summary").textContent,
        log: element.querySelector(".fpreel-log").textContent,
        sections: [...element.querySelectorAll(".fpreel-cells button")].map((b) => b.dataset.state),
        picture: !element.querySelector("img").hidden,
        clip: element.querySelector("video").currentSrc,
        seconds: element.querySelector("video").duration,
    }};
}}"""


@pytest.mark.usefixtures("every_frontend")
def test_sections_are_shown_as_they_are_made(
    element_page: ComfyPage, renderer: str, server: Server
) -> None:
    page = element_page
    page.load(read(template("toyworld_i2v")))
    page.connect("FPReelLoadSnapshot", 2, "FPReelSampler", "vae")
    page.set_widget("FPReelPlan", "sections", 4)
    page.set_widget("FPReelSampler", "steps", 80)  # longer than from one message to the next
    page.set_widget("FPReelSampler", "ledger", False)
    page.set_widget("FPReelSampler", "seed", len(renderer))  # or ComfyUI has the result already
    page.show("FPReelSampler")
    page.page.keyboard.press("Control+Enter")

    page.page.wait_for_selector(RESULT, state="attached", timeout=RUN)
    states, seen, end = [], {}, time.monotonic() + RUN / 1000
    while seen.get("state") != "finished" and time.monotonic() < end:
        seen = page.page.evaluate(TOLD)
        states.append(seen)
        page.page.wait_for_timeout(100)
    assert any(told["picture"] for told in states)
    counts = [told["sections"].count("done") for told in states]
    assert counts == sorted(counts) and {1, 2, 3, 4} <= set(counts)
    playing = [told for told in states if told["sections"].count("done") == 2 and told["clip"]]
    assert playing, "no clip was played while sections were still to be made"
    assert seen["words"].startswith("145 frames · 4.83 s · 64×64 · took ")
    assert seen["log"].count("drift from the start image") == 4
    first = [told["words"] for told in states if "made 1 of 4" in told["words"]]
    assert any(" left" in words for words in first), "no time is told before a section is done"
    texts = page.node("FPReelSampler", "return node.widgets.map((widget) => widget.name)")
    twice = {"$$node-text-preview", "fpreel_text"} & set(texts)
    assert not twice, "the node says twice how far it is"
    page.page.wait_for_function(f"() => document.querySelector('{RESULT} video').duration > 1")
    final = "video[src*='toyworld_i2v'], video source[src*='toyworld_i2v']"
    page.page.wait_for_selector(final, state="attached", timeout=RUN)

    page.reload()
    page.page.wait_for_selector(f"{RESULT}[data-state=finished]", state="attached")
    again = page.page.evaluate(TOLD)
    assert (again["words"], again["sections"]) == (seen["words"], ["done"] * 4)


def test_a_run_is_finished_early_by_its_button_and_then_goes_on(
    element_page: ComfyPage, renderer: str
) -> None:
    page, button = element_page, ".fpreel-finish"
    page.load(read(template("toyworld_i2v")))
    page.set_widget("FPReelPlan", "sections", 3)
    page.set_widget("FPReelSampler", "seed", 300 + len(renderer))
    page.set_widget("FPReelSampler", "steps", 30)
    page.show("FPReelSampler")
    page.run()
    page.page.wait_for_selector(button, timeout=RUN)
    page.page.click(button)
    page.page.wait_for_selector(f"{RESULT}[data-state=finished]", state="attached", timeout=RUN)
    ended = page.page.evaluate(TOLD)
    done = ended["sections"].count("done")
    assert 0 < done < 3 and ended["sections"] == ["open"] * (3 - done) + ["done"] * done
    assert ended["words"].startswith(
        f"finished early with {done} of 3 sections · {36 * done - 3} frames"
    )
    assert page.page.locator(button).is_hidden()

    page.run()
    stored = f"{RESULT}[data-state=finished]:has([data-state=stored])"
    page.page.wait_for_selector(stored, state="attached", timeout=RUN)
    again = page.page.evaluate(TOLD)
    assert again["sections"] == ["done"] * (3 - done) + ["stored"] * done
    assert again["words"].startswith("109 frames")


def test_a_cancelled_run_says_what_is_kept_and_a_fresh_template_nothing(
    element_page: ComfyPage, renderer: str
) -> None:
    page = element_page
    page.load(read(template("toyworld_i2v")))
    page.set_widget("FPReelPlan", "sections", 3)
    page.set_widget("FPReelSampler", "seed", 100 + len(renderer))
    page.set_widget("FPReelSampler", "steps", 40)
    page.run()
    page.page.wait_for_selector(f"{RESULT} [data-state=done]", state="attached", timeout=RUN)
    page.page.evaluate("() => app.api.interrupt(null)")
    page.page.wait_for_selector(f"{RESULT}[data-state=interrupted]", state="attached", timeout=RUN)
    stopped = page.page.evaluate(TOLD)
    kept = stopped["sections"].count("done")
    assert stopped["words"].endswith(f"{kept} of 3 sections are kept: run again to continue")

    page.run()
    page.page.wait_for_selector(f"{RESULT}[data-state=finished]", state="attached", timeout=RUN)
    again = page.page.evaluate(TOLD)
    assert again["sections"] == ["done"] * (3 - kept) + ["stored"] * kept
    assert again["log"].startswith("ledger: ")

    page.load(read(template("toyworld_i2v")))
    page.page.wait_for_timeout(1000)
    assert page.page.locator(RESULT).count() == 0


@pytest.mark.usefixtures("every_frontend")
def test_the_node_tells_what_stopped_the_run(element_page: ComfyPage, renderer: str) -> None:
    """In ComfyUI's own words it is two clicks away; until the next run, and in no file."""
    page, error = element_page, ".fpreel-error"
    page.load(read(template("toyworld_i2v")))
    page.set_widget("FPReelPlan", "mode", "f1")
    page.set_widget("FPReelSampler", "seed", 200 + len(renderer))
    height = page.node("FPReelSampler", "return node.size[1]")
    page.run()
    page.show("FPReelSampler")
    page.page.wait_for_selector(error, timeout=RUN)
    assert page.page.inner_text(error) == (
        "model: it was trained for framepack, but FramePack Plan says f1; set mode to framepack "
        "in FramePack Plan, or load the f1 model"
    )
    assert page.node("FPReelSampler", "return node.size[1]") > height
    assert "fpreel_error" not in str(page.workflow()["nodes"])

    page.set_widget("FPReelPlan", "mode", "framepack")
    page.run()
    page.page.wait_for_selector(f"{RESULT}[data-state=finished]", state="attached", timeout=RUN)
    assert page.page.locator(error).count() == 0


@pytest.mark.usefixtures("every_frontend")
def test_what_a_node_says_stays_after_the_run(
    element_page: ComfyPage, renderer: str, server: Server
) -> None:
    """In its lines, and in no file."""
    page, said = element_page, ".fpreel-said"
    page.load(read(template("toyworld_i2v")))
    page.add("FPReelCheck")
    page.node("FPReelCheck", "node.pos = [0, -400]")  # Nodes 2.0 draws none that was never placed
    page.connect("FPReelLoadSnapshot", 0, "FPReelCheck", "model")
    page.connect("FPReelPlan", 0, "FPReelCheck", "plan")
    page.connect("FPReelStartFrame", 0, "FPReelCheck", "start_latent")
    page.connect("FPReelCheck", 0, "FPReelSampler", "plan")
    page.set_widget("FPReelCheck", "steps", len(renderer))  # or ComfyUI has the result already
    page.set_widget("FPReelSampler", "steps", 2)
    runs = len(server.get("/history"))
    page.run()
    page.wait_for(lambda: len(server.get("/history")) - runs, 1, 2 * RUN / 1000)
    page.page.wait_for_timeout(1500)  # the last messages
    page.show("FPReelCheck")
    first, *more = page.page.inner_text(said).splitlines()
    assert first.startswith("framepack: 64x64, 73 frames") and len(more) >= 3
    texts = page.node("FPReelCheck", "return node.widgets.map((widget) => widget.name)")
    assert texts.count("fpreel_text") == 1 and "$$node-text-preview" not in texts
    assert "fpreel_text" not in str(page.workflow()["nodes"])


def test_another_workflow_is_left_alone(page: ComfyPage) -> None:
    workflow = read(template("toyworld_i2v")) | {"id": str(uuid.uuid4())}
    page.load(workflow)
    script = "app.api.dispatchEvent(new CustomEvent('fpreel.section', { detail: argument }))"
    message: dict[str, Any] = {"event": "fpreel.section", "run": "a", "state": "sampling"}
    message |= {"sections": 2, "elapsed": 1, "node": str(sampler_id(workflow))}
    for other in ({"workflow": "another"}, {"workflow": workflow["id"], "node": "1"}):
        page.node("FPReelSampler", script, message | other)
    page.page.wait_for_timeout(500)
    assert page.page.locator(RESULT).count() == 0
    page.node("FPReelSampler", script, message | {"workflow": workflow["id"]})
    page.page.wait_for_selector(RESULT, state="attached")
    assert "fpreel_live" not in str(page.workflow()["nodes"])
    assert page.inputs("FPReelSampler").get("fpreel_live") is None


def sampler_id(workflow: dict[str, Any]) -> int:
    return next(node["id"] for node in workflow["nodes"] if node["type"] == "FPReelSampler")
