"""The pack in a running ComfyUI, as a browser or an API client meets it."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from comfy_host import PACK, PACK_NAME, Server
from workflow import to_api

from framepack_core.runtime.video import read_video

WORKFLOWS = sorted((PACK / "example_workflows").glob("*.json"))
FULL_SIZE = [path for path in WORKFLOWS if path.stem.startswith("framepack")]
NODES = {
    "FPReelCanvas",
    "FPReelDecode",
    "FPReelLoadImageEncoder",
    "FPReelLoadLatent",
    "FPReelLoadModel",
    "FPReelLoadSnapshot",
    "FPReelLoadTextEncoders",
    "FPReelLoadVAE",
    "FPReelPlan",
    "FPReelSampler",
    "FPReelSaveLatent",
    "FPReelStartFrame",
    "FPReelTextEncode",
    "FPReelToyWorldScene",
}


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def node_of(prompt: dict[str, Any], class_type: str) -> dict[str, Any]:
    return next(node for node in prompt.values() if node["class_type"] == class_type)


@pytest.fixture
def toy_prompt(node_info: dict[str, Any]) -> dict[str, Any]:
    return to_api(read(PACK / "example_workflows" / "toyworld_i2v.json"), node_info)


def test_all_nodes_are_there(node_info: dict[str, Any]) -> None:
    assert {name for name in node_info if name.startswith("FPReel")} == NODES


@pytest.mark.parametrize("node_id", sorted(NODES))
def test_nodes_explain_themselves(node_id: str, node_info: dict[str, Any], server: Server) -> None:
    info = node_info[node_id]
    assert info["category"].split("/")[0] == "FramePack"
    assert info["description"] and "FPReel" not in info["display_name"]
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    assert not [name for name, spec in inputs.items() if not spec[1].get("tooltip")]
    url = f"{server.url}/extensions/{PACK_NAME}/docs/{node_id}.md"
    with urllib.request.urlopen(url, timeout=30) as page:
        text = page.read().decode()
    assert text.startswith(f"# {info['display_name']}\n")
    assert not [name for name in inputs if f"`{name}`" not in text]


def test_workflows_are_offered_as_templates(server: Server) -> None:
    offered = server.get("/workflow_templates")[PACK_NAME]
    assert sorted(offered) == [path.stem for path in WORKFLOWS]


@pytest.mark.parametrize("path", FULL_SIZE, ids=lambda path: path.stem)
def test_workflows_ask_for_nothing_but_files(
    path: Path, node_info: dict[str, Any], server: Server
) -> None:
    """ComfyUI accepts all of a workflow but the names of files that are not here."""
    prompt = to_api(read(path), node_info)
    answer = server.post("/prompt", {"prompt": prompt, "client_id": "test"})
    refused = {
        (prompt[node]["class_type"], error["extra_info"]["input_name"], error["type"])
        for node, errors in answer["node_errors"].items()
        for error in errors["errors"]
    }
    core = {
        ("DualCLIPLoader", "clip_name1", "value_not_in_list"),
        ("DualCLIPLoader", "clip_name2", "value_not_in_list"),
        ("LoadImage", "image", "custom_validation_failed"),
    }
    ours = {
        ("FPReelLoadModel", "model", "value_not_in_list"),
        ("FPReelLoadVAE", "vae", "value_not_in_list"),
        ("FPReelLoadImageEncoder", "image_encoder", "value_not_in_list"),
    }
    # ComfyUI 0.3 lets everything pass where a new node's list is empty.
    assert refused - ours == core and refused & ours in (ours, set())


@pytest.mark.parametrize("name", ["toyworld_i2v", "toyworld_f1"])
def test_toyworld_workflow_makes_a_video(
    name: str, node_info: dict[str, Any], server: Server
) -> None:
    prompt = to_api(read(PACK / "example_workflows" / f"{name}.json"), node_info)
    node_of(prompt, "FPReelSampler")["inputs"]["steps"] = 4
    outputs = server.run(prompt)
    shown = [text for ui in outputs.values() for text in ui.get("text", [])]
    assert any("73 frames" in text for text in shown), shown
    files = [file for ui in outputs.values() for file in ui.get("images", [])]
    video = server.base / "output" / files[0]["subfolder"] / files[0]["filename"]
    frames, fps = read_video(video)
    assert frames.shape == (73, 64, 64, 3) and fps == 30


def test_interrupt_stops_at_once(toy_prompt: dict[str, Any], server: Server) -> None:
    node_of(toy_prompt, "FPReelSampler")["inputs"] |= {"steps": 1000, "seed": 99}
    node_of(toy_prompt, "FPReelPlan")["inputs"]["sections"] = 100
    prompt_id = server.queue(toy_prompt)
    wait_for_steps(server)
    server.post("/interrupt", {})
    asked = time.monotonic()
    entry = server.wait(prompt_id)
    assert time.monotonic() - asked < 2
    assert "execution_interrupted" in dict(entry["status"]["messages"])


def wait_for_steps(server: Server, seconds: float = 60) -> None:
    """Until the log shows the sampler's progress bar."""
    end = time.monotonic() + seconds
    while "/1000 [" not in server.tail():
        assert time.monotonic() < end, server.tail()
        time.sleep(0.05)


def test_user_sees_what_is_wrong(toy_prompt: dict[str, Any], server: Server) -> None:
    del node_of(toy_prompt, "FPReelSampler")["inputs"]["clip_vision_output"]
    entry = server.wait(server.queue(toy_prompt))
    assert entry["status"]["status_str"] == "error"
    assert server.error(entry).startswith("clip_vision_output: not connected")
