"""Workflows as ComfyUI's interface saves them, turned into what its API runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NESTED = "COMFY_DYNAMICCOMBO_V3"  # a choice that brings widgets of its own
NOTES = {"Note", "MarkdownNote"}
# "randomize" and the upload buttons have a value of their own.
EXTRA_VALUE = {"control_after_generate", "image_upload", "video_upload"}


def to_api(workflow: dict[str, Any], node_info: dict[str, Any]) -> dict[str, Any]:
    """The prompt of a workflow."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        values = iter(node["widgets_values"])
        inputs = dict(widget_values(node_info[node["type"]]["input"], values))
        left = list(values)
        assert not left, f"{node['type']}: {left} belong to no widget"
        inputs |= {i["name"]: sources[i["link"]] for i in node["inputs"] if i["link"] is not None}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def widget_values(
    schema: dict[str, Any], values: Iterator[Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """(name, value) of each widget: values have no names, they come in the order of the schema.

    Widgets that newer versions of ComfyUI added at the end take their defaults.
    """
    for group in ("required", "optional"):
        for name, (kind, *rest) in schema.get(group, {}).items():
            kind, options = "COMBO" if isinstance(kind, list) else kind, rest[0] if rest else {}
            if kind == NESTED:
                choice = next(values, options["options"][0]["key"])
                yield prefix + name, choice
                chosen = next(o for o in options["options"] if o["key"] == choice)
                yield from widget_values(chosen["inputs"], values, f"{prefix}{name}.")
            elif kind in WIDGETS and not options.get("forceInput"):
                yield prefix + name, next(values, options.get("default"))
                if any(options.get(extra) for extra in EXTRA_VALUE):
                    next(values, None)
