"""What a timeline's texts and file names become: prompts, and pictures of the video's size."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..framepack_core.runtime.errors import FramePackError
from ..framepack_core.runtime.images import load_image, resize_and_crop
from ..framepack_core.sampling.plan import Plan
from .comfyui.encode import encode_prompt
from .comfyui.paths import input_path
from .comfyui.sockets import to_image, to_image_latent
from .guide import PlanValue, SizedPlanValue


def encode_timeline(plan: Plan, clip: Any, vae: Any, clip_vision: Any) -> Plan:
    """The plan with guides for its texts and file names; what they need must be connected."""
    texts, names = plan.handles("prompt"), plan.handles("image")
    if texts:
        _check_connected("a prompt", clip=clip)
    if names:
        _check_connected("an image", vae=vae, clip_vision=clip_vision)
    prompts = {text: PlanValue(encode_prompt(clip, text), text) for text in texts}
    pictures = {name: TimelinePicture(name, vae, clip_vision) for name in names}
    return plan.encoded(
        prompt=prompts.__getitem__,
        image=lambda name: SizedPlanValue(pictures[name].latent, name),
        image_embeds=lambda name: SizedPlanValue(pictures[name].view, name),
    )


def _check_connected(what: str, **inputs: Any) -> None:
    for name, value in inputs.items():
        if value is None:
            raise FramePackError(
                f"{name}: not connected, but a section of the timeline has {what}; connect it, or "
                f"take {what} out"
            )


class TimelinePicture:
    """A picture of ComfyUI's input folder, cropped to the size of the video and encoded."""

    def __init__(self, name: str, vae: Any, clip_vision: Any) -> None:
        self.name, self.vae, self.clip_vision = name, vae, clip_vision
        self.pixels = load_image(input_path(name))

    def latent(self, width: int, height: int) -> Tensor:
        """Model-ready [1, 16, 1, h, w]."""
        image = self._fitted(width, height)
        return to_image_latent({"samples": self.vae.encode(image)}, "vae")

    def view(self, width: int, height: int) -> Any:
        """CLIP_VISION_OUTPUT of the whole fitted picture, as FramePack Start Frame makes it."""
        return self.clip_vision.encode_image(self._fitted(width, height), crop=False)

    def _fitted(self, width: int, height: int) -> Tensor:
        return to_image(resize_and_crop(self.pixels, width, height)[None])
