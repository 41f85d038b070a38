"""Drafts in ComfyUI: what a video starts from at half the size, and how it is sampled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.utils
import torch
from torch import Tensor

from ...framepack_core.runtime.display import warn
from ...framepack_core.runtime.errors import FramePackError
from ...framepack_core.sampling.draft import draft_size
from ...framepack_core.sampling.options import DRAFT_STEPS
from ...framepack_core.sampling.sections import LATENT_STRIDE
from ...framepack_core.sampling.step_cache import TeaCacheOptions
from .section_run import only_size
from .sockets import to_image_latent, to_latent


def draft_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a sampler node with few steps and, where none is chosen, a step cache."""
    if inputs.get("sigmas") is not None:
        warn("draft: its steps are those of the sigmas input; disconnect that for fewer")
    steps = min(inputs["steps"], DRAFT_STEPS)
    cache = inputs["step_cache"]
    return {
        **inputs,
        "steps": steps,
        "step_cache": TeaCacheOptions.name if cache == "off" else cache,
    }


class HalfSize:
    """The pictures of a draft, made half as large by way of the VAE.

    start [B, C, 1, h, w]: of the video; draft_of: its height and width.
    """

    def __init__(self, start: Tensor, model: Any, vae: Any) -> None:
        self.draft_of, self.vae = (start.shape[3], start.shape[4]), vae
        if (only := only_size(model)) is not None:
            raise FramePackError(
                f"draft: this model can only make {only[0]}x{only[1]}; set it to steps"
            )
        if vae is None:
            raise FramePackError(
                "vae: not connected, but a draft of half the size needs it, to make the start "
                "image smaller; connect it, or set draft to steps"
            )
        self.start = self.of(start)

    def of(self, latent: Tensor) -> Tensor:
        """A latent [B, C, 1, h, w] for the draft; one that is of its size already stays."""
        if tuple(latent.shape[3:]) != self.draft_of:
            return latent
        height, width = (side * LATENT_STRIDE for side in self.draft_of)
        size = draft_size((width, height), "draft")
        return torch.cat([self._shrunk(part, *size) for part in latent.split(1)]).to(latent)

    def _shrunk(self, latent: Tensor, width: int, height: int) -> Tensor:
        pictures = self.vae.decode(to_latent(latent)["samples"])
        pictures = pictures.reshape(-1, *pictures.shape[-3:]).movedim(-1, 1)
        small = comfy.utils.common_upscale(pictures, width, height, "area", "center")
        return to_image_latent({"samples": self.vae.encode(small.movedim(1, -1))}, "vae")
