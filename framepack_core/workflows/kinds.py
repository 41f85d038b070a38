"""The nodes that conversion makes: sockets, widgets with defaults and outputs, in their order.

Workflow files hold widgets by position, so the order is that of the nodes' schemas; tests/comfyui
compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

TYPES = {"FramePackMODEL": "MODEL"}  # other packs' sockets, and ours for the same
AFTER = " after"  # of a number's name: what becomes of it after a run, of the interface only
AFTER_RUN = f"seed{AFTER}"


@dataclass(frozen=True)
class Kind:
    """One type of node."""

    sockets: dict[str, str]
    widgets: dict[str, Any]
    outputs: dict[str, str]
    pack: str

    def defaults(self) -> dict[str, Any]:
        """The widgets that a run is told of."""
        return {name: value for name, value in self.widgets.items() if not name.endswith(AFTER)}


def kind_of_value(value: Any) -> str:
    """The type of socket that a widget has where it is linked."""
    return {bool: "BOOLEAN", int: "INT", float: "FLOAT"}.get(type(value), "STRING")


def _named(text: str) -> dict[str, str]:
    """name:TYPE in a row."""
    pairs: Iterator[tuple[str, str, str]] = (part.partition(":") for part in text.split())
    return {name: type for name, _, type in pairs}


def _kind(sockets: str, outputs: str, /, **widgets: Any) -> Kind:
    return Kind(_named(sockets), widgets, _named(outputs), "framepack-reel")


def _core(sockets: str, outputs: str, /, **widgets: Any) -> Kind:
    return Kind(_named(sockets), widgets, _named(outputs), "comfy-core")


_SAMPLING: dict[str, Any] = {
    **{"seed": 0, AFTER_RUN: "fixed", "steps": 25, "guidance": 10.0, "cfg": 1.0, "rescale": 0.0},
    **{"shift": 0.0, "solver": "unipc_bh1", "step_cache": "off", "cache_threshold": 0.0},
    **{"rope_threshold": 0.0, "rope_factor": 0.5},
}

KINDS: dict[str, Kind] = {
    "FPReelLoadModel": _kind(
        "", "model:MODEL", model="", precision="auto", attention="auto", compile=False
    ),
    "FPReelApplyLora": _kind(
        "model:MODEL trained:STRING",
        "model:MODEL report:STRING",
        **{"lora": "", "strength": 1.0, "include": "", "exclude": "", "more_loras": ""},
    ),
    "FPReelTextEncode": _kind("clip:CLIP", "conditioning:CONDITIONING", text="", system_prompt=""),
    "FPReelCanvas": _kind(
        "image:IMAGE end_image:IMAGE model:MODEL",
        "image:IMAGE end_image:IMAGE width:INT height:INT",
        **{"fit": "FramePack's sizes (640)", "resolution": 640, "width": 640, "height": 640},
        **{"start_picture": "", "seed": 0},
    ),
    "FPReelPlan": _kind(
        "clip:CLIP vae:VAE clip_vision:CLIP_VISION",
        "plan:FPREEL_PLAN frames:INT",
        **{"mode": "framepack", "length": "seconds", "seconds": 5.0, "sections": 4, "window": 9},
        **{"paddings": "", "timeline": "", "loop": False},
    ),
    "FPReelPromptSchedule": _kind(
        "plan:FPREEL_PLAN clip:CLIP",
        "plan:FPREEL_PLAN positive:CONDITIONING",
        **{"prompts": "", "system_prompt": "", "blend": 0},
    ),
    "FPReelEndFrame": _kind(
        "plan:FPREEL_PLAN end_image:LATENT clip_vision_output:CLIP_VISION_OUTPUT",
        "plan:FPREEL_PLAN",
        **{"strength": 1.0, "policy": "persistent"},
    ),
    "FPReelSampler": _kind(
        "model:MODEL plan:FPREEL_PLAN positive:CONDITIONING start_latent:LATENT "
        "clip_vision_output:CLIP_VISION_OUTPUT negative:CONDITIONING sampler:SAMPLER "
        "sigmas:SIGMAS existing:LATENT vae:VAE",
        "latent:LATENT last_latent:LATENT sections:STRING",
        **{**_SAMPLING, "direction": "forward", "ledger": True, "anchor": 0.0},
        **{"variants": 1, "finish_after": 0, "pick": 0, "draft": "off"},
    ),
    "FPReelControlImage": _kind(
        "image:LATENT mask:MASK controls:FPREEL_CONTROLS",
        "controls:FPREEL_CONTROLS",
        **{"index": 0, "masked_part": "hidden"},
    ),
    "FPReelOneFrame": _kind(
        "model:MODEL positive:CONDITIONING controls:FPREEL_CONTROLS "
        "clip_vision_output:CLIP_VISION_OUTPUT negative:CONDITIONING sampler:SAMPLER sigmas:SIGMAS",
        "latent:LATENT",
        **{"target_index": 9, "no_2x": False, "no_4x": False, "no_post": False, **_SAMPLING},
        **{"post_index": -1, "window": 9},
    ),
    "CreateVideo": _core("images:IMAGE audio:AUDIO", "VIDEO:VIDEO", fps=30.0),
    "SaveVideo": _core("video:VIDEO", "", filename_prefix="video", format="auto", codec="auto"),
    "GetImageSize": _core("image:IMAGE", "width:INT height:INT batch_size:INT"),
    "ImageScale": _core(
        "image:IMAGE",
        "IMAGE:IMAGE",
        **{"upscale_method": "lanczos", "width": 512, "height": 512, "crop": "disabled"},
    ),
    "PrimitiveInt": _core("", "INT:INT", **{"value": 0, f"value{AFTER}": "fixed"}),
    "PrimitiveStringMultiline": _core("", "STRING:STRING", value=""),
    "ImageStitch": _core(
        "image1:IMAGE image2:IMAGE",
        "IMAGE:IMAGE",
        **{"direction": "right", "match_image_size": True, "spacing_width": 0},
        **{"spacing_color": "white"},
    ),
}
