"""Workflows as people save them with the wrapper packs' nodes, in small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Input = tuple[int, int, str]  # node, slot and type of what it is linked to
MODEL, LORA, TIMED = "FramePackMODEL", "FPLORA", "TIMED_CONDITIONING_WITH_METADATA"
LATENTS, EMBEDS = "REFERENCE_LATENT_LIST", "REFERENCE_EMBEDS_LIST"
MASKS = "REFERENCE_MASK_LIST"
SEED = 1044728344377331


def node(
    id: int,
    type: str,
    inputs: Mapping[str, Input | None],
    outputs: list[str],
    widgets: Any = (),
    **more: Any,
) -> dict[str, Any]:
    """A node with its links named by what they come from."""
    widgets = list(widgets) if isinstance(widgets, tuple) else widgets
    made = {"id": id, "type": type, "pos": [100 * id, 50], "mode": 0, "properties": {}}
    made |= {"inputs": inputs, "outputs": outputs, "widgets_values": widgets}
    return made | more


def workflow(nodes: list[dict[str, Any]], *, as_tables: bool = False) -> dict[str, Any]:
    """A file of the interface, version 0.4, or 1 whose links are tables."""
    links: list[list[Any]] = []
    for each in nodes:
        sockets = []
        for slot, (name, source) in enumerate(each["inputs"].items()):
            link = None
            if source is not None:
                link = len(links) + 1
                links.append([link, source[0], source[1], each["id"], slot, source[2]])
            kind = source[2] if source else "*"
            widget = {"widget": {"name": name}} if kind in ("INT", "FLOAT", "STRING") else {}
            sockets.append({"name": name, "type": kind, "link": link, **widget})
        each["inputs"] = sockets
    for each in nodes:
        each["outputs"] = [
            {
                "name": kind.lower(),
                "type": kind,
                "links": [link[0] for link in links if link[1:3] == [each["id"], slot]] or None,
            }
            for slot, kind in enumerate(each["outputs"])
        ]
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    tables = [dict(zip(names, link, strict=True)) for link in links]
    last = max(each["id"] for each in nodes)
    made: dict[str, Any] = {"nodes": nodes, "links": tables if as_tables else links, "groups": []}
    if as_tables:
        state = {"lastNodeId": last, "lastLinkId": len(links), "lastGroupId": 0}
        return made | {"version": 1, "state": state, "extra": {}}
    return made | {"version": 0.4, "last_node_id": last, "last_link_id": len(links), "extra": {}}


def loaders() -> list[dict[str, Any]]:
    clips = ("clip_l.safetensors", "llava_llama3_fp16.safetensors", "hunyuan_video", "default")
    return [
        node(1, "DualCLIPLoader", {}, ["CLIP"], clips),
        node(2, "VAELoader", {}, ["VAE"], ("hunyuan_video_vae_bf16.safetensors",)),
        node(3, "CLIPVisionLoader", {}, ["CLIP_VISION"], ("sigclip.safetensors",)),
        node(4, "LoadImage", {}, ["IMAGE", "MASK"], ("start.png", "image")),
        node(5, "VAEEncode", {"pixels": (4, 0, "IMAGE"), "vae": (2, 0, "VAE")}, ["LATENT"]),
        node(
            6,
            "CLIPVisionEncode",
            {"clip_vision": (3, 0, "CLIP_VISION"), "image": (4, 0, "IMAGE")},
            ["CLIP_VISION_OUTPUT"],
            ("none",),
        ),
        node(7, "CLIPTextEncode", {"clip": (1, 0, "CLIP")}, ["CONDITIONING"], ("a cat walks",)),
        node(8, "FramePackLoraSelect", {"prev_lora": None}, [LORA], ("a\\one.pt", 0.5, True)),
        node(
            9,
            "FramePackLoraSelect",
            {"prev_lora": (8, 0, LORA)},
            [LORA],
            ("two.pt", 1, True),
        ),
        node(
            10,
            "LoadFramePackModel",
            {"compile_args": None, "lora": (9, 0, LORA)},
            [MODEL],
            ("dit.safetensors", "bf16", "fp8_e4m3fn", "offload_device", "sdpa"),
        ),
    ]


SAMPLED: dict[str, Input | None] = {
    "model": (10, 0, MODEL),
    "positive": (7, 0, "CONDITIONING"),
    "negative": (7, 0, "CONDITIONING"),
    "start_latent": (5, 0, "LATENT"),
    "image_embeds": (6, 0, "CLIP_VISION_OUTPUT"),
}
SAMPLING = (3, True, 0.2, 1, 9.5, 0, SEED, "randomize")


def image_to_video(end: bool = True, seconds: float = 2.4, window: int = 9) -> dict[str, Any]:
    """kijai's sampler with an end image, and nodes of further packs that come with it."""
    ends: dict[str, Input | None] = {
        "end_latent": (5, 0, "LATENT") if end else None,
        "end_image_embeds": (6, 0, "CLIP_VISION_OUTPUT") if end else None,
        "initial_samples": None,
    }
    size = {"image": (4, 0, "IMAGE")}
    return workflow(
        [
            *loaders(),
            node(11, "SetNode", {"MODEL": (10, 0, MODEL)}, ["*"], ("dit",)),
            node(12, "GetNode", {}, [MODEL], ("dit",)),
            node(13, "Reroute", {"": (12, 0, MODEL)}, [MODEL]),
            node(14, "FramePackFindNearestBucket", size, ["INT", "INT"], (640,)),
            node(
                15,
                "ImageResize+",
                {**size, "width": (14, 0, "INT"), "height": (14, 1, "INT")},
                ["IMAGE", "INT", "INT"],
                (512, 512, "nearest", "stretch", "always", 0),
            ),
            node(16, "PreviewImage", {"images": (15, 0, "IMAGE")}, []),
            node(
                17,
                "FramePackSampler",
                SAMPLED | ends | {"model": (13, 0, MODEL)},
                ["LATENT"],
                (*SAMPLING, window, seconds, 6, "unipc_bh2", "linear", 0.7, 1),
                title="Make it",
            ),
            node(18, "VAEDecode", {"samples": (17, 0, "LATENT"), "vae": (2, 0, "VAE")}, ["IMAGE"]),
            node(19, "GetImageSizeAndCount", {"image": (18, 0, "IMAGE")}, ["IMAGE", *["INT"] * 3]),
            node(
                20,
                "VHS_VideoCombine",
                {"images": (19, 0, "IMAGE"), "audio": None},
                ["VHS_FILENAMES"],
                {"frame_rate": 30, "loop_count": 0, "filename_prefix": "cat", "pingpong": True},
            ),
        ]
    )


