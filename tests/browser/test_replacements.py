"""Workflows of the wrapper packs, dropped on the canvas where those packs are not installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from comfy_page import ComfyPage
from wrapper_workflows import MODEL, SAMPLED, SAMPLING, node, workflow

DRAWN_ONCE_MORE = "Attempted to access LGraph reference that was null"
LINKED = """const input = node.inputs.find(({ name }) => name === argument);
    const link = input.link === null ? null : node.graph.getLink(input.link);
    return link && [node.graph.getNodeById(link.origin_id).type, link.origin_slot];"""


def shared() -> dict[str, object]:
    """What the wrapper's users have: a loader, a size of buckets, a sampler."""
    dit = ("lllyasviel/FramePackI2V_HY", "bf16", "disabled", "sdpa")
    size = {"width": (3, 0, "INT"), "height": (3, 1, "INT")}
    return workflow(
        [
            node(1, "LoadImage", {}, ["IMAGE", "MASK"], ("start.png", "image")),
            node(2, "DownloadAndLoadFramePackModel", {"compile_args": None}, [MODEL], dit),
            node(
                3, "FramePackFindNearestBucket", {"image": (1, 0, "IMAGE")}, ["INT", "INT"], (640,)
            ),
            node(
                4,
                "ImageScale",
                {"image": (1, 0, "IMAGE")} | size,
                ["IMAGE"],
                ("area", 512, 512, "disabled"),
            ),
            node(
                5,
                "FramePackSampler",
                dict.fromkeys(SAMPLED) | {"model": (2, 0, MODEL)},
                ["LATENT"],
                (*SAMPLING, 9, 2.4, 6, "unipc_bh1", 1),
            ),
        ]
    )


@pytest.mark.usefixtures("every_frontend")
def test_nodes_with_an_equal_are_replaced_and_the_others_named(
    page: ComfyPage, tmp_path: Path
) -> None:
    file = tmp_path / "shared.json"
    file.write_text(json.dumps(shared()), encoding="utf-8")
    page.drop_file(file, "canvas >> nth=0", "application/json")
    page.page.click("[data-testid=error-overlay-see-errors]")
    page.page.click("button:has-text('Replace All')")
    page.wait_for(lambda: page.node("FPReelCanvas", "return Boolean(node)"), True)

    linked = {
        (target, name): page.node(target, LINKED, name)
        for target, name in (
            ("FPReelCanvas", "image"),
            ("ImageScale", "width"),
            ("ImageScale", "height"),
            ("FramePackSampler", "model"),
        )
    }
    assert linked == {
        ("FPReelCanvas", "image"): ["LoadImage", 0],
        ("ImageScale", "width"): ["FPReelCanvas", 2],
        ("ImageScale", "height"): ["FPReelCanvas", 3],
        ("FramePackSampler", "model"): ["FPReelLoadModel", 0],
    }
    missing = page.page.inner_text("[data-testid=missing-node-card]")
    assert "FramePackSampler" in missing and "FramePackFindNearestBucket" not in missing
    # Frontend 1.58.1 may draw a node once more that it has just taken from its graph.
    page.errors[:] = [
        error for error in page.errors if not error.message.startswith(DRAWN_ONCE_MORE)
    ]
