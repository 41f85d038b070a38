"""The example workflows as files; tests/comfyui runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def workflow(request: pytest.FixtureRequest) -> dict[str, Any]:
    return json.loads(request.param.read_text(encoding="utf-8"))


def test_every_workflow_has_a_twin_that_needs_no_download() -> None:
    names = {path.stem for path in WORKFLOWS}
    twins = {name.replace("framepack_", "toyworld_") for name in names}
    assert twins == {name for name in names if name.startswith("toyworld_")}
    assert names == twins | {name.replace("toyworld_", "framepack_") for name in twins}
    assert {name.removeprefix("toyworld_") for name in twins} == {
        "i2v",
        "f1",
        "end_image",
        "sections",
        "one_frame",
        "kisekaeichi",
        "1f_mc",
        "batch",
        "extend",
        "lora",
        "train",
        "train_one_frame",
    }


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_thumbnails_are_small_pictures(path: Path) -> None:
    thumbnail = path.with_suffix(".jpg")
    assert thumbnail.stat().st_size < 30_000
    with Image.open(thumbnail) as picture:
        assert picture.format == "JPEG" and min(picture.size) >= 128


def test_only_our_nodes_and_core_ones(workflow: dict[str, Any]) -> None:
    for node in workflow["nodes"]:
        if node["type"] != "MarkdownNote":
            ours = node["type"].startswith("FPReel")
            pack = "framepack-reel" if ours else "comfy-core"
            assert node["properties"]["cnr_id"] == pack, node["type"]


def test_reads_from_left_to_right(workflow: dict[str, Any]) -> None:
    """Every link goes right, or down within a column; no two nodes overlap."""
    boxes = {node["id"]: (*node["pos"], *node["size"]) for node in workflow["nodes"]}
    for _, source, _, target, _, _ in workflow["links"]:
        assert boxes[source][:2] < boxes[target][:2] and boxes[source][0] <= boxes[target][0]
    for a, (ax, ay, aw, ah) in boxes.items():
        for b, (bx, by, bw, bh) in boxes.items():
            apart = ax + aw <= bx or bx + bw <= ax or ay + ah <= by or by + bh <= ay
            assert a == b or apart, f"nodes {a} and {b} overlap"


def test_links_agree_from_both_ends(workflow: dict[str, Any]) -> None:
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert workflow["links"]
    for link, source, slot, target, place, kind in workflow["links"]:
        output, given = nodes[source]["outputs"][slot], nodes[target]["inputs"][place]
        assert link in output["links"] and given["link"] == link
        assert output["type"] == given["type"] == kind
