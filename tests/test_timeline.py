"""Timelines: what their JSON means to a plan, and what is refused; JS reads the same golden."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from framepack_core.parsing.overrides import Overrides
from framepack_core.parsing.section_spec import format_spec, parse_spec
from framepack_core.parsing.timeline import MAX_NUMBER, parse_timeline
from framepack_core.runtime.errors import FramePackError
from framepack_core.runtime.images import nearest_bucket, size_for_area
from framepack_core.runtime.options import leaves
from framepack_core.sampling.plan import Plan
from framepack_core.sampling.sections import (
    parse_paddings,
    plan_framepack,
    plan_video,
    sections_for_seconds,
)

GOLDEN = json.loads((Path(__file__).parent / "js" / "golden.json").read_text(encoding="utf-8"))


def timeline(*sections: dict[str, Any]) -> str:
    return json.dumps({"version": 1, "sections": sections})


@pytest.mark.parametrize("case", GOLDEN["timed"])
def test_prompts_with_times_are_given_to_sections(case: dict[str, Any]) -> None:
    plan = plan_framepack(case["sections"], case["window"])
    assert plan.texts(case["text"], "--prompt") == case["prompts"]


def test_sections_take_what_the_timeline_says_by_time() -> None:
    image = {"image": "b.png", "padding": 5, "lora_strength": 0.5}
    text = timeline({"prompt": "a", "seed": 7}, {}, image, {"lora_strength": 0})
    plan = plan_framepack(4).with_timeline(parse_timeline(text))
    by_time = sorted(plan.sections, key=lambda s: s.index)
    assert [s.prompt for s in by_time] == ["a", None, None, None]
    assert [s.image for s in by_time] == [s.image_embeds for s in by_time]
    assert [s.image for s in by_time] == [None, None, "b.png", None]
    assert [s.seed for s in by_time] == [7, None, None, None]
    assert [s.lora_strength for s in by_time] == [None, None, 0.5, 0]
    assert by_time[2].padding == 5 and by_time[2].latent_indices[0] == 1 + 5 * 9
    assert plan.frames == plan_framepack(4).frames


@pytest.mark.parametrize("text", ["", " \n", "{}", timeline(), timeline({}, {"seed": None})])
def test_nothing_of_its_own_is_the_plain_plan(text: str) -> None:
    assert plan_framepack(2).with_timeline(parse_timeline(text)) == plan_framepack(2)


def test_an_empty_prompt_is_a_prompt() -> None:
    plan = plan_framepack(1).with_timeline(parse_timeline(timeline({"prompt": ""})))
    assert plan.sections[0].prompt == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1", "timeline: not JSON"),
        ("[" * 100_000, "timeline: not JSON"),
        ("[]", "timeline: Input should be"),
        ('{"version": 2}', "timeline: version: Input should be 1"),
        (timeline({"promt": "a"}), "timeline: sections.0.promt: unknown; known are prompt, image"),
        ('{"section": []}', "timeline: section: unknown; known are version, sections"),
        (timeline({}, {"padding": -1}), "timeline: sections.1.padding: .* greater than or equal"),
        (timeline({"padding": True}), "timeline: sections.0.padding: .* integer"),
        (timeline({"seed": MAX_NUMBER + 1}), "timeline: sections.0.seed: .* less than or equal"),
        ('{"sections": [{"guidance": NaN}]}', "timeline: sections.0.guidance: .* finite"),
        (
            '{"sections": [{"lora_strength": 11}]}',
            "sections.0.lora_strength: .* less than or equal",
        ),
        (timeline({"image": ""}), "timeline: sections.0.image: .* at least 1"),
        (timeline(*[{}] * 501), "timeline: sections: .* at most 500"),
        (" " * (1 << 20) + "{}", "timeline: 1048578 characters; at most"),
    ],
)
def test_mistakes_are_named_by_place(text: str, words: str) -> None:
    with pytest.raises(FramePackError, match=words):
        parse_timeline(text)


def test_more_sections_than_the_video_has_are_refused() -> None:
    with pytest.raises(FramePackError, match="timeline: 3 sections for a video of 2; take"):
        plan_framepack(2).with_timeline(parse_timeline(timeline({}, {}, {"seed": 1})))


def test_f1_has_no_padding() -> None:
    with pytest.raises(FramePackError, match="padding: f1 has none"):
        plan_video("f1", 1).with_timeline(parse_timeline(timeline({"padding": 1})))


def test_the_interface_limits_what_sections_can_have_as_it_is_declared() -> None:
    script = Path(__file__).parents[1] / "js" / "lib" / "timeline.js"
    [table] = re.findall(r"LIMITS = \{\n(.*?)\};", script.read_text(encoding="utf-8"), re.DOTALL)
    table = table.replace("Number.MAX_SAFE_INTEGER", str(MAX_NUMBER))
    row = re.compile(r"(\w+): \{ min: ([\d.]+), max: ([\d.]+), step: ([\d.]+) \}")
    shown = {name: tuple(map(float, numbers)) for name, *numbers in row.findall(table)}
    assert shown == {
        leaf.name: (leaf.bounds[0], min(leaf.bounds[1], MAX_NUMBER), leaf.option.step or 1)
        for leaf in leaves(Overrides)
    }


# The golden file that tests/js reads too


def planned(case: dict[str, Any]) -> Plan:
    paddings = parse_paddings(case["paddings"]) if case["paddings"] else None
    plan = plan_video(case["mode"], case["sections"], case["window"], paddings)
    return plan.with_loop() if case.get("loop") else plan


@pytest.mark.parametrize("case", GOLDEN["plans"], ids=str)
def test_golden_plans(case: dict[str, Any]) -> None:
    plan = planned(case)
    made = [
        {
            "index": section.index,
            "first": plan.frames_of(section)[0],
            "last": plan.frames_of(section)[1],
            "padding": section.padding,
        }
        for section in plan.sections
    ]
    assert (plan.frames, made) == (case["frames"], case["made"])
    assert plan.seconds == pytest.approx(case["length"])


@pytest.mark.parametrize("case", GOLDEN["timelines"], ids=lambda case: case["text"][:60])
def test_golden_timelines(case: dict[str, Any]) -> None:
    if case["refused"]:
        with pytest.raises(FramePackError, match="timeline: "):
            parse_timeline(case["text"])
    else:
        read = parse_timeline(case["text"])
        own = [section.model_dump(exclude_none=True) for section in read.sections]
        assert own == case["sections"]


@pytest.mark.parametrize("case", GOLDEN["seconds"], ids=str)
def test_golden_lengths(case: dict[str, Any]) -> None:
    assert sections_for_seconds(case["seconds"], case["window"]) == case["sections"]


@pytest.mark.parametrize("case", GOLDEN["specs"], ids=lambda case: repr(case["text"]))
def test_golden_specs(case: dict[str, Any]) -> None:
    if "error" in case:
        with pytest.raises(FramePackError) as caught:
            parse_spec(case["text"], "prompts").resolve(case["sections"])
        assert str(caught.value) == case["error"]
    else:
        assert parse_spec(case["text"]).resolve(case["sections"]) == case["texts"]


@pytest.mark.parametrize("case", GOLDEN["written"], ids=lambda case: repr(case["text"]))
def test_golden_written_specs(case: dict[str, Any]) -> None:
    assert format_spec(dict(case["texts"])) == case["text"]


@pytest.mark.parametrize("case", GOLDEN["sizes"], ids=str)
def test_golden_sizes(case: dict[str, Any]) -> None:
    width, height = case["image"]
    assert list(reversed(nearest_bucket(height, width))) == case["bucket"]
    assert list(size_for_area(width, height, case["resolution"] ** 2)) == case["area"]
