"""How ComfyUI samples one section: its guider and samplers on the native MODEL."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import comfy.samplers
import node_helpers
import torch
from torch import Tensor

from ...framepack_core.runtime.display import Bar, warn
from ...framepack_core.runtime.errors import FramePackError
from ...framepack_core.runtime.options import updated
from ...framepack_core.sampling.flow import RopeScaling, combine_cfg
from ...framepack_core.sampling.generate import SamplerConfig, SectionTask
from ...framepack_core.sampling.options import SamplingOptions
from ...framepack_core.sampling.plan import Mode, Section
from ...framepack_core.sampling.sanity_checks import check_attention
from ...framepack_core.sampling.sections import LATENT_STRIDE
from ...framepack_core.sampling.step_cache import StepCacheChoice
from ...framepack_core.sampling.unipc import Variant, sample_unipc
from .model import (
    LATENT_SCALE,
    LORA_STRENGTH,
    ROPE_SCALING,
    STEP_CACHE,
    FramePackModel,
    section_conditions,
)
from .progress import RunProgress

TOO_LARGE = 4  # times the pixels that a model was trained at


class SampleOptions(SamplingOptions, StepCacheChoice):
    """What the widgets of a sampler node say."""


@dataclass(frozen=True)
class RunSettings:
    """How a run is sampled; inputs: what widgets said, by name, which the ledger knows it by."""

    options: SampleOptions
    inputs: Mapping[str, Any]
    sampler: Any = None
    sigmas: Tensor | None = None

    @property
    def seed(self) -> int:
        assert self.options.seed is not None  # the widget always has one
        return self.options.seed

    def with_seed(self, seed: int) -> RunSettings:
        """The same with another seed, which the ledger then knows it by."""
        options = updated(self.options, {("seed",): seed})
        return replace(self, options=options, inputs={**self.inputs, "seed": seed})

    @property
    def with_cfg(self) -> bool:
        return self.options.guidance_scale != 1

    def schedule(self, latent_shape: Sequence[int]) -> Tensor:
        """The sigmas input, or those of steps and shift for latents [..., T, h, w]."""
        if self.sigmas is None:
            options = self.options
            return SamplerConfig(options.infer_steps, options.flow_shift).sigmas(latent_shape)
        check_sigmas(self.sigmas)
        return self.sigmas

    def rope_scaling(self) -> RopeScaling | None:
        threshold = self.options.rope_scaling_timestep_threshold
        factor = self.options.rope_scaling_factor
        return None if threshold is None else RopeScaling(threshold, factor)


@dataclass(frozen=True)
class SectionRun:
    """Makes sections with ComfyUI's guider and samplers: what core's `generate` calls.

    steps_before: of other variants, that the progress counts in each section before its own.
    """

    model: Any
    positive: list[Any]
    negative: list[Any] | None
    image_embeds: Tensor | None
    settings: RunSettings
    sigmas: Tensor
    progress: RunProgress
    steps_before: int = 0

    def variants(self, seeds: Sequence[int]) -> list[SectionRun]:
        """The same run for each of several seeds, which take turns in each section."""
        steps = len(self.sigmas) - 1
        return [
            replace(self, settings=self.settings.with_seed(seed), steps_before=number * steps)
            for number, seed in enumerate(seeds)
        ]

    def __call__(self, task: SectionTask) -> Tensor:
        settings, section = self.settings, task.section
        guider = comfy.samplers.CFGGuider(self._model(section))
        guider.inner_set_conds(self._conds(task))
        guider.set_cfg(settings.options.guidance_scale)
        seed = settings.seed + task.order if section.seed is None else section.seed
        latents = guider.sample(
            task.noise,
            torch.zeros_like(task.noise),
            settings.sampler or unipc(settings.options.unipc_variant),
            self.sigmas,
            callback=lambda step, denoised, x, steps: self.progress.step(
                task.order, self.steps_before + step + 1, denoised
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
        run = {"guidance": self.settings.options.embedded_cfg_scale}
        return [[words, run | extra | own] for words, extra in prompt]

    def _model(self, section: Section) -> Any:
        """The run's model, or a clone with what this section changes: the run's stays as it is."""
        settings = self.settings
        step_cache = settings.options.factory()
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
    settings: RunSettings,
    latent_shape: Sequence[int],
    progress: Callable[[Any, int], RunProgress],
    clip_vision_output: Any = None,
    negative: list[Any] | None = None,
) -> SectionRun:
    """A run of latents [..., T, h, w] a section; raises FramePackError where inputs do not fit.

    progress: makes the bar from the model and the number of steps.
    """
    check_model(model)
    check_size_of(model, latent_shape)
    check_model_attention(model)
    if settings.with_cfg and negative is None:
        raise FramePackError(
            f"negative: cfg {settings.inputs['cfg']} needs a negative prompt; connect one "
            "(it may be empty) or set cfg to 1"
        )
    sigmas = settings.schedule(latent_shape)
    rescale = settings.options.guidance_rescale if settings.with_cfg else 0
    return SectionRun(
        model=with_rescale(model, rescale) if rescale else model,
        positive=positive,
        negative=negative if settings.with_cfg else None,  # it would never be read
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


def check_size_of(model: Any, latent_shape: Sequence[int]) -> None:
    """Refuse latents [..., h, w] far larger than the one size that a model can make."""
    size = only_size(model)
    if size is None:
        return
    height, width = (side * LATENT_STRIDE for side in latent_shape[-2:])
    if width * height > TOO_LARGE * size[0] * size[1]:
        raise FramePackError(
            f"start_latent: {width}x{height}, but this model can only make {size[0]}x{size[1]}; "
            "connect it to FramePack Canvas, or set exact, width and height there"
        )


def only_size(model: Any) -> tuple[int, int] | None:
    """The width and height of all that a model can make, if it is only one."""
    known = getattr(model.model, "trained_for", None)
    return None if known is None else known.size


_checked_attentions: set[tuple[Any, ...]] = set()


def check_model_attention(model: Any) -> None:
    """Compare the attention that a model would use with PyTorch's, once for each kind of number."""
    attention = model.model.diffusion_model.host_attention
    dtype = model.model.manual_cast_dtype or model.model.get_dtype()
    key = (attention.label, model.load_device, dtype)
    if key not in _checked_attentions:
        check_attention(attention, *key)
        _checked_attentions.add(key)


def check_mode(model: Any, mode: Mode, reason: str, instead: str = "") -> None:
    """Refuse a model of the other mode, or warn where only its file's name speaks of it.

    instead: what else to do than to load another model, with {mode} for the model's.
    """
    known = model.model.trained_for
    if known is None or known.mode == mode:
        return
    other = f"{instead.format(mode=known.mode)}, or " if instead else ""
    advice = f"but {reason} {mode}; {other}load the {mode} model"
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
