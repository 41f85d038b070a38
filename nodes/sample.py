"""The sampler: core's loop over the sections, each sampled by ComfyUI on the native MODEL."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.samplers
import node_helpers
import torch
from comfy_api.latest import io
from torch import Tensor
from tqdm.auto import tqdm

from ..framepack_core.runtime.errors import FramePackError
from ..framepack_core.sampling.flow import GUIDANCE, combine_cfg
from ..framepack_core.sampling.generate import SamplerConfig, SectionTask, generate
from ..framepack_core.sampling.sections import Plan
from ..framepack_core.sampling.step_cache import (
    MagCache,
    MagCacheConfig,
    StepCacheFactory,
    TeaCache,
)
from ..framepack_core.sampling.unipc import Variant, sample_unipc
from .host import WINDOW_KEY, RunProgress, to_latent, to_latents
from .model import LATENT_SCALE, STEP_CACHE, FramePackModel, section_conditions
from .types import CATEGORY, PlanSocket, advanced, schema

CACHES: dict[str, Callable[[float], StepCacheFactory | None]] = {
    "off": lambda threshold: None,
    "TeaCache": lambda threshold: partial(TeaCache, threshold=threshold or 0.15),
    "MagCache": lambda threshold: partial(
        MagCache, config=MagCacheConfig(threshold=threshold or 0.24)
    ),
}


class Sampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelSampler",
            display_name="FramePack Sampler",
            category=CATEGORY,
            description="Makes the whole video, section by section, and returns its latents.",
            search_aliases=["framepack", "framepack sampler", "image to video", "i2v", "KSampler"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A FramePack or F1 model, with LoRAs if you like.",
                ),
                PlanSocket.Input("plan", tooltip="Length and order, from FramePack Plan."),
                io.Conditioning.Input("positive", tooltip="What happens in the video."),
                io.Latent.Input(
                    "start_latent",
                    tooltip="The start image, from FramePack Start Frame or VAE Encode.",
                ),
                io.ClipVisionOutput.Input(
                    "clip_vision_output",
                    optional=True,
                    tooltip="What the model recognises in the start image, from FramePack Start "
                    "Frame or CLIP Vision Encode (crop: none). FramePack models need it.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What to avoid; used only where cfg is not 1.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="Equal seed and settings give the equal video.",
                ),
                io.Int.Input(
                    "steps", default=25, min=1, max=1000, tooltip="Steps a section; 25 is usual."
                ),
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
            ],
            outputs=[io.Latent.Output(display_name="latent")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        plan: Plan,
        start_latent: dict[str, Any],
        seed: int,
        **settings: Any,
    ) -> io.NodeOutput:
        start = start_frame(start_latent)
        run = section_run(model, plan, start, seed, cls.hidden.unique_id, **settings)
        latents = generate(plan, run, start, seed)
        return io.NodeOutput(to_latent(latents, **{WINDOW_KEY: plan.window}))


@dataclass(frozen=True)
class SectionRun:
    """Makes sections with ComfyUI's guider and samplers: what core's `generate` calls."""

    model: Any
    prompts: dict[str, list[Any]]
    image_embeds: Tensor | None
    sampler: comfy.samplers.KSAMPLER
    sigmas: Tensor
    cfg: float
    seed: int
    step_cache: StepCacheFactory | None
    progress: RunProgress

    def __call__(self, task: SectionTask) -> Tensor:
        section = section_conditions(task.context, task.latent_indices, self.image_embeds)
        guider = comfy.samplers.CFGGuider(self._model())
        guider.inner_set_conds(
            {
                name: node_helpers.conditioning_set_values(prompt, section)
                for name, prompt in self.prompts.items()
            }
        )
        guider.set_cfg(self.cfg)
        latents = guider.sample(
            task.noise,
            torch.zeros_like(task.noise),
            self.sampler,
            self.sigmas,
            callback=lambda step, denoised, x, steps: self.progress.step(
                task.order, step + 1, denoised
            ),
            seed=(self.seed + task.order) % 2**64,  # of samplers that draw noise of their own
        )
        return latents * LATENT_SCALE

    def _model(self) -> Any:
        if self.step_cache is None:
            return self.model
        model = self.model.clone()
        options = model.model_options.setdefault("transformer_options", {})
        options[STEP_CACHE] = self.step_cache(self.sigmas)
        return model


def section_run(
    model: Any,
    plan: Plan,
    start: Tensor,
    seed: int,
    node_id: str,
    *,
    positive: list[Any],
    steps: int,
    guidance: float,
    cfg: float,
    rescale: float,
    shift: float,
    solver: str,
    step_cache: str,
    cache_threshold: float,
    clip_vision_output: Any = None,
    negative: list[Any] | None = None,
    sampler: Any = None,
    sigmas: Tensor | None = None,
) -> SectionRun:
    """What the sampler node's inputs describe; raises FramePackError where they do not fit."""
    check_model(model)
    if sigmas is None:
        config = SamplerConfig(steps, shift or None)
        sigmas = config.sigmas((plan.window, *start.shape[3:]))
    check_sigmas(sigmas)
    return SectionRun(
        model=with_rescale(model, rescale) if rescale and cfg != 1.0 else model,
        prompts=prompts(positive, negative, cfg, guidance),
        image_embeds=image_embeds(model, clip_vision_output),
        sampler=sampler or unipc(solver.removeprefix("unipc_")),
        sigmas=sigmas,
        cfg=cfg,
        seed=seed,
        step_cache=CACHES[step_cache](cache_threshold),
        progress=RunProgress(model, node_id, len(plan.sections), len(sigmas) - 1),
    )


