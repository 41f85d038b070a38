"""What both sampler nodes are asked: the inputs, and the settings that they give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from .comfyui.section_run import RunSettings, SampleOptions
from .option_inputs import default_inputs, option_inputs, read_inputs

NEEDED = (
    *("seed", "steps", "guidance", "cfg", "rescale", "shift", "solver", "step_cache"),
    "cache_threshold",
)
LATER = ("rope_threshold", "rope_factor")  # optional, as workflows of before do not have them


def setting_inputs() -> list[io.Input]:
    """The inputs that `read_settings` reads."""
    return [
        *option_inputs(SampleOptions, NEEDED, optional=False, control=("seed",)),
        *option_inputs(SampleOptions, LATER),
        io.Sampler.Input(
            "sampler",
            optional=True,
            tooltip="Any ComfyUI sampler in place of UniPC (euler works well).",
        ),
        io.Sigmas.Input(
            "sigmas",
            optional=True,
            tooltip="Sigmas (noise levels) from 1 to 0 in place of steps and shift.",
        ),
    ]


def read_settings(
    inputs: Mapping[str, Any], node: str, sampler: Any = None, sigmas: Any = None
) -> RunSettings:
    """Raises FramePackError for a value that a widget would not allow."""
    inputs = {**default_inputs(SampleOptions, (*NEEDED, *LATER)), **inputs}
    return RunSettings(read_inputs(SampleOptions, inputs, node), inputs, sampler, sigmas)
