"""How ComfyUI samples one section: its guider and samplers on the native MODEL."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.samplers
import node_helpers
import torch
from comfy_api.latest import io
from torch import Tensor

from ...framepack_core.runtime.display import Bar, warn
from ...framepack_core.runtime.errors import FramePackError
from ...framepack_core.sampling.flow import GUIDANCE, RopeScaling, combine_cfg
from ...framepack_core.sampling.generate import SamplerConfig, SectionTask
from ...framepack_core.sampling.plan import Mode, Section
from ...framepack_core.sampling.sanity_checks import check_attention
from ...framepack_core.sampling.step_cache import (
    MagCache,
    MagCacheConfig,
    StepCacheFactory,
    TeaCache,
)
from ...framepack_core.sampling.unipc import Variant, sample_unipc
from ..types import advanced
from .host import RunProgress
from .model import (
    LATENT_SCALE,
    LORA_STRENGTH,
    ROPE_SCALING,
    STEP_CACHE,
    FramePackModel,
    find_attention,
    section_conditions,
)

CACHES: dict[str, Callable[[float], StepCacheFactory | None]] = {
    "off": lambda threshold: None,
    "TeaCache": lambda threshold: partial(TeaCache, threshold=threshold or 0.15),
    "MagCache": lambda threshold: partial(
        MagCache, config=MagCacheConfig(threshold=threshold or 0.24)
    ),
}


@dataclass(frozen=True)
class Settings:
    """How a run is sampled, as the inputs of `setting_inputs` say it."""

    seed: int
    steps: int
    guidance: float
    cfg: float
    rescale: float
    shift: float
    solver: str
    step_cache: str
    cache_threshold: float
    rope_threshold: float = 0.0
    rope_factor: float = 0.5
    sampler: Any = None
    sigmas: Tensor | None = None

    def schedule(self, latent_shape: Sequence[int]) -> Tensor:
        """The sigmas input, or those of steps and shift for latents [..., T, h, w]."""
        if self.sigmas is None:
            return SamplerConfig(self.steps, self.shift or None).sigmas(latent_shape)
        check_sigmas(self.sigmas)
        return self.sigmas

    def rope_scaling(self) -> RopeScaling | None:
        return RopeScaling(self.rope_threshold, self.rope_factor) if self.rope_threshold else None


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


@dataclass(frozen=True)
class SectionRun:
    """Makes sections with ComfyUI's guider and samplers: what core's `generate` calls."""

    model: Any
    positive: list[Any]
    negative: list[Any] | None
    image_embeds: Tensor | None
    settings: Settings
    sigmas: Tensor
    progress: RunProgress

    def __call__(self, task: SectionTask) -> Tensor:
        settings, section = self.settings, task.section
        guider = comfy.samplers.CFGGuider(self._model(section))
        guider.inner_set_conds(self._conds(task))
        guider.set_cfg(settings.cfg)
        seed = settings.seed + task.order if section.seed is None else section.seed
        latents = guider.sample(
            task.noise,
            torch.zeros_like(task.noise),
            settings.sampler or unipc(settings.solver.removeprefix("unipc_")),
            self.sigmas,
            callback=lambda step, denoised, x, steps: self.progress.step(
                task.order, step + 1, denoised
            ),
            seed=seed % 2**64,  # of samplers that draw noise of their own
        )
        return latents * LATENT_SCALE

    def _conds(self, task: SectionTask) -> dict[str, list[Any]]:
        """The prompts with all that the section sees; what it has of its own replaces the run's."""
        section = task.section
        embeds = self.image_embeds if section.image_embeds is None else section.image_embeds
        values = section_conditions(task.context, task.latent_indices, embeds)
        prompts = {"positive": section.prompt or self.positive, "negative": self.negative}
        return {
            name: node_helpers.conditioning_set_values(self._guided(prompt, section), values)
            for name, prompt in prompts.items()
            if prompt is not None
        }

    def _guided(self, prompt: list[Any], section: Section) -> list[Any]:
        """The distilled guidance: the section's, else the prompt's, else the run's."""
        own = {} if section.guidance is None else {"guidance": section.guidance}
        run = {"guidance": self.settings.guidance}
        return [[words, run | extra | own] for words, extra in prompt]

    def _model(self, section: Section) -> Any:
        """The run's model, or a clone with what this section changes: the run's stays as it is."""
        settings = self.settings
        step_cache = CACHES[settings.step_cache](settings.cache_threshold)
        options = {
            ROPE_SCALING: settings.rope_scaling(),
            STEP_CACHE: step_cache and step_cache(self.sigmas),
            LORA_STRENGTH: section.lora_strength,
        }
        options = {name: option for name, option in options.items() if option is not None}
        if not options:
            return self.model
        model = self.model.clone()
        model.model_options.setdefault("transformer_options", {}).update(options)
        return model