def start_frame(latent: dict[str, Any]) -> Tensor:
    """The start image's latent [B, 16, 1, h, w], model-ready."""
    latents = to_latents(latent, "start_latent")
    if latents.shape[2] != 1:
        raise FramePackError(
            f"start_latent: {latents.shape[2]} latent frames where one is needed; encode a single "
            "image with FramePack Start Frame"
        )
    return latents


def check_model(model: Any) -> None:
    if not isinstance(model.model, FramePackModel):
        raise FramePackError(
            f"model: a {type(model.model).__name__} is not a FramePack model; load one with Load "
            "FramePack Model"
        )


def check_sigmas(sigmas: Tensor) -> None:
    if len(sigmas) < 2 or not math.isclose(float(sigmas[0]), 1.0, abs_tol=1e-3):
        raise FramePackError(
            "sigmas: a section is made from pure noise, so they must start at 1 and have at least "
            f"one step, but they are {[round(float(s), 3) for s in sigmas[:3]]}; use denoise 1.0"
        )


def prompts(
    positive: list[Any], negative: list[Any] | None, cfg: float, guidance: float
) -> dict[str, list[Any]]:
    """The prompts of a guider; without CFG no negative one, as it would never be read."""
    if cfg == 1.0:
        return {"positive": with_guidance(positive, guidance)}
    if negative is None:
        raise FramePackError(
            f"negative: cfg {cfg} needs a negative prompt; connect one (it may be empty) or set "
            "cfg to 1"
        )
    return {
        "positive": with_guidance(positive, guidance),
        "negative": with_guidance(negative, guidance),
    }


def with_guidance(conditioning: list[Any], guidance: float) -> list[Any]:
    """The distilled guidance on every prompt that does not bring its own."""
    return [[words, {"guidance": guidance, **extra}] for words, extra in conditioning]


def image_embeds(model: Any, clip_vision_output: Any) -> Tensor | None:
    """SigLIP tokens [B, N, C] of the start image, as far as the model takes any."""
    config = model.model.diffusion_model.config
    if not config.has_image_proj:
        return None
    if clip_vision_output is None:
        raise FramePackError(
            "clip_vision_output: not connected, but this model looks at the start image through "
            "it; connect FramePack Start Frame's"
        )
    embeds = clip_vision_output.last_hidden_state
    if embeds.shape[-1] != config.image_proj_dim:
        raise FramePackError(
            f"clip_vision_output: {embeds.shape[-1]} wide where the model needs "
            f"{config.image_proj_dim}; use the SigLIP image encoder (sigclip_vision_patch14_384)"
        )
    return embeds


def with_rescale(model: Any, rescale: float) -> Any:
    """A copy of the model whose CFG keeps the contrast of the positive prompt."""

    def combine(args: dict[str, Any]) -> Tensor:
        return combine_cfg(args["cond"], args["uncond"], args["cond_scale"], rescale)

    model = model.clone()
    model.set_model_sampler_cfg_function(combine)
    return model


def unipc(variant: str) -> comfy.samplers.KSAMPLER:
    """FramePack's UniPC as a ComfyUI sampler."""
    return comfy.samplers.KSAMPLER(_sample_unipc, {"variant": variant})


def _sample_unipc(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    variant: Variant = "bh1",
) -> Tensor:
    with tqdm(total=len(sigmas) - 1, disable=disable) as bar:

        def on_step(i: int, x: Tensor, denoised: Tensor) -> None:
            bar.update()
            if callback is not None:
                sigma = sigmas[i]
                callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})

        denoise = partial(_denoise, model, extra_args or {})
        return sample_unipc(denoise, x, sigmas, variant=variant, on_step=on_step)


def _denoise(model: Any, extra_args: dict[str, Any], x: Tensor, sigma: Tensor) -> Tensor:
    return model(x, sigma, **extra_args)
