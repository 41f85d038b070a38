"""The section timeline, used by mouse and keyboard."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from comfy_page import ComfyPage, read
from PIL import Image
from shared_zip import write_zip
from templates import template

I2V = template("toyworld_i2v")
SECTIONS = template("toyworld_sections")
TIMELINE = ".fpreel-timeline"
SECTION = f"{TIMELINE} [role=option]"

pytestmark = pytest.mark.usefixtures("every_frontend")


@pytest.fixture
def timeline(element_page: ComfyPage) -> ComfyPage:
    """The timeline of a video of two sections, with all that it can need connected."""
    page = element_page
    page.load(read(I2V))
    for output, name in ((1, "clip"), (2, "vae"), (3, "clip_vision")):
        page.connect("FPReelLoadSnapshot", output, "FPReelPlan", name)
    page.show("FPReelPlan")
    page.page.wait_for_selector(SECTION)
    return page


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "keyframe.png"
    Image.new("RGB", (96, 64), "teal").save(path)
    return path


def sections(page: ComfyPage) -> list[dict[str, Any]]:
    text = page.inputs("FPReelPlan")["timeline"]
    return json.loads(text)["sections"] if text else []


def press(page: ComfyPage, *keys: str) -> None:
    for key in keys:
        page.page.keyboard.press(key)
    page.page.wait_for_timeout(100)


def click(page: ComfyPage, name: str) -> None:
    page.page.click(f"{TIMELINE} [data-tool={name}]")


def build(page: ComfyPage, picture: Path) -> None:
    """Four sections: made by mouse and by keyboard, one with a picture dropped on it."""
    click(page, "add")
    page.page.click(f"{SECTION} >> nth=0")
    press(page, "Insert", "Home", "Enter")
    page.page.keyboard.type("a red circle moves right")
    press(page, "Escape", "ArrowRight", "ArrowRight", "F2")
    page.page.keyboard.type("a red circle moves down")
    page.page.fill(f"{TIMELINE} .fpreel-padding input", "0")
    press(page, "Tab")
    page.page.fill(f"{TIMELINE} .fpreel-guidance input", "8.5")
    press(page, "Tab")
    page.page.fill(f"{TIMELINE} .fpreel-lora_strength input", "0.35")
    press(page, "Tab")
    page.drop_file(picture, f"{SECTION} >> nth=1", "image/png")
    page.page.wait_for_selector(f"{SECTION}.fpreel-has-image")


BUILT = [
    {"prompt": "a red circle moves right"},
    {"image": "keyframe.png"},
    {
        "prompt": "a red circle moves down",
        "padding": 0,
        "guidance": 8.5,
        "lora_strength": 0.35,
    },
]


def check_lora_strengths(page: ComfyPage) -> None:
    """Of the third section that `build` makes alone, in its field and on the strip."""
    field = page.page.locator(f"{TIMELINE} .fpreel-lora_strength input")
    assert field.get_attribute("placeholder") == "1"
    for index, value in enumerate(("", "", "0.35", "")):
        section = page.page.locator(f"{SECTION} >> nth={index}")
        section.click()
        assert field.input_value() == value
        for words in ("title", "aria-label"):
            assert ("LoRA strength: 0.35" in section.get_attribute(words)) == bool(value)


def test_plan_by_mouse_and_keyboard(timeline: ComfyPage, picture: Path) -> None:
    build(timeline, picture)
    inputs = timeline.inputs("FPReelPlan")
    assert (inputs["length"], inputs["sections"]) == ("sections", 4)
    assert sections(timeline) == BUILT
    summary = timeline.page.inner_text(f"{TIMELINE} .fpreel-summary")
    assert summary == "4 sections · 145 frames · 4.83 s · 64×64"
    assert timeline.page.locator(SECTION).count() == 4
    made = timeline.page.locator(f"{SECTION} .fpreel-made").all_inner_texts()
    assert made == [f"made {n} of 4" for n in (4, 3, 2, 1)]
    check_lora_strengths(timeline)


def test_edits_can_be_undone(timeline: ComfyPage) -> None:
    timeline.page.click(f"{SECTION} >> nth=1")
    press(timeline, "Enter")
    timeline.page.keyboard.type("first words")
    press(timeline, "Escape", "c")
    assert sections(timeline) == [{}, {"prompt": "first words"}, {"prompt": "first words"}]
    press_until(timeline, "Control+z", [{}, {"prompt": "first words"}])
    words = timeline.page.locator(f"{SECTION} .fpreel-words").all_inner_texts()
    assert words == ["", "first words"], "what is shown is not what was undone"
    press_until(timeline, "Control+z", [])
    press_until(timeline, "Control+y", [{}, {"prompt": "first words"}])
    assert timeline.inputs("FPReelPlan")["sections"] == 2
    timeline.page.click(f"{SECTION} >> nth=0")
    press(timeline, "Insert")
    assert sections(timeline) == [{}, {}, {"prompt": "first words"}], "edits go nowhere"
    timeline.load(read(I2V) | {"id": "another"})
    words = timeline.page.locator(f"{SECTION} .fpreel-words")
    timeline.wait_for(lambda: words.all_inner_texts(), ["", ""])


def press_until(page: ComfyPage, key: str, expected: list[dict[str, Any]]) -> None:
    """ComfyUI may take sizes of nodes, or a part of what was typed, for steps of their own."""
    for _ in range(4):
        press(page, key)
        page.page.wait_for_timeout(1500)  # ComfyUI loads the whole graph again
        if sections(page) == expected:
            return
    assert sections(page) == expected


def test_sections_are_moved_split_merged_and_removed(timeline: ComfyPage) -> None:
    timeline.page.click(f"{SECTION} >> nth=0")
    press(timeline, "F2")
    timeline.page.keyboard.type("one")
    press(timeline, "Escape", "Alt+ArrowRight")
    assert sections(timeline) == [{}, {"prompt": "one"}]
    press(timeline, "s")
    assert sections(timeline) == [{}, {"prompt": "one"}, {"prompt": "one"}]
    press(timeline, "m", "Home", "m")
    assert sections(timeline) == [{"prompt": "one"}]
    assert timeline.inputs("FPReelPlan")["sections"] == 1
    click(timeline, "add")
    timeline.page.drag_and_drop(f"{SECTION} >> nth=0", f"{SECTION} >> nth=1")
    assert sections(timeline) == [{}, {"prompt": "one"}]
    press(timeline, "Delete")
    assert timeline.inputs("FPReelPlan")["sections"] == 1


def test_prompts_come_and_go_as_text(timeline: ComfyPage) -> None:
    click(timeline, "text")
    area = f"{TIMELINE} .fpreel-text textarea"
    timeline.page.fill(area, "0:a;;;1:b;;;0-1:c")
    timeline.page.click(f"{TIMELINE} .fpreel-text button >> nth=0")
    error = timeline.page.inner_text(f"{TIMELINE} .fpreel-text .fpreel-problem")
    assert error.startswith("prompt: '0:a' at character 1: later parts replace all of it")
    timeline.page.fill(area, "0: it sleeps ;;;-1:it runs: fast")
    timeline.page.click(f"{TIMELINE} .fpreel-text button >> nth=0")
    assert sections(timeline) == [{"prompt": "it sleeps"}, {"prompt": "it runs: fast"}]
    click(timeline, "text")
    assert timeline.page.input_value(area) == "0:it sleeps ;;; 1:it runs: fast"


def test_sections_of_a_zip_are_dropped_or_opened(
    timeline: ComfyPage, server: Any, tmp_path: Path
) -> None:
    """In the place of all that there were, as one step of undo, and what has no place is said."""
    name = f"shared_{time.time_ns()}"  # each renderer's own: taken names get a number
    shared = write_zip(tmp_path / f"{name}.zip")
    timeline.page.click(f"{SECTION} >> nth=0")
    press(timeline, "F2")
    timeline.page.keyboard.type("mine")
    press(timeline, "Escape")
    taken = [
        {"prompt": "it wakes --slowly: #1", "image": f"{name}/002.png"},
        {"prompt": "it waits", "image": f"{name}/002.png"},
        {"prompt": "it sleeps", "image": f"{name}/000.png"},
    ]
    timeline.drop_file(shared, f"{SECTION} >> nth=1", "application/zip")
    told = f"{TIMELINE} .fpreel-told"
    timeline.page.wait_for_selector(f"{told} button")
    assert timeline.page.inner_text(told).startswith(
        f"{name}.zip: 3 sections taken over. It begins with {name}/start.png: choose it in Load "
        f"Image. It ends with {name}/end.png. Its seed is 42. Has no place here: lora_settings."
    )
    assert sections(timeline) == taken
    assert timeline.inputs("FPReelPlan")["sections"] == 3
    timeline.page.click(f"{told} button")
    assert timeline.page.locator(f"{told}:empty").count() == 1
    timeline.page.click(f"{SECTION} >> nth=0")
    press_until(timeline, "Control+z", [{"prompt": "mine"}])
    click(timeline, "text")
    (tmp_path / "bad.zip").write_bytes(b"PK")
    bad = (tmp_path / "bad.zip", "bad.zip was not uploaded: bad.zip: not a zip file")
    for path, words in (bad, bad, (shared, f"{name}.zip: 3 sections taken over.")):
        timeline.page.evaluate(f"() => document.querySelector('{told}').replaceChildren()")
        timeline.page.set_input_files(f"{TIMELINE} .fpreel-text input[type=file]", path)
        timeline.wait_for(lambda words=words: words in timeline.page.inner_text(told), True)
    assert sections(timeline)[0]["image"] == f"{name}_2/002.png"
    pictures = [Image.open(server.base / "input" / s["image"]) for s in sections(timeline)]
    assert [picture.getpixel((0, 0))[0] for picture in pictures] == [20, 20, 10]


def test_other_widgets_are_heard(timeline: ComfyPage) -> None:
    """More or fewer sections keep what sections have; F1 has no padding and says so."""
    timeline.page.fill(f"{TIMELINE} .fpreel-padding input", "2")
    timeline.page.click(f"{SECTION} >> nth=1")
    press(timeline, "F2")
    timeline.page.keyboard.type("last")
    press(timeline, "Escape")
    for count, expected in ((1, [{"padding": 2}]), (3, [{"padding": 2}, {"prompt": "last"}])):
        timeline.set_widget("FPReelPlan", "sections", count)
        timeline.page.wait_for_timeout(300)
        assert timeline.page.locator(SECTION).count() == count
        assert sections(timeline) == expected
    timeline.set_widget("FPReelPlan", "mode", "f1")
    timeline.page.wait_for_timeout(300)
    problem = timeline.page.inner_text(f"{TIMELINE} .fpreel-problem >> nth=0")
    assert problem == "F1 has no padding: empty that of section 0."
    made = timeline.page.locator(f"{SECTION} .fpreel-made").all_inner_texts()
    assert made == [f"made {n} of 3" for n in (1, 2, 3)]


def test_reloaded_and_exported_plans_are_the_same(
    timeline: ComfyPage, picture: Path, open_page: Any, tmp_path: Path
) -> None:
    build(timeline, picture)
    timeline.page.wait_for_timeout(1500)  # ComfyUI keeps a draft of the workflow now and then
    prompt = timeline.prompt()
    exported = tmp_path / "exported.json"
    exported.write_text(json.dumps(timeline.workflow()), encoding="utf-8")

    timeline.reload()
    assert timeline.prompt() == prompt
    timeline.show("FPReelPlan")
    assert timeline.page.locator(f"{SECTION}.fpreel-has-image").count() == 1
    assert sections(timeline) == BUILT
    check_lora_strengths(timeline)

    other = open_page()
    other.drop_file(exported, "canvas >> nth=0", "application/json")
    other.page.wait_for_function("() => (app.rootGraph ?? app.graph).nodes.length > 5")
    other.page.wait_for_timeout(1000)
    assert other.prompt() == prompt
    other.show("FPReelPlan")
    assert other.page.locator(SECTION).count() == 4


def test_the_ruler_is_to_scale_and_scrolls_with_the_strip(timeline: ComfyPage) -> None:
    measure = """() => {
        const box = (element) => element.getBoundingClientRect();
        const scroll = document.querySelector(".fpreel-scroll");
        const sections = [...document.querySelectorAll(".fpreel-section")].map(box);
        const left = sections[0].left;
        const width = sections.at(-1).right - left;
        const marks = [...document.querySelectorAll(".fpreel-ruler span")];
        return {
            marks: marks.map((mark) => [
                parseFloat(mark.textContent), (box(mark).left - left) / width,
            ]),
            scrolls: scroll.scrollWidth > scroll.clientWidth,
        };
    }"""
    assert not timeline.page.evaluate(measure)["scrolls"], "all of it fits"
    timeline.set_widget("FPReelPlan", "sections", 30)
    timeline.page.wait_for_timeout(500)
    for scrolled in (0, 300):
        timeline.page.evaluate(
            "(left) => { document.querySelector('.fpreel-scroll').scrollLeft = left; }", scrolled
        )
        told = timeline.page.evaluate(measure)
        assert told["scrolls"] and len(told["marks"]) > 8
        for second, share in told["marks"]:
            assert share == pytest.approx(second * 30 / 1080, abs=0.005)


def test_it_survives_the_properties_panel_and_a_narrow_node(timeline: ComfyPage) -> None:
    width = "() => document.querySelector('.fpreel-timeline').getBoundingClientRect().width"
    before = timeline.page.evaluate(width)
    # As a panel does that draws the widget a second time.
    timeline.node(
        "FPReelPlan",
        "node.widgets.find((w) => w.name === 'timeline').width = 298; "
        "app.canvas.setDirty(true, true)",
    )
    timeline.page.wait_for_timeout(500)
    assert timeline.page.evaluate(width) == pytest.approx(before, abs=1)
    script = "node.setSize([300, node.size[1]]); app.canvas.setDirty(true, true)"
    timeline.node("FPReelPlan", script)
    timeline.page.wait_for_timeout(500)
    beside = timeline.page.evaluate(
        "() => { const all = document.querySelector('.fpreel-timeline'); "
        "return [all.scrollWidth, all.clientWidth]; }"
    )
    assert beside[0] <= beside[1], "what does not fit beside has to wrap"


def test_a_picture_is_expected_where_it_can_be_dropped(timeline: ComfyPage) -> None:
    assert "drop a picture" in timeline.page.inner_text(f"{TIMELINE} .fpreel-order")
    data = timeline.page.evaluate_handle("() => new DataTransfer()")
    target = f"{SECTION} >> nth=1"
    timeline.page.dispatch_event(target, "dragover", {"dataTransfer": data})
    assert timeline.page.locator(f"{SECTION}.fpreel-drop").count() == 1
    timeline.page.dispatch_event(target, "dragleave", {"dataTransfer": data})
    assert timeline.page.locator(f"{SECTION}.fpreel-drop").count() == 0
    cut = timeline.page.evaluate(
        "() => [...document.querySelectorAll('.fpreel-field input')].filter((input) => { "
        "const pen = document.createElement('canvas').getContext('2d'); "
        "pen.font = getComputedStyle(input).font; "
        "return pen.measureText(input.placeholder).width > input.clientWidth - 8; }).length"
    )
    assert cut == 0, "a placeholder does not fit its field"


def test_start_and_end_picture_are_at_the_ends(
    timeline: ComfyPage, server: Any, picture: Path
) -> None:
    for name in ("first.png", "last.png"):
        (server.base / "input" / name).write_bytes(picture.read_bytes())
    seen = f"{TIMELINE} .fpreel-end"
    assert timeline.page.locator(f"{seen}[hidden]").count() == 1, "no end image is connected"
    timeline.load(read(template("toyworld_end_image")))
    timeline.page.evaluate(
        """() => {
            const frames = app.graph.nodes.filter((node) => node.type === "FPReelStartFrame");
            const end = app.graph.nodes.find((node) => node.type === "FPReelEndFrame");
            for (const frame of frames) {
                const picture = LiteGraph.createNode("LoadImage");
                app.graph.add(picture);
                const isLast = frame.getOutputNodes(0).includes(end);
                picture.widgets[0].value = isLast ? "last.png" : "first.png";
                picture.connect(0, frame, frame.inputs.findIndex(({ name }) => name === "image"));
            }
            // ComfyUI tells of changes by mouse and key, not of those by a script.
            app.api.dispatchEvent(new CustomEvent("graphChanged"));
        }"""
    )
    ends = f"{seen}.fpreel-has-image"
    timeline.wait_for(lambda: timeline.page.locator(ends).count(), 2)
    styles = [timeline.page.get_attribute(f"{ends} >> nth={n}", "style") for n in (0, 1)]
    assert "first.png" in (styles[0] or "") and "last.png" in (styles[1] or "")


def test_a_text_that_is_no_timeline_is_shown_and_kept(timeline: ComfyPage) -> None:
    timeline.set_widget("FPReelPlan", "timeline", '{"sections": [{"promt": "a"}]}')
    timeline.page.wait_for_timeout(300)
    assert "not a timeline" in timeline.page.inner_text(f"{TIMELINE} .fpreel-problem >> nth=0")
    assert timeline.inputs("FPReelPlan")["timeline"] == '{"sections": [{"promt": "a"}]}'
    timeline.page.click(f"{TIMELINE} .fpreel-problem button")
    assert timeline.inputs("FPReelPlan")["timeline"] == ""


def test_a_guide_stored_before_it_had_a_lora_strength_is_the_same(page: ComfyPage) -> None:
    page.load(read(SECTIONS))
    page.add("FPReelGuideSections")
    workflow = page.workflow()
    for node in workflow["nodes"]:
        if node["type"] == "FPReelGuideSections":
            node["widgets_values"] = ["1", 2, 7, 3.5]
    page.load(workflow)
    inputs = page.inputs("FPReelGuideSections")
    kept = {"sections": "1", "padding": 2, "seed": 7, "guidance": 3.5, "lora_strength": -1}
    assert {name: inputs[name] for name in kept} == kept