def section_run(
    model: Any,
    positive: list[Any],
    settings: Settings,
    latent_shape: Sequence[int],
    progress: Callable[[Any, int], RunProgress],
    clip_vision_output: Any = None,
    negative: list[Any] | None = None,
) -> SectionRun:
    """A run of latents [..., T, h, w] a section; raises FramePackError where inputs do not fit.

    progress: makes the bar from the model and the number of steps.
    """
    check_model(model)
    check_model_attention(model)
    if settings.cfg != 1.0 and negative is None:
        raise FramePackError(
            f"negative: cfg {settings.cfg} needs a negative prompt; connect one (it may be empty) "
            "or set cfg to 1"
        )
    sigmas = settings.schedule(latent_shape)
    rescaled = settings.rescale and settings.cfg != 1.0
    return SectionRun(
        model=with_rescale(model, settings.rescale) if rescaled else model,
        positive=positive,
        negative=None if settings.cfg == 1.0 else negative,  # it would never be read
        image_embeds=image_embeds(model, clip_vision_output),
        settings=settings,
        sigmas=sigmas,
        progress=progress(model, len(sigmas) - 1),
    )


def check_model(model: Any) -> None:
    if not isinstance(model.model, FramePackModel):
        raise FramePackError(
            f"model: a {type(model.model).__name__} is not a FramePack model; load one with Load "
            "FramePack Model"
        )


_checked_attentions: set[tuple[Any, ...]] = set()


def check_model_attention(model: Any) -> None:
    """Compare the attention that a model would use with PyTorch's, once for each kind of number."""
    attention = model.model.diffusion_model.host_attention
    dtype = model.model.manual_cast_dtype or model.model.get_dtype()
    key = (find_attention(attention.name), model.load_device, dtype)
    if key not in _checked_attentions:
        check_attention(attention, key[0].__name__, *key[1:])
        _checked_attentions.add(key)


def check_mode(model: Any, mode: Mode, reason: str) -> None:
    """Refuse a model of the other mode, or warn where only its file's name speaks of it."""
    known = model.model.trained_for
    if known is None or known.mode == mode:
        return
    advice = f"but {reason} {mode}; load the {mode} model"
    if known.certain:
        raise FramePackError(f"model: it was trained for {known.mode}, {advice}")
    warn(f"model: its name says {known.mode}, {advice} if the result falls apart")


def check_sigmas(sigmas: Tensor) -> None:
    if len(sigmas) < 2 or not math.isclose(float(sigmas[0]), 1.0, abs_tol=1e-3):
        raise FramePackError(
            "sigmas: a section is made from pure noise, so they must start at 1 and have at least "
            f"one step, but they are {[round(float(s), 3) for s in sigmas[:3]]}; use denoise 1.0"
        )


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
    with Bar("section", len(sigmas) - 1, disable=bool(disable)) as bar:

        def on_step(i: int, x: Tensor, denoised: Tensor) -> None:
            bar.move()
            if callback is not None:
                sigma = sigmas[i]
                callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})

        denoise = partial(_denoise, model, extra_args or {})
        return sample_unipc(denoise, x, sigmas, variant=variant, on_step=on_step)


def _denoise(model: Any, extra_args: dict[str, Any], x: Tensor, sigma: Tensor) -> Tensor:
    return model(x, sigma, **extra_args)
