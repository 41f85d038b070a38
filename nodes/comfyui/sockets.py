"""Pictures and latents as sockets carry them, and as the core takes them."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ...framepack_core.runtime.audio import LAYOUTS, Audio
from ...framepack_core.runtime.errors import FramePackError
from ...framepack_core.sampling.sections import LATENT_CHANNELS
from .model import LATENT_SCALE

WINDOW_KEY = "framepack_window"
LOOP_KEY = "framepack_loop"


def to_uint8(image: Tensor) -> np.ndarray:
    """IMAGE [N, H, W, C] in 0..1 to uint8 [N, H, W, 3]; refuses a batch without any."""
    if not image.numel():
        raise FramePackError("image: the batch is empty; check the node that it comes from")
    levels = (image[..., :3].float() * 255).round().clamp(0, 255)
    return levels.to("cpu", torch.uint8).numpy()


def to_image(pixels: np.ndarray) -> Tensor:
    """uint8 [N, H, W, 3] to IMAGE."""
    return torch.from_numpy(np.array(pixels)).float() / 255


def to_latents(latent: dict[str, Any], name: str) -> Tensor:
    """The model-ready latents [B, 16, T, h, w] of a LATENT; `name` is the input's, for errors."""
    samples = latent["samples"]
    if samples.ndim != 5 or samples.shape[1] != LATENT_CHANNELS:
        raise FramePackError(
            f"{name}: latents of shape {list(samples.shape)} are not a HunyuanVideo VAE's "
            f"[B, {LATENT_CHANNELS}, T, h, w]; encode the image with FramePack Start Frame"
        )
    return samples.float() * LATENT_SCALE


def to_image_latent(latent: dict[str, Any], name: str) -> Tensor:
    """The model-ready latent [B, 16, 1, h, w] of one image; `name` is the input's, for errors."""
    latents = to_latents(latent, name)
    if latents.shape[2] != 1:
        raise FramePackError(
            f"{name}: {latents.shape[2]} latent frames where one is needed; encode a single "
            "image with FramePack Start Frame"
        )
    return latents


def to_audio(audio: dict[str, Any], number: int) -> Audio:
    """The sound of the number-th video of a batch; the last one is for those that have none.

    Raises FramePackError for more than two channels.
    """
    waveform = audio["waveform"]
    channels = waveform.shape[1]
    if channels not in LAYOUTS:
        raise FramePackError(
            f"audio: {channels} channels, but a video gets one or two; split or mix them"
        )
    samples = waveform[min(number, len(waveform) - 1)].float().cpu().numpy()
    return Audio(samples, int(audio["sample_rate"])).resampled()


def blocked(problem: str) -> ExecutionBlocker:
    """An output that stops only the nodes that use it, with what is wrong."""
    return ExecutionBlocker(problem)


def to_latent(latents: Tensor, **extra: Any) -> dict[str, Any]:
    """Model-ready latents as a LATENT."""
    samples = (latents.float() / LATENT_SCALE).to(comfy.model_management.intermediate_device())
    return {"samples": samples, **extra}
