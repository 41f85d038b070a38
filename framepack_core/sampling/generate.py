"""The loop that makes a video, section by section; the host decides how a section is sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..lora.apply import AppliedLoras
from ..models.packing import Context
from ..runtime.device import cpu_generator
from ..runtime.display import Display
from ..runtime.errors import FramePackError
from .anchor import anchored, is_anchored
from .draft import shrink_noise
from .flow import CFG, FlowDenoiser, Guided
from .history import History, like_start
from .ledger import LedgerRun
from .plan import Plan, Section
from .sanity_checks import Drift, check_output, measure_drift
from .schedule import dynamic_shift, flow_sigmas
from .step_cache import StepCacheFactory
from .unipc import Variant, sample_unipc


@dataclass(frozen=True)
class SectionTask:
    """All that the making of one section depends on, besides the prompt.

    order: its place in the run, 0 first; noise [B, C, W, h, w]; latent_indices [1, W].
    """

    section: Section
    order: int
    noise: Tensor
    latent_indices: Tensor
    context: Context


@dataclass(frozen=True)
class SectionDone:
    """A finished section: its latents [B, C, W, h, w].

    drift: from the start image, None where it could not be measured; stored: it was in the ledger
    and has not been made again.
    """

    section: Section
    order: int
    latents: Tensor
    drift: Drift | None
    stored: bool = False


SampleSection = Callable[[SectionTask], Tensor]
OnSection = Callable[[SectionDone], None]
Finish = Callable[[], bool]
"""Whether a run shall end with the sections that are done."""


@dataclass(frozen=True)
class VideoVariant:
    """One of several videos of a plan: how its sections are sampled, and where they are kept.

    seed: one for all samples, or one a sample.
    """

    sample_section: SampleSection
    seed: int | Sequence[int]
    ledger: LedgerRun | None = None


def generate(
    plan: Plan,
    sample_section: SampleSection,
    start: Tensor,
    seed: int | Sequence[int],
    on_section: OnSection | None = None,
    *,
    existing: Tensor | None = None,
    ledger: LedgerRun | None = None,
    anchor: float = 0.0,
    finish: Finish | None = None,
    draft_of: tuple[int, int] | None = None,
) -> Tensor:
    """Make every section of a plan and return the latents [B, C, 1 + n W, h, w].

    start [B, C, 1, h, w]: the start image's latent, model-ready; images of the plan are such
    latents too, of one sample or of all. seed: one for the run, or one a sample. `on_section`
    follows each section; it may raise to stop. existing [B, C, T, h, w]: the video of a plan that
    extends one, which stays as it is; backward, the start image takes the place of its latent 0.
    ledger: where finished sections are kept and found again. anchor: how far each is brought back
    to the start image by `anchored`, from 0 to 1. finish: asked after each section; where it says
    so the run ends there, with the video of the plan's first sections. draft_of (H, W): height and
    width of the latents of the video that this one is a draft of, half as large.
    """
    variants = [VideoVariant(sample_section, seed, ledger)]
    options = {"existing": existing, "anchor": anchor, "finish": finish, "draft_of": draft_of}
    return generate_variants(plan, variants, start, on_section, **options)


def generate_variants(
    plan: Plan,
    variants: Sequence[VideoVariant],
    start: Tensor,
    on_section: OnSection | None = None,
    *,
    existing: Tensor | None = None,
    anchor: float = 0.0,
    finish: Finish | None = None,
    draft_of: tuple[int, int] | None = None,
) -> Tensor:
    """Several videos of a plan, section by section, in one batch of latents [N B, C, T, h, w].

    The variants take turns in each section, so that all are of one length whenever the run ends,
    and each is bit-exact as it would be alone. `on_section` gets a section of all of them at
    once. The rest as for `generate`.
    """
    _check_start(start)
    if existing is not None:
        start = like_start(start, existing[:, :, :1], "start")
    drift_note = Display("measuring drift")
    runs = [_Run(plan, variant, start, existing, anchor, draft_of) for variant in variants]
    for order, section in enumerate(plan.sections):
        made = [run.make(order, section) for run in runs]
        if on_section is not None:
            latents, drift = torch.cat([part.latents for part in made]), None
            with drift_note:
                drift = measure_drift(latents, torch.cat([start] * len(runs)))
            stored = all(part.stored for part in made)
            on_section(SectionDone(section, order, latents, drift, stored))
        if finish is not None and order + 1 < len(plan.sections) and finish():
            break
    return torch.cat([run.history.video() for run in runs])


class _Made(NamedTuple):
    """A section's latents [B, C, W, h, w], and whether they were in the ledger."""

    latents: Tensor
    stored: bool


class _Run:
    """The making of one variant: its history and its noise."""

    def __init__(
        self,
        plan: Plan,
        variant: VideoVariant,
        start: Tensor,
        existing: Tensor | None,
        anchor: float,
        draft_of: tuple[int, int] | None,
    ) -> None:
        self.plan, self.variant, self.start, self.anchor = plan, variant, start, anchor
        self.history = History(plan, start, existing)
        self.shape = (start.shape[0], start.shape[1], plan.window, *start.shape[3:])
        drawn = (*self.shape[:3], *(draft_of or self.shape[3:]))
        self._noises = plan_noise(plan, drawn, variant.seed)

    def make(self, order: int, section: Section) -> _Made:
        """The next section, sampled or found in the ledger."""
        noise = next(self._noises)
        if noise.shape != self.shape:
            noise = shrink_noise(noise, *self.shape[3:])
        task = SectionTask(
            section,
            order,
            noise.to(self.start.device),
            self.history.latent_indices(section),
            self.history.context(section),
        )
        ledger = self.variant.ledger
        stored = None if ledger is None else ledger.load(order, self.shape)
        if stored is None:
            latents = self.variant.sample_section(task).to(self.start)
            check_output(latents, f"section {section.index}")
            if self.anchor and is_anchored(self.plan, section):
                latents = anchored(latents, self.start, self.anchor)
            if ledger is not None:
                ledger.store(order, latents)
        else:
            latents = stored.to(self.start)
        self.history.append(section, latents)
        return _Made(latents, stored is not None)


