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
    workflow = page.workflow()
    page.run()
    wait_for_state(page, "training")
    page.page.wait_for_function(
        f"() => ({TOLD})().raw >= 8", timeout=RUN
    )  # a good way into the run, which goes on without a page
    page.close()

    later = open_page()
    later.load(workflow)
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

    later.set_widget("FPReelTrainConfig", "steps", STEPS + 4)
    later.set_widget("FPReelSamplePrompts", "every_steps", STEPS + 4)
    later.run()
    words = f"step {STEPS + 4} of {STEPS + 4}"
    later.page.wait_for_function(
        f"() => {{ const told = ({TOLD})(); "
        f"return told.state === 'finished' && told.words.includes('{words}'); }}",
        timeout=RUN,
    )
    assert later.page.evaluate(TOLD)["raw"] == STEPS + 4, "a resumed run has lost its beginning"
    seen = f"{CHART} .fpreel-sample :is(video, img)"
    assert f"_{STEPS + 4:06d}_" in later.page.get_attribute(seen, "src")
    slider = later.page.locator(f"{CHART} .fpreel-steps input")
    steps = int(slider.get_attribute("max"))
    assert steps >= 2
    slider.evaluate("(input) => { input.value = 1; input.dispatchEvent(new Event('input')); }")
    assert f"_{STEPS // 2:06d}_" in later.page.get_attribute(seen, "src")


def test_states_of_trainings_are_no_loras(server: Server) -> None:
    folder = server.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("kept.safetensors", "kept.state", "earlier-state.pt"):
        (folder / name).touch()

    def listed(node: str, widget: str) -> list[str]:
        kind, *more = server.get(f"/object_info/{node}")[node]["input"]["required"][widget]
        return kind if isinstance(kind, list) else more[0]["options"]

    own, core = listed("FPReelApplyLora", "lora"), listed("LoraLoaderModelOnly", "lora_name")
    assert "kept.safetensors" in own and "kept.safetensors" in core
    assert not {"kept.state", "earlier-state.pt"} & set(own) and "kept.state" not in core
