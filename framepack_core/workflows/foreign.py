"""The nodes of kijai's ComfyUI-FramePackWrapper, of its Plus and PlusOne forks, and ours for them.

Names, orders and defaults are those of the packs' sources from April to August 2025.
"""

from __future__ import annotations

import math
import re
from typing import Any

from ..parsing.section_spec import ESCAPED, SEPARATOR
from ..parsing.timestamps import prompts_by_section
from ..sampling.plan import FPS
from .graph import Link
from .kinds import AFTER_RUN
from .rows import (
    NOTHING,
    Makes,
    Row,
    Source,
    View,
    always,
    chain_behind,
    choice,
    first_of,
    made,
    part,
    where_filled,
    where_linked,
    where_used,
)

# Sockets that only these packs have.
WRAPPED = {
    *("FramePackMODEL", "FPLORA", "FRAMEPACKLORA", "FRAMEPACKCOMPILEARGS"),
    *("TIMED_CONDITIONING_WITH_METADATA", "REFERENCE_LATENT_LIST"),
    *("REFERENCE_EMBEDS_LIST", "REFERENCE_MASK_LIST"),
}
BUCKET, BUCKETS = 640, "FramePack's sizes (640)"


# --- What is computed -------------------------------------------------------------------------


def _precision(view: View) -> Any:
    quantised = {"fp8_e4m3fn": "fp8", "fp8_e4m3fn_fast": "fp8", "fp8_e5m2": "fp8_e5m2"}
    return quantised.get(view.value("quantization"), view.get("base_precision"))


def _file(name: str) -> Source:
    """A file as this pack's lists have it, where Windows has backslashes."""

    def take(view: View) -> Any:
        value = view.get(name)
        return value.replace("\\", "/") if isinstance(value, str) else value

    return take


def _is_compiled(view: View) -> bool:
    settings = view.behind("compile_args")
    return settings is not None and settings.active


def _step_cache(view: View) -> Any:
    """Theirs skips nothing at threshold 0, where ours takes the usual one."""
    used = view.value("use_teacache", True) and view.value("teacache_rel_l1_thresh", 0.15) != 0
    return "TeaCache" if used else "off"


def _fit(view: View) -> str:
    return BUCKETS if view.get("base_resolution") == BUCKET else "area"


def _end_embeds(view: View) -> Any:
    """Theirs turns from the start image to the end image over the sections."""
    seen = view.value("embed_interpolation") == "linear"
    return view.get("end_image_embeds") if seen else NOTHING


def _timed_sections(view: View) -> tuple[int, float] | None:
    """Sections of a timed prompt's video, and the seconds that this pack counts for each."""
    seconds, window = view.value("total_second_length"), view.value("latent_window_size")
    if seconds is None or window is None:
        return None
    each = max(4 * window - 3, 1) / FPS
    return max(math.ceil(seconds / each), 1), each


def _sections(view: View) -> Any:
    timed = _timed_sections(view)
    return NOTHING if timed is None else timed[0]


def _prompts(view: View) -> Any:
    """A section spec of a text with timestamps."""
    text, timed = view.value("text"), _timed_sections(view)
    if text is None or timed is None:
        view.lost("its text or its length comes by a link, so that [0s: ...] in it is not read")
        return view.get("text")
    prompts = prompts_by_section(text, *timed)
    starts = [i for i, prompt in enumerate(prompts) if i == 0 or prompt != prompts[i - 1]]
    ends = [start - 1 for start in starts[1:]] + [len(prompts) - 1]
    parts = [f"0:{_escaped(prompts[0])}"]  # which is for all sections that are not named
    for first, last in zip(starts, ends, strict=True):
        if prompts[first] != prompts[0]:
            sections = f"{first}" if first == last else f"{first}-{last}"
            parts.append(f"{sections}:{_escaped(prompts[first])}")
    return f" {SEPARATOR} ".join(parts)


def _escaped(prompt: str) -> str:
    return prompt.replace(SEPARATOR, ESCAPED)


# --- One frame --------------------------------------------------------------------------------


def _references(view: View) -> list[tuple[Any, Any, Any]]:
    """Latent, image embedding and mask of every reference image."""
    if view.value("use_kisekaeichi") is False:
        return []
    if view.linked("reference_latent"):
        names = ("reference_latent", "reference_image_embeds", "reference_mask")
        return [tuple(map(view.get, names))]  # type: ignore[list-item]
    columns = [
        _listed(view.behind(name), item)
        for name, item in (
            ("reference_latents", "reference"),
            ("reference_image_embeds", "embeds"),
            ("reference_masks", "mask"),
        )
    ]
    padded = [column + [NOTHING] * len(columns[0]) for column in columns[1:]]
    return list(zip(columns[0], *padded, strict=False))