def timed(
    text: str = "[0s: it sits] [1.2s-2s: it runs; fast]",
    seconds: float = 3.0,
    window: int = 9,
    **more: Input,
) -> dict[str, Any]:
    """F1 of the Plus fork, whose prompt carries times, length and window."""
    encode = {"clip": (1, 0, "CLIP")} | more
    return workflow(
        [
            *loaders(),
            node(
                11,
                "FramePackTimestampedTextEncode",
                encode,
                [TIMED, "CONDITIONING"],
                (text, "blurry", seconds, window, 2),
            ),
            node(
                12,
                "FramePackSampler_F1",
                {
                    "model": (10, 0, MODEL),
                    "positive_timed_data": (11, 0, TIMED),
                    "negative": (11, 1, "CONDITIONING"),
                    "start_latent": (5, 0, "LATENT"),
                    "start_image_embeds": (6, 0, "CLIP_VISION_OUTPUT"),
                    "end_latent": (5, 0, "LATENT"),
                },
                ["LATENT"],
                (*SAMPLING, 6, "unipc_bh1", "disabled", 1, 1),
            ),
            node(13, "VAEDecode", {"samples": (12, 0, "LATENT"), "vae": (2, 0, "VAE")}, ["IMAGE"]),
            node(14, "PreviewImage", {"images": (13, 0, "IMAGE")}, []),
        ],
        as_tables=True,
    )


