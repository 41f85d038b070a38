"""The chart of a training run: live, and whole on a page that was opened later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy_host import Server
from comfy_page import ComfyPage, read
from templates import template

TRAIN = template("toyworld_train")
CHART = ".fpreel-training"
STEPS = 40
RUN = 300_000  # milliseconds that a run may take
TOLD = f"""() => {{
    const element = document.querySelector("{CHART}");
    const points = (name) => element.querySelector(name).getAttribute("points").split(" ");
    return {{
        state: element.dataset.state,
        words: element.querySelector(".fpreel-summary").textContent,
        details: element.querySelector(".fpreel-details").textContent,
        raw: points(".fpreel-raw").length,
        smooth: points(".fpreel-smooth").length,
        samples: element.querySelectorAll(".fpreel-sample").length,
    }};
}}"""


def wait_for_state(page: ComfyPage, state: str) -> dict[str, Any]:
    selector = f"{CHART}[data-state={state}]"
    page.page.wait_for_selector(selector, state="attached", timeout=RUN)
    return page.page.evaluate(TOLD)


def test_training_is_shown_and_not_forgotten(
    open_page: Callable[..., ComfyPage], server: Server, renderer: str
) -> None:
    page = open_page()
    page.load(read(TRAIN))
    page.set_widget("FPReelTrainConfig", "steps", STEPS)
    page.set_widget("FPReelTrainConfig", "save_every_steps", STEPS)
    page.set_widget("FPReelSamplePrompts", "every_steps", STEPS // 2)
    page.set_widget("FPReelTrainLora", "output_name", f"chart_{renderer}")
    page.run()
    wait_for_state(page, "training")
    page.page.wait_for_function(
        f"() => ({TOLD})().raw >= 8", timeout=RUN
    )  # a good way into the run, which goes on without a page
    page.close()

    later = open_page()
    later.load(read(TRAIN))
    end = wait_for_state(later, "finished")
    assert end["raw"] == end["smooth"] == STEPS
    assert f"step {STEPS} of {STEPS}" in end["words"] and "loss 0." in end["words"]
    assert "learning rate" in end["details"]
    assert end["samples"] >= 1
    later.show("FPReelTrainLora")

    chart = f"{CHART} .fpreel-chart"
    later.page.locator(chart).focus()
    for _ in range(4):
        later.page.keyboard.press("+")
    zoomed = later.page.evaluate(TOLD)["raw"]
    assert 2 <= zoomed < STEPS
    later.page.keyboard.press("0")
    assert later.page.evaluate(TOLD)["raw"] == STEPS

    later.reload()
    assert wait_for_state(later, "finished")["raw"] == STEPS