def _listed(items: View | None, name: str) -> list[Any]:
    """What is linked to a node that makes a list, without the gaps."""
    found = [] if items is None else [items.get(f"{name}_{n}") for n in range(1, 9)]
    return [link for link in found if isinstance(link, Link)]


def _indices(view: View) -> list[int]:
    """Frame indices of the start image, the references, and the blank frame if it is named."""
    if view.linked("reference_latent"):
        return [0, view.value("history_index", 13)]
    return [int(number) for number in re.findall(r"\d+", str(view.value("control_index", "0;10")))]


def _controls(view: View) -> list[View]:
    references = _references(view)
    images = [(view.get("start_latent"), None, view.get("input_mask")), *references]
    indices = (_indices(view) if references else []) + [0] * len(images)
    return [
        view.with_inputs(image=image, index=index, mask=mask)
        for (image, _, mask), index in zip(images, indices, strict=False)
    ]


def _seen(view: View) -> Any:
    """With references theirs shows the image encoder's view of the first one."""
    references = _references(view)
    return references[0][1] if references else view.get("image_embeds")


def _target(view: View) -> Any:
    """Without references theirs takes the last of the window."""
    if _references(view):
        return view.get("target_index")
    window = view.value("latent_window_size")
    return NOTHING if window is None else window - 1


def _no_post(view: View) -> bool:
    """Only the newer version puts a blank frame behind the references."""
    return not _references(view) or view.linked("reference_latent")


def _post(view: View) -> Any:
    indices, images = _indices(view), 1 + len(_references(view))
    return NOTHING if _no_post(view) or len(indices) <= images else indices[images]


# --- The table --------------------------------------------------------------------------------

_CACHED = ("steps", "use_teacache", "teacache_rel_l1_thresh")
_SCALES = ("cfg", "guidance_scale", "shift", "seed", AFTER_RUN)
_SAMPLING: dict[str, str | Source] = {
    **{"model": "model", "negative": "negative", "seed": "seed", AFTER_RUN: AFTER_RUN},
    **{"steps": "steps", "guidance": "guidance_scale", "cfg": "cfg", "shift": "shift"},
    "solver": choice("sampler", {"unipc_bh1": "unipc_bh1", "unipc_bh2": "unipc_bh2"}),
    "step_cache": _step_cache,
    "cache_threshold": "teacache_rel_l1_thresh",
}
_MEMORY = {"gpu_memory_preservation": ((), "ComfyUI manages memory by itself")}
_VIDEO_TO_VIDEO = {
    "denoise_strength": ((1, ""), "only whole videos are made; initial_samples are not used"),
}
_EMBEDS = {
    "embed_interpolation": (
        ("disabled", ""),
        "the start image's embedding is seen by all sections, that of the end image at most by "
        "the last",
    ),
    "start_embed_strength": ((1, ""), "the image embedding is always seen in full"),
}
_LOADER = Makes(
    "FPReelLoadModel",
    {
        "model": _file("model"),
        "precision": _precision,
        "attention": choice(
            "attention_mode", {"sdpa": "pytorch", "flash_attn": "flash", "sageattn": "sage"}
        ),
        "compile": _is_compiled,
    },
    key="load",
)
_LORAS = Makes(
    "FPReelApplyLora",
    {"lora": _file("lora"), "strength": "strength"},
    key="loras",
    each=chain_behind("lora", "FramePackLoraSelect", "prev_lora"),
    carries="model",
    first=made("load", "model"),
)
_SAMPLED = ({"": ("sampler", "latent")},)

_LOAD = Row(
    widgets=tuple(
        ("model", "base_precision", "quantization", *version, "attention_mode")
        for version in (("load_device",), ())
    ),
    makes=(_LOADER, _LORAS),
    outputs=({"": ("loras", "model")},),
)