def one_frame(references: bool = True) -> dict[str, Any]:
    """The PlusOne fork's sampler, with two references or none."""
    lists: list[dict[str, Any]] = []
    if references:
        pairs = (
            ("ReferenceLatentList", "reference", (5, 0, "LATENT"), LATENTS),
            (
                "ReferenceEmbedsList",
                "embeds",
                (6, 0, "CLIP_VISION_OUTPUT"),
                EMBEDS,
            ),
            ("ReferenceMaskList", "mask", (4, 1, "MASK"), MASKS),
        )
        for id, (type, name, source, kind) in enumerate(pairs, 11):
            inputs = {f"{name}_1": source, f"{name}_2": None, f"{name}_3": source}
            lists.append(node(id, type, inputs, [kind]))
    return workflow(
        [
            *loaders(),
            *lists,
            node(
                14,
                "FramePackSingleFrameSampler",
                SAMPLED
                | {
                    "initial_samples": (5, 0, "LATENT"),
                    "reference_latents": (11, 0, LATENTS) if references else None,
                    "reference_image_embeds": (12, 0, EMBEDS) if references else None,
                    "reference_masks": (13, 0, MASKS) if references else None,
                },
                ["LATENT"],
                (*SAMPLING, 9, 25, "unipc_bh1", 1, 5, "0;10;2"),
            ),
            node(15, "VAEDecode", {"samples": (14, 0, "LATENT"), "vae": (2, 0, "VAE")}, ["IMAGE"]),
            node(16, "PreviewImage", {"images": (15, 0, "IMAGE")}, []),
        ]
    )


def in_subgraph() -> dict[str, Any]:
    """The sampler inside a subgraph that is given the model, the prompt and pictures."""
    given = {"model": MODEL, "positive": "CONDITIONING", "start_latent": "LATENT"}
    sources: dict[str, Input] = {
        name: (-10, slot, kind) for slot, (name, kind) in enumerate(given.items())
    }
    inside = workflow(
        [
            node(
                1,
                "FramePackSampler",
                sources | {"negative": sources["positive"], "image_embeds": None},
                ["LATENT"],
                (*SAMPLING, 9, 1.2, 6, "unipc_bh1", 1),
            )
        ],
        as_tables=True,
    )
    inside["links"].append(
        {"id": 9, "origin_id": 1, "origin_slot": 0, "target_id": -20, "target_slot": 0}
        | {"type": "LATENT"}
    )
    inside["nodes"][0]["outputs"][0]["links"] = [9]
    by_slot = [
        [k["id"] for k in inside["links"] if [k["origin_id"], k["origin_slot"]] == [-10, slot]]
        for slot in range(3)
    ]
    inside |= {
        "id": "inner",
        "name": "Make",
        "inputNode": {"id": -10},
        "outputNode": {"id": -20},
        "inputs": [
            {"name": name, "type": kind, "linkIds": ids}
            for (name, kind), ids in zip(given.items(), by_slot, strict=True)
        ],
        "outputs": [{"name": "latent", "type": "LATENT", "linkIds": [9]}],
    }
    outer = workflow(
        [
            *loaders(),
            node(11, "inner", {name: SAMPLED[name] for name in given}, ["LATENT"]),
            node(12, "VAEDecode", {"samples": (11, 0, "LATENT"), "vae": (2, 0, "VAE")}, ["IMAGE"]),
        ]
    )
    return outer | {"definitions": {"subgraphs": [inside]}}


def as_prompt(saved: dict[str, Any], widgets: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The API prompt of a workflow, by the names of the widgets of its nodes."""
    rows = [list(link.values()) if isinstance(link, dict) else link for link in saved["links"]]
    links = {link[0]: [str(link[1]), link[2]] for link in rows}
    prompt = {}
    for each in saved["nodes"]:
        values = each["widgets_values"]
        names = widgets.get(each["type"], [])
        named = dict(values) if isinstance(values, dict) else dict(zip(names, values, strict=False))
        linked = {i["name"]: links[i["link"]] for i in each["inputs"] if i["link"]}
        inputs = {name: value for name, value in named.items() if not name.endswith(" after")}
        prompt[str(each["id"])] = {"class_type": each["type"], "inputs": inputs | linked}
    return prompt
