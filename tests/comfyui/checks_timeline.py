"""A timeline in the plan node: exactly what the guide nodes make of the same."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

import torch
from checks_guidance import guide, other_scene, text
from inside import BASE, error_of, pack, plan, run, sample, toy
from PIL import Image

import nodes


def timeline(*sections: dict[str, Any]) -> str:
    return json.dumps({"version": 1, "sections": sections})


def planned(*sections: dict[str, Any], **connected: Any) -> Any:
    models = {"clip": toy().clip, "vae": toy().vae, "clip_vision": toy().vision}
    settings = {"mode": "framepack", "length": "sections", "seconds": 1.0, "window": 2}
    made, _ = run(
        "FPReelPlan",
        **settings,
        sections=len(sections),
        timeline=timeline(*sections),
        **(models | connected),
    )
    return made


def saved(name: str, image: torch.Tensor) -> str:
    """Put an IMAGE into the input folder."""
    (pixels,) = pack("nodes.comfyui.sockets").to_uint8(image)
    Image.fromarray(pixels).save(BASE / "input" / name)
    return name


def check_timeline_equals_guides() -> None:
    other, prompt = other_scene(), "a blue cross grows"
    name = saved("timeline.png", other.image)
    by_time = planned(
        {"guidance": 3.0, "seed": 11},
        {"image": name, "padding": 0},
        {"prompt": prompt, "lora_strength": 0.5},
    )
    guided = guide(plan(sections=3), "0", guidance=3.0, seed=11)
    guided = guide(guided, "1", start_image=other.start, clip_vision_output=other.vision, padding=0)
    guided = guide(guided, "2", conditioning=text(prompt), lora_strength=0.5)
    lora = {"lora": "Toy World: opposite (built in)", "strength": 1.0}
    (model,) = run("FPReelApplyLora", model=toy().model, **lora)[:1]
    assert torch.equal(sample(model, plan=by_time), sample(model, plan=guided))


def check_timeline_images_of_any_size_are_fitted() -> None:
    """A wide picture is cropped to the video as FramePack Canvas crops it."""
    image = torch.rand(1, 90, 200, 3, generator=torch.Generator().manual_seed(1))
    (fitted, *_) = run("FPReelCanvas", image=image, fit="exact", resolution=64, width=64, height=64)
    start, vision = run("FPReelStartFrame", image=fitted, vae=toy().vae, clip_vision=toy().vision)
    guided = guide(plan(sections=1), "0", start_image=start, clip_vision_output=vision)
    by_time = planned({"image": saved("wide.png", image)})
    assert torch.equal(sample(plan=by_time), sample(plan=guided))


def check_timeline_says_what_is_missing() -> None:
    name = saved("needs.png", torch.zeros(1, 64, 64, 3))
    for own, missing in (({"prompt": "a"}, "clip"), ({"image": name}, "vae")):
        message = error_of(lambda own=own, missing=missing: planned(own, **{missing: None}))
        assert message.startswith(f"{missing}: not connected"), message


def check_timeline_is_refused_before_the_run() -> None:
    validate = nodes.NODE_CLASS_MAPPINGS["FPReelPlan"].validate_inputs
    assert validate(timeline=timeline({"prompt": "a"})) is True
    assert validate(timeline=None) is True
    assert "no image none.png" in validate(timeline=timeline({"image": "none.png"}))
    assert "not JSON" in validate(timeline="{")
    for outside in ("../server.log", "/etc/passwd", "..\\x.png [output]"):
        assert validate(timeline=timeline({"image": outside})) is not True


def check_timeline_sees_a_changed_image() -> None:
    name = saved("changing.png", torch.zeros(1, 64, 64, 3))
    fingerprint = nodes.NODE_CLASS_MAPPINGS["FPReelPlan"].fingerprint_inputs
    before = fingerprint(timeline=timeline({"image": name}), mode="f1", clip=None)
    assert before == fingerprint(timeline=timeline({}, {"image": name}))
    os.utime(BASE / "input" / name, (1, 1))
    assert before != fingerprint(timeline=timeline({"image": name}))


# What a run tells its node


def check_run_reports_sections_and_clips() -> None:
    """Every section with a clip of its frames; the sum is what a page opened later gets."""
    sample(plan=plan(sections=2), vae=toy().vae, ledger=False)
    report = pack("nodes.comfyui.live").reports()[-1]
    assert (report["event"], report["node"], report["state"]) == ("fpreel.section", "1", "finished")
    assert (report["sections"], report["frames"], report["fps"]) == (2, 17, 30)
    assert [done["section"] for done in report["done"]] == [1, 0]
    for done in report["done"]:
        file = done["clip"]
        path = BASE / file["type"] / file["subfolder"] / file["filename"]
        frames, fps = pack("framepack_core.runtime.video").read_video(path)
        assert (frames.shape, fps) == ((5, 64, 64, 3), 30)


def check_a_report_gathers_lists_and_forgets_old_runs() -> None:
    live = pack("nodes.comfyui.live")
    hidden = SimpleNamespace(unique_id="7", extra_pnginfo={"workflow": {"id": "w"}})
    for run_number in range(2):
        report = live.Report("fpreel.test", hidden, gathered=("losses",))
        report.send(step=1, losses=[[1, 0.5]])
        report.send(step=2 + run_number, losses=[[2, 0.25]])
    (kept,) = [r for r in live.reports() if r["event"] == "fpreel.test"]
    assert (kept["workflow"], kept["step"]) == ("w", 3)
    assert kept["losses"] == [[1, 0.5], [2, 0.25]]
    for number in range(live.KEPT):
        live.Report("fpreel.test", SimpleNamespace(unique_id=str(number), extra_pnginfo=None))
    assert len(live.reports()) == live.KEPT
