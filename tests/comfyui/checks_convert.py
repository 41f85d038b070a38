"""Workflows of the wrapper packs, converted: they fit the nodes, would be queued, and run."""

from __future__ import annotations

import asyncio
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest import SkipTest

import execution
import torch
import wrapper_workflows as saved
from inside import nodes, pack, run, scene, toy
from server import PromptServer
from workflow import NESTED, WIDGETS, to_api

SHOWN = ("PreviewImage", "SaveVideo")
FILES = ("DualCLIPLoader", "VAELoader", "CLIPVisionLoader", "LoadImage", "FPReelLoadModel")


@cache
def info(type: str) -> dict[str, Any]:
    node = nodes.NODE_CLASS_MAPPINGS[type]
    if hasattr(node, "GET_NODE_INFO_V1"):
        return node.GET_NODE_INFO_V1()
    return {"input": node.INPUT_TYPES(), "output": node.RETURN_TYPES}


def check_converted_nodes_are_those_of_this_comfyui() -> int:
    """Widgets by position, sockets by name and type; its own nodes may have got more at the end."""
    kinds = pack("framepack_core.workflows.kinds")
    for type, kind in kinds.KINDS.items():
        sockets, widgets = {}, []
        for group in ("required", "optional"):
            for name, (of, *rest) in info(type)["input"].get(group, {}).items():
                options = rest[0] if rest else {}
                if (isinstance(of, list) or of in (*WIDGETS, NESTED)) and not options.get(
                    "forceInput"
                ):
                    after = bool(options.get("control_after_generate"))
                    widgets += [name, *[f"{name}{kinds.AFTER}"] * after]
                else:
                    sockets[name] = of
        assert sockets == kind.sockets, f"{type}: {sockets}"
        outputs = list(info(type)["output"])
        if kind.pack == "comfy-core":
            widgets, outputs = widgets[: len(kind.widgets)], outputs[: len(kind.outputs)]
        assert widgets == list(kind.widgets), f"{type}: {widgets}"
        assert outputs == list(kind.outputs.values()), f"{type}: {outputs}"
    return len(kinds.KINDS)


def converted(workflow: dict[str, Any]) -> dict[str, Any]:
    """The prompt of a converted workflow with the built-in LoRA in place of its own."""
    made = pack("framepack_core.workflows").convert(workflow).workflow
    made["links"] = [k if isinstance(k, list) else list(k.values()) for k in made["links"]]
    prompt = to_api(made, {node["type"]: info(node["type"]) for node in made["nodes"]})
    for node in prompt.values():
        if node["class_type"] == "FPReelApplyLora":
            node["inputs"] |= {"lora": pack("nodes.comfyui.paths").OPPOSITE, "strength": 0.1}
    return prompt


def problems(prompt: dict[str, Any]) -> list[str]:
    """Why ComfyUI would not queue it, but for model files and pictures that are not here."""
    found = asyncio.run(execution.validate_prompt("converted", prompt, None))
    return [
        f"{node['class_type']}: {error['details']}"
        for node in found[3].values()
        if node["class_type"] not in FILES
        for error in node["errors"]
    ]


def perform(prompt: dict[str, Any], mode: str = "framepack") -> dict[str, tuple[Any, ...]]:
    """Run a prompt on Toy World; the outputs of every type of node."""
    world = toy(mode)
    given = {
        **{"DualCLIPLoader": (world.clip,), "VAELoader": (world.vae,)},
        **{"CLIPVisionLoader": (world.vision,), "FPReelLoadModel": (world.model,)},
        "LoadImage": (scene().image, torch.ones(scene().image.shape[:3])),
    }
    done: dict[str, tuple[Any, ...]] = {}

    def outputs(id: str) -> tuple[Any, ...]:
        if id not in done:
            node = prompt[id]
            inputs = {
                name: outputs(value[0])[value[1]] if isinstance(value, list) else value
                for name, value in node["inputs"].items()
            }
            type = node["class_type"]
            done[id] = given.get(type) or (() if type in SHOWN else run(type, **inputs))
        return done[id]

    return {prompt[id]["class_type"]: outputs(id) for id in prompt}


def check_a_converted_video_with_an_end() -> list[str]:
    prompt = converted(saved.image_to_video(seconds=0.5, window=2))
    assert not problems(prompt), problems(prompt)
    made = perform(prompt)
    assert made["FPReelSampler"][0]["samples"].shape[2] == 1 + 2 * 2
    assert made["VAEDecode"][0].shape[0] == 1 + 2 * 8
    assert made["CreateVideo"][0].get_components().frame_rate == 30
    return sorted(made)


def check_a_converted_f1_video_with_timed_prompts() -> None:
    text = "[0s: a red circle moves left] [0.2s: a red circle moves right]"
    prompt = converted(saved.timed(text, seconds=0.5, window=2))
    assert not problems(prompt), problems(prompt)
    made = perform(prompt, "f1")
    assert made["FPReelSampler"][0]["samples"].shape[2] == 1 + 3 * 2
    plan = made["FPReelPromptSchedule"][0].describe()
    assert "moves left" in plan and "moves right" in plan, plan


def check_a_converted_frame_with_references() -> list[int]:
    for workflow in (saved.one_frame(), saved.one_frame(references=False)):
        prompt = converted(workflow)
        assert not problems(prompt), problems(prompt)
        made = perform(prompt)
        assert made["FPReelOneFrame"][0]["samples"].shape[2] == 1
    return list(made["VAEDecode"][0].shape)


def check_replacements_are_offered_for_what_is_not_installed() -> list[str]:
    try:
        from app.node_replace_manager import NodeReplaceManager
    except ImportError:
        raise SkipTest("this ComfyUI offers no replacements") from None
    manager, before = NodeReplaceManager(), vars(PromptServer).get("instance")
    PromptServer.instance = SimpleNamespace(node_replace_manager=manager)
    try:
        asyncio.run(pack("nodes").FramePackReel().on_load())
    finally:
        if before is None:
            del PromptServer.instance
        else:
            PromptServer.instance = before
    sides = {"width": ["2", 0], "height": ["2", 1]}
    prompt: dict[str, Any] = {
        "1": ("LoadImage", {"image": "start.png"}),
        "2": ("FramePackFindNearestBucket", {"image": ["1", 0], "base_resolution": 640}),
        "3": ("ImageScale", {"image": ["1", 0], "upscale_method": "area", "crop": "disabled"}),
        "4": ("PreviewImage", {"images": ["3", 0]}),
    }
    prompt["3"][1].update(sides)
    prompt = {n: {"class_type": t, "inputs": i, "_meta": {}} for n, (t, i) in prompt.items()}
    nodes.NODE_CLASS_MAPPINGS["FramePackFindNearestBucket"] = nodes.LoadImage  # as if installed
    manager.apply_replacements(prompt)
    assert prompt["2"]["class_type"] == "FramePackFindNearestBucket"
    del nodes.NODE_CLASS_MAPPINGS["FramePackFindNearestBucket"]
    manager.apply_replacements(prompt)
    assert prompt["2"]["class_type"] == "FPReelCanvas"
    assert (prompt["3"]["inputs"]["width"][1], prompt["3"]["inputs"]["height"][1]) == (2, 3)
    assert not problems(prompt), problems(prompt)
    return sorted(manager.as_dict())
