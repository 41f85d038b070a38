"""Sockets of this pack, and what makes one schema work on every supported ComfyUI."""

from __future__ import annotations

import dataclasses
from typing import Any

from comfy_api.latest import io

CATEGORY = "FramePack"

PlanSocket = io.Custom("FPREEL_PLAN")
ControlsSocket = io.Custom("FPREEL_CONTROLS")
DatasetSocket = io.Custom("FPREEL_DATASET")
TrainConfigSocket = io.Custom("FPREEL_TRAIN_CONFIG")
SamplePromptsSocket = io.Custom("FPREEL_SAMPLE_PROMPTS")
# ComfyUI's own types for training; some versions have no names for them in io.
LoraModelSocket = io.Custom("LORA_MODEL")
LossMapSocket = io.Custom("LOSS_MAP")

_SCHEMA_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}


def schema(**fields: Any) -> io.Schema:
    """A schema without the fields that this ComfyUI does not know yet, such as search_aliases."""
    return io.Schema(**{name: value for name, value in fields.items() if name in _SCHEMA_FIELDS})


def advanced(widget: io.WidgetInput) -> io.WidgetInput:
    """Fold a widget away under "Show advanced inputs" where the interface has that."""
    return _with_option(widget, "advanced", True)


def shown_as(kind: str, widget: io.WidgetInput) -> io.WidgetInput:
    """Show a widget as one of this pack's own, from js/; value and socket stay what they are."""
    return _with_option(widget, "widgetType", kind)


def _with_option(widget: io.WidgetInput, name: str, value: Any) -> io.WidgetInput:
    widget.extra_dict = {**(getattr(widget, "extra_dict", None) or {}), name: value}
    return widget
