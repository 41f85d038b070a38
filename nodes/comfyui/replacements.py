"""What ComfyUI offers for nodes of other packs that are not installed, where it can do that."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import ComfyAPI, io
from server import PromptServer

from ...framepack_core.workflows.foreign import BUCKET

Inputs = list[dict[str, Any]]
# Only what one node can stand for; `framepack convert` does the others.
REPLACEMENTS: tuple[tuple[str, str, list[str], Inputs, list[dict[str, int]]], ...] = (
    (
        "DownloadAndLoadFramePackModel",
        "FPReelLoadModel",
        ["model", "base_precision", "quantization", "attention_mode"],
        [{"new_id": "model", "old_id": "model"}, {"new_id": "precision", "set_value": "auto"}],
        [{"new_idx": 0, "old_idx": 0}],
    ),
    (
        "FramePackFindNearestBucket",
        "FPReelCanvas",
        ["base_resolution"],
        [
            {"new_id": "image", "old_id": "image"},
            {"new_id": "fit", "set_value": "area"},
            {"new_id": "resolution", "old_id": "base_resolution"},
            {"new_id": "width", "set_value": BUCKET},
            {"new_id": "height", "set_value": BUCKET},
        ],
        [{"new_idx": 2, "old_idx": 0}, {"new_idx": 3, "old_idx": 1}],
    ),
)


async def offer_replacements() -> None:
    """Register them; older versions of ComfyUI have nothing to register with.

    ComfyUI replaces only what it does not know, so that a pack that is installed keeps its nodes.
    """
    server = getattr(PromptServer, "instance", None)  # absent in tests without a server
    if not hasattr(server, "node_replace_manager"):
        return
    replacements = ComfyAPI().node_replacement
    for old, new, widgets, inputs, outputs in REPLACEMENTS:
        await replacements.register(
            io.NodeReplace(
                new_node_id=new,
                old_node_id=old,
                old_widget_ids=widgets,
                input_mapping=inputs,
                output_mapping=outputs,
            )
        )
