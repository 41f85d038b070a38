"""The example workflows as files; tests/comfyui runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from framepack_core.weights.released import RELEASED, RELEASED_F1, ReleasedFile

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


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_file_of_the_real_model_can_be_downloaded(path: Path) -> None:
    """By ComfyUI's dialog of missing models, and by the links of the note."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    given = [
        ReleasedFile(component, model["name"], model["url"])
        for node in workflow["nodes"]
        for model in node["properties"].get("models", ())
        for component, files in (*RELEASED.items(), ("dit", RELEASED_F1))
        if model["name"] in {file.name for file in files}
        if model["directory"] == files[0].folder
    ]
    if path.stem.startswith("toyworld_"):
        assert given == []
        return
    dit = RELEASED_F1 if path.stem in ("framepack_f1", "framepack_extend") else RELEASED["dit"]
    others = {file for name, files in RELEASED.items() if name != "dit" for file in files}
    assert len(given) == len(set(given)) and set(given) == others | set(dit)
    values = {v for node in workflow["nodes"] for v in node["widgets_values"]}
    assert {dit[0].name, *(file.name for file in others)} <= values
    (note,) = (node for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    for file in given:
        assert f"({file.url})" in note["widgets_values"][0]


def test_shards_of_f1_are_in_a_folder_that_says_so() -> None:
    """Those of the original model have the same names."""
    assert {file.name.partition("/")[0] for file in RELEASED_F1} == {"FramePack_F1_I2V_HY_20250503"}
    assert [Path(file.url).name for file in RELEASED_F1] == [
        f"diffusion_pytorch_model-{n:05}-of-00003.safetensors" for n in (1, 2, 3)
    ]


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