def plan_noise(plan: Plan, shape: tuple[int, ...], seed: int | Sequence[int]) -> Iterator[Tensor]:
    """Starting noise of each section of a plan, in the order made.

    The run's generator draws for a section with a seed of its own too, so that this changes no
    other section's noise.
    """
    for section, noise in zip(plan.sections, section_noise(shape, seed), strict=False):
        if section.seed is not None:
            own = section.seed if isinstance(seed, int) else [section.seed] * shape[0]
            noise = next(section_noise(shape, own))
        yield noise


def section_noise(shape: tuple[int, ...], seed: int | Sequence[int]) -> Iterator[Tensor]:
    """Starting noise of each section in the order made: one CPU generator drawn on, as FramePack.

    With several seeds each sample of the batch has its own generator, so it does not depend on
    the batch it is in.
    """
    seeds = [seed] * shape[0] if isinstance(seed, int) else list(seed)
    if len(seeds) != shape[0]:
        raise FramePackError(f"seed: {len(seeds)} seeds for a batch of {shape[0]}")
    if isinstance(seed, int):
        generator = cpu_generator(seed)
        while True:
            yield torch.randn(shape, generator=generator)
    generators = [cpu_generator(s) for s in seeds]
    while True:
        yield torch.cat([torch.randn((1, *shape[1:]), generator=g) for g in generators])


def _check_start(start: Tensor) -> None:
    if start.ndim != 5 or start.shape[2] != 1:
        raise FramePackError(
            f"start: expected one latent frame [B, C, 1, h, w], got {tuple(start.shape)}; "
            "encode one image with the VAE"
        )
    height, width = start.shape[3:]
    if height % 2 or width % 2:
        raise FramePackError(
            f"start: its latent is {width}x{height}, an image of {8 * width}x{8 * height}; both "
            "sides of the image must be multiples of 16"
        )


@dataclass(frozen=True)
class SamplerConfig:
    """How a section is sampled; shift None follows the number of tokens, as FramePack does."""

    steps: int = 25
    shift: float | None = None
    variant: Variant = "bh1"
    step_cache: StepCacheFactory | None = None

    def sigmas(self, latent_shape: Sequence[int]) -> Tensor:
        """Schedule [steps + 1] for latents [..., T, h, w]."""
        shift = dynamic_shift(*latent_shape[-3:]) if self.shift is None else self.shift
        return flow_sigmas(self.steps, shift)


@dataclass(frozen=True)
class StepInfo:
    """Where a run is: the `step` of `steps` just done (1 first) in the `order`-th section."""

    order: int
    step: int
    steps: int
    denoised: Tensor


def unipc_sampler(
    denoiser: FlowDenoiser,
    guided: Guided,
    config: SamplerConfig,
    cfg: CFG | None = None,
    on_step: Callable[[StepInfo], None] | None = None,
    loras: AppliedLoras | None = None,
) -> SampleSection:
    """Sections by UniPC on a denoiser, without a host; `on_step` may raise to stop.

    What a section has of its own (a TextCondition, image embeddings, a guidance) replaces that of
    `guided`. loras: those beside the denoiser's layers, for sections with a strength of their own.
    """

    @torch.no_grad()
    def sample(task: SectionTask) -> Tensor:
        sigmas = config.sigmas(task.noise.shape)
        step_cache = config.step_cache(sigmas) if config.step_cache else None
        section_guided, section_cfg = guide_section(task.section, guided, cfg)
        denoiser.begin(section_cfg, step_cache)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            return denoiser.denoise(
                x,
                sigma,
                section_guided,
                latent_indices=task.latent_indices,
                context=task.context,
                cfg=section_cfg,
                step_cache=step_cache,
            )

        def report(i: int, _x: Tensor, denoised: Tensor) -> None:
            if on_step is not None:
                on_step(StepInfo(task.order, i + 1, config.steps, denoised))

        with _lora_strength(task.section, loras):
            return sample_unipc(denoise, task.noise, sigmas, variant=config.variant, on_step=report)

    return sample


def _lora_strength(section: Section, loras: AppliedLoras | None) -> AbstractContextManager[None]:
    """Meanwhile the LoRAs are as strong as a section wants them."""
    if section.lora_strength is None:
        return nullcontext()
    if loras is None or not loras.strengths:
        raise FramePackError(
            f"lora_strength: section {section.index} has one of its own, but there is no LoRA; "
            "apply one, or take it out"
        )
    return loras.scaled(section.lora_strength)


def guide_section(section: Section, guided: Guided, cfg: CFG | None) -> tuple[Guided, CFG | None]:
    """The run's guidance with what a section has of its own; a negative prompt stays the run's."""
    own = {"image_embeds": section.image_embeds, "guidance": section.guidance}
    own = {name: value for name, value in own.items() if value is not None}
    if cfg is not None:
        cfg = replace(cfg, negative=cfg.negative._replace(**own))
    text = guided.text if section.prompt is None else section.prompt
    return guided._replace(text=text, **own), cfg
