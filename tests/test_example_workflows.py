"""The example workflows as files; tests/comfyui runs them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from framepack_core.weights.names import mode_by_name
from framepack_core.weights.released import RELEASED, RELEASED_F1

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "comfyui"))

from templates import NAMES, template  # noqa: E402

TOY = " - Toy World"
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def workflow(request: pytest.FixtureRequest) -> dict[str, Any]:
    return json.loads(request.param.read_text(encoding="utf-8"))


def test_every_workflow_has_a_twin_that_needs_no_download() -> None:
    """Beside it in the list of templates, where names are the titles."""
    titles = sorted(path.stem for path in WORKFLOWS)
    assert titles == sorted(template(name).stem for name in NAMES)
    toys = [title for title in titles if title.endswith(TOY)]
    assert toys == [title + TOY for title in titles if not title.endswith(TOY)]
    assert [int(title[:2]) for title in toys] == list(range(1, len(toys) + 1))


def test_every_workflow_has_a_picture_of_its_own() -> None:
    pictures = [path.with_suffix(".jpg").read_bytes() for path in WORKFLOWS]
    assert len(set(pictures)) == len(WORKFLOWS)


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
        (model["name"], model["url"], model["directory"])
        for node in workflow["nodes"]
        for model in node["properties"].get("models", ())
        if model["name"] in node["widgets_values"]  # or ComfyUI does not offer it
    ]
    if path.stem.endswith(TOY):
        assert given == []
        return
    names = ("f1", "extend", "anchor", "f1_end", "variants", "text")
    with_f1 = path in [template(f"framepack_{name}") for name in names]
    files = RELEASED | ({"dit": RELEASED_F1} if with_f1 else {})
    assert sorted(given) == sorted((file.name, file.url, file.folder) for file in files.values())
    (note,) = (node for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    for file in files.values():
        assert f"({file.url})" in note["widgets_values"][0]


def test_f1_cannot_be_taken_for_the_original() -> None:
    assert mode_by_name(RELEASED_F1.name) == "f1"
    assert mode_by_name(RELEASED["dit"].name) == "framepack"


def test_reads_from_left_to_right(workflow: dict[str, Any]) -> None:
    """No link runs back, no two nodes overlap, and groups hold whole nodes."""
    boxes = {node["id"]: box(node) for node in workflow["nodes"]}
    for _, source, _, target, _, _ in workflow["links"]:
        assert boxes[source][2] < boxes[target][0], f"a link runs back from {source} to {target}"
    for a, first in boxes.items():
        for b, second in boxes.items():
            assert a == b or are_apart(first, second), f"nodes {a} and {b} overlap"
    groups = [(x, y, x + w, y + h) for x, y, w, h in (g["bounding"] for g in workflow["groups"])]
    assert all(a is b or are_apart(a, b) for a in groups for b in groups)
    inside = [n for n, each in boxes.items() if any(holds(group, each) for group in groups)]
    (note,) = boxes.keys() - inside
    assert all(are_apart(boxes[note], group) for group in groups)
    titles = [group["title"] for group in workflow["groups"]]
    assert titles[0] == "Models" and len(set(titles)) == len(titles)


def test_all_of_it_is_seen_at_once(workflow: dict[str, Any]) -> None:
    """In a window of 1600x1000 at 75 % or more, beside what ComfyUI lays over the canvas."""
    view = workflow["extra"]["ds"]
    assert 0.75 <= view["scale"] <= 1
    boxes = [box(node) for node in workflow["nodes"]]
    left, top = (min(each[i] for each in boxes) for i in (0, 1))
    right, bottom = (max(each[i] for each in boxes) for i in (2, 3))
    (x, y), scale = view["offset"], view["scale"]
    assert (left + x) * scale > 60 and (top + y) * scale > 85
    assert (right + x) * scale < 1600 and (bottom + y) * scale < 1000


Box = tuple[float, float, float, float]  # left, top, right, bottom


def box(node: dict[str, Any]) -> Box:
    """With the title above it."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - 30, x + width, y + height


def are_apart(a: Box, b: Box) -> bool:
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def holds(group: Box, node: Box) -> bool:
    near, far = zip(group[:2], node[:2], strict=True), zip(group[2:], node[2:], strict=True)
    return all(g <= n for g, n in near) and all(n <= g for g, n in far)


def test_links_agree_from_both_ends(workflow: dict[str, Any]) -> None:
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert workflow["links"]
    for link, source, slot, target, place, kind in workflow["links"]:
        output, given = nodes[source]["outputs"][slot], nodes[target]["inputs"][place]
        assert link in output["links"] and given["link"] == link
        assert output["type"] == given["type"] == kind
