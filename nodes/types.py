"""Sockets of this pack, and what makes one schema work on every supported ComfyUI."""

from __future__ import annotations

import dataclasses
from typing import Any

from comfy_api.latest import io

CATEGORY = "FramePack"

PlanSocket = io.Custom("FPREEL_PLAN")
ControlsSocket = io.Custom("FPREEL_CONTROLS")

_SCHEMA_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}


def schema(**fields: Any) -> io.Schema:
    """A schema without the fields that this ComfyUI does not know yet, such as search_aliases."""
    return io.Schema(**{name: value for name, value in fields.items() if name in _SCHEMA_FIELDS})


def advanced(widget: io.WidgetInput) -> io.WidgetInput:
    """Fold a widget away under "Show advanced inputs" where the interface has that."""
    widget.extra_dict = {**(getattr(widget, "extra_dict", None) or {}), "advanced": True}
    return widget
