"""The inputs that FramePack Sampler and FramePack One Frame share."""

from __future__ import annotations

from comfy_api.latest import io

from ..framepack_core.sampling.flow import GUIDANCE
from .comfyui.section_run import (
    CACHES,
)
from .types import advanced


def setting_inputs() -> list[io.Input]:
    """The inputs of a sampler node that `Settings` holds."""
    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**64 - 1,
            control_after_generate=True,
            tooltip="Equal seed and settings give the equal video.",
        ),
        io.Int.Input("steps", default=25, min=1, max=1000, tooltip="Steps a section; 25 is usual."),
        io.Float.Input(
            "guidance",
            default=GUIDANCE,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="How strongly the prompt is followed, without extra time; 10 is usual. "
            "A FluxGuidance node on the prompt wins over this.",
        ),
        io.Float.Input(
            "cfg",
            default=1.0,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="Real classifier-free guidance with the negative prompt; takes twice "
            "the time. Leave it at 1 for the released models.",
        ),
        advanced(
            io.Float.Input(
                "rescale",
                default=0.0,
                min=0.0,
                max=1.0,
                step=0.01,
                tooltip="Pulls contrast back that a cfg above 1 adds; 0 is off.",
            )
        ),
        advanced(
            io.Float.Input(
                "shift",
                default=0.0,
                min=0.0,
                max=100.0,
                step=0.01,
                tooltip="Shift of the noise schedule; 0 follows the video's size as "
                "FramePack does (7 at usual sizes). Shift nodes on the model count only "
                "through a sigmas input.",
            )
        ),
        advanced(
            io.Combo.Input(
                "solver",
                options=["unipc_bh1", "unipc_bh2"],
                default="unipc_bh1",
                tooltip="FramePack's UniPC in one of its two variants; bh1 is FramePack's. "
                "A sampler input replaces it.",
            )
        ),
        advanced(
            io.Combo.Input(
                "step_cache",
                options=list(CACHES),
                default="off",
                tooltip="Skips steps that would change little: up to twice as fast, with "
                "somewhat less detail in motion and hands.",
            )
        ),
        advanced(
            io.Float.Input(
                "cache_threshold",
                default=0.0,
                min=0.0,
                max=2.0,
                step=0.01,
                tooltip="How readily steps are skipped. 0 is the usual value: 0.15 for "
                "TeaCache, 0.24 for MagCache.",
            )
        ),
        advanced(
            io.Float.Input(
                "rope_threshold",
                default=0.0,
                min=0.0,
                max=1000.0,
                step=1.0,
                optional=True,
                tooltip="Shrinks the positions in height and width while 1000 x sigma is "
                "at least this, so that larger pictures than the model knows keep their "
                "composition. 0 is off; try 800. Meant for one frame.",
            )
        ),
        advanced(
            io.Float.Input(
                "rope_factor",
                default=0.5,
                min=0.01,
                max=1.0,
                step=0.01,
                optional=True,
                tooltip="How far positions shrink: 0.5 for twice the usual size, 0.7 for "
                "one and a half.",
            )
        ),
        io.Sampler.Input(
            "sampler",
            optional=True,
            tooltip="Any ComfyUI sampler in place of UniPC (euler works well).",
        ),
        io.Sigmas.Input(
            "sigmas",
            optional=True,
            tooltip="Noise levels from 1 to 0 in place of steps and shift.",
        ),
    ]
