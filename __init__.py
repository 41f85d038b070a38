"""FramePack Reel: one image to a long video, as ComfyUI nodes over framepack_core."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes import FramePackReel

WEB_DIRECTORY = "./js"


async def comfy_entrypoint() -> FramePackReel:
    """Called by ComfyUI; the import waits until here, so that tests collect without ComfyUI."""
    from .nodes import FramePackReel

    return FramePackReel()