ROWS: dict[str, Row] = {
    "LoadFramePackModel": _LOAD,
    "LoadFramePackModelWithLoRA": _LOAD,  # what it was called while LoRA came to the wrapper
    "DownloadAndLoadFramePackModel": Row(
        widgets=(("model", "base_precision", "quantization", "attention_mode"),),
        makes=(_LOADER, _LORAS),
        outputs=({"": ("loras", "model")},),
    ),
    "FramePackLoraSelect": Row(widgets=(("lora", "strength", "fuse_lora"),)),
    "FramePackTorchCompileSettings": Row(),
    "FramePackFindNearestBucket": Row(
        widgets=(("base_resolution",),),
        makes=(
            Makes(
                "FPReelCanvas",
                {"image": "image", "fit": _fit, "resolution": "base_resolution"},
                key="size",
            ),
        ),
        outputs=({"": ("size", "width")}, {"": ("size", "height")}),
        lost={"base_resolution": ((BUCKET,), "the size has this area and the picture's own shape")},
    ),
    "FramePackSampler": Row(
        widgets=tuple(
            (
                *(*_CACHED, *_SCALES, "latent_window_size", "total_second_length"),
                *("gpu_memory_preservation", "sampler", *version),
            )
            for version in (
                ("embed_interpolation", "start_embed_strength", "denoise_strength", "w", "h"),
                ("embed_interpolation", "start_embed_strength", "denoise_strength"),
                ("denoise_strength",),
                (),
            )
        ),
        makes=(
            Makes(
                "FPReelPlan",
                {"seconds": "total_second_length", "window": "latent_window_size"},
                key="plan",
            ),
            Makes(
                "FPReelEndFrame",
                {
                    "end_image": "end_latent",
                    "policy": always("first_section"),
                    "clip_vision_output": _end_embeds,
                },
                key="end",
                each=where_linked("end_latent"),
                carries="plan",
                first=made("plan", "plan"),
            ),
            Makes(
                "FPReelSampler",
                {
                    **_SAMPLING,
                    "plan": made("end", "plan"),
                    "positive": "positive",
                    "start_latent": first_of("start_latent", "samples"),
                    "clip_vision_output": "image_embeds",
                },
                key="sampler",
            ),
        ),
        outputs=_SAMPLED,
        lost=_MEMORY | _EMBEDS | _VIDEO_TO_VIDEO,
        silent=("initial_samples", "end_image_embeds"),
    ),
    "FramePackTimestampedTextEncode": Row(
        widgets=(
            (
                *("text", "negative_text", "total_second_length", "latent_window_size"),
                "prompt_blend_sections",
            ),
        ),
        makes=(
            Makes(
                "FPReelPlan",
                {
                    "mode": always("f1"),
                    "length": lambda view: "sections" if _timed_sections(view) else "seconds",
                    "seconds": "total_second_length",
                    "sections": _sections,
                    "window": "latent_window_size",
                },
                key="plan",
            ),
            Makes(
                "FPReelTextEncode",
                {"clip": "clip", "text": "negative_text"},
                key="negative",
                each=where_filled("negative_text"),
            ),
            Makes(
                "FPReelPromptSchedule",
                {"plan": made("plan", "plan"), "clip": "clip", "prompts": _prompts},
                key="prompts",
            ),
        ),
        outputs=(
            {"plan": ("prompts", "plan"), "positive": ("prompts", "positive")},
            {"": ("negative", "conditioning")},
        ),
        lost={"prompt_blend_sections": ((0,), "prompts change at once, without a blend")},
    ),
    "FramePackSampler_F1": Row(
        widgets=(
            (
                *(*_CACHED, *_SCALES, "gpu_memory_preservation", "sampler"),
                *("embed_interpolation", "start_embed_strength", "denoise_strength"),
            ),
        ),
        makes=(
            Makes(
                "FPReelSampler",
                {
                    **_SAMPLING,
                    "plan": part("positive_timed_data", "plan"),
                    "positive": part("positive_timed_data", "positive"),
                    "start_latent": "start_latent",
                    "clip_vision_output": "start_image_embeds",
                },
                key="sampler",
            ),
        ),
        outputs=_SAMPLED,
        lost={
            "end_latent": ((), "F1 is made forwards and sees no end image"),
            **_MEMORY,
            **_VIDEO_TO_VIDEO,
        },
        silent=("initial_samples", "end_image_embeds"),
    ),
    "FramePackSingleFrameSampler": Row(
        widgets=tuple(
            (
                *(*_CACHED, *_SCALES, "latent_window_size", "gpu_memory_preservation", "sampler"),
                *version,
            )
            for version in (
                ("use_kisekaeichi", "denoise_strength", "target_index", "history_index"),
                ("denoise_strength", "target_index", "control_index"),
            )
        ),
        makes=(
            Makes(
                "FPReelControlImage",
                {"image": "image", "index": "index", "mask": "mask", "masked_part": always("kept")},
                key="controls",
                each=_controls,
                carries="controls",
            ),
            Makes(
                "FPReelOneFrame",
                {
                    **_SAMPLING,
                    "positive": "positive",
                    "controls": made("controls", "controls"),
                    "clip_vision_output": _seen,
                    "target_index": _target,
                    **{"no_2x": always(True), "no_4x": always(True), "no_post": _no_post},
                    "post_index": _post,
                    "window": "latent_window_size",
                },
                key="sampler",
            ),
        ),
        outputs=_SAMPLED,
        lost=_MEMORY | _VIDEO_TO_VIDEO,
        silent=(
            *("initial_samples", "image_embeds", "reference_latents", "reference_image_embeds"),
            *("reference_masks", "reference_latent", "reference_mask"),
        ),
    ),
    **dict.fromkeys(("ReferenceLatentList", "ReferenceEmbedsList", "ReferenceMaskList"), Row()),
    "FramePackSingleFrameResizeSampler": Row(
        no_equal="there is no upscaling by tiles here; the node stays, without a model"
    ),
}

