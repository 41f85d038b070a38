"""What both sampler nodes are asked: the inputs, and the run that they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from comfy_api.latest import io

from .comfyui.progress import RunProgress
from .comfyui.section_run import RunSettings, SampleOptions, SectionRun, section_run
from .option_inputs import default_inputs, option_inputs, read_inputs

NEEDED = (
    *("seed", "steps", "guidance", "cfg", "rescale", "shift", "solver", "step_cache"),
    "cache_threshold",
)
SOCKETS = ("clip_vision_output", "negative", "sampler", "sigmas")
LATER = ("rope_threshold", "rope_factor")  # optional, as workflows of before do not have them


def setting_inputs() -> list[io.Input]:
    """The inputs for how a run is sampled, which `run_of` reads."""
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


def run_of(
    node: str,
    model: Any,
    positive: list[Any],
    latent_shape: Sequence[int],
    progress: Callable[[Any, int], RunProgress],
    inputs: Mapping[str, Any],
) -> SectionRun:
    """As `section_run`, from all other inputs of a sampler node.

    Raises FramePackError for a value that a widget would not allow.
    """
    given = {**default_inputs(SampleOptions, (*NEEDED, *LATER)), **inputs}
    sockets = {name: given.pop(name, None) for name in SOCKETS}
    settings = RunSettings(
        read_inputs(SampleOptions, given, node), given, sockets["sampler"], sockets["sigmas"]
    )
    seen = sockets["clip_vision_output"], sockets["negative"]
    return section_run(model, positive, settings, latent_shape, progress, *seen)