# Nodes of further packs that workflows of these come with, where ComfyUI has the same.


def _is_stretch(view: View) -> bool:
    """ComfyUI has no rounding of the size, so that nothing may be there to round."""
    step = view.value("multiple_of") or 1
    sides = (view.get("width"), view.get("height"))
    exact = step == 1 or all(isinstance(side, int) and side % step == 0 for side in sides)
    return exact and view.value("method") == "stretch" and view.value("condition") == "always"


def _is_unused(view: View) -> bool:
    return not any(view.node.links)


def _side(place: int, instead: str) -> Source:
    """A side of a size such as "768x1280 (0.6)", or the number that replaces it."""

    def take(view: View) -> Any:
        sides = re.findall(r"\d+", str(view.value("resolution", "")))
        return view.value(instead) or (int(sides[place]) if len(sides) > 1 else NOTHING)

    return take


def _pictures(view: View) -> list[View]:
    count = view.value("inputcount", 2)
    images = [view.get(f"image_{n}") for n in range(2, int(count) + 1)]
    return [view.with_inputs(next=image) for image in images]


_SCALING = {
    **{"nearest": "nearest-exact", "bilinear": "bilinear", "bicubic": "bicubic", "area": "area"},
    **{"nearest-exact": "nearest-exact", "lanczos": "lanczos"},
}
_HELPERS: dict[str, Row] = {
    "ImageResize+": Row(
        widgets=(("width", "height", "interpolation", "method", "condition", "multiple_of"),),
        makes=(
            Makes(
                "ImageScale",
                {
                    **{"image": "image", "width": "width", "height": "height"},
                    "upscale_method": choice("interpolation", _SCALING),
                },
                key="scaled",
            ),
        ),
        outputs=({"": ("scaled", "IMAGE")},),
        only=_is_stretch,
    ),
    "GetImageSizeAndCount": Row(
        makes=(Makes("GetImageSize", {"image": "image"}, key="size", each=where_used(1, 2, 3)),),
        outputs=(
            {},
            *({"": ("size", output)} for output in ("width", "height", "batch_size")),
        ),
        passes=("image",),
    ),
    "SDXLEmptyLatentSizePicker+": Row(
        widgets=(("resolution", "batch_size", "width_override", "height_override"),),
        makes=(
            Makes("PrimitiveInt", {"value": _side(0, "width_override")}, key="width"),
            Makes("PrimitiveInt", {"value": _side(1, "height_override")}, key="height"),
        ),
        outputs=({}, {"": ("width", "INT")}, {"": ("height", "INT")}),
    ),
    "Text Multiline": Row(
        widgets=(("text",),),
        makes=(Makes("PrimitiveStringMultiline", {"value": "text"}, key="text"),),
        outputs=({"": ("text", "STRING")},),
    ),
    "GetLatentRangeFromBatch": Row(only=_is_unused),  # as examples of PlusOne have it
    "ImageConcatMulti": Row(
        widgets=(("inputcount", "direction", "match_image_size"),),
        makes=(
            Makes(
                "ImageStitch",
                {
                    "image2": "next",
                    "direction": "direction",
                    "match_image_size": "match_image_size",
                },
                key="stitched",
                each=_pictures,
                carries="image1",
                first=lambda view: view.get("image_1"),
            ),
        ),
        outputs=({"": ("stitched", "IMAGE")},),
    ),
    "VHS_VideoCombine": Row(
        makes=(
            Makes(
                "CreateVideo",
                {"images": "images", "audio": "audio", "fps": "frame_rate"},
                key="video",
            ),
            Makes(
                "SaveVideo",
                {"video": made("video", "VIDEO"), "filename_prefix": "filename_prefix"},
                key="save",
            ),
        ),
        lost={
            "pingpong": ((False,), "the video is not played backwards after its end"),
            "loop_count": ((0,), "the video is saved once through"),
        },
    ),
}
HELPERS = _HELPERS.keys()
ROWS |= _HELPERS
