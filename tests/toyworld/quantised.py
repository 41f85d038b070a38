"""What quantising does to Toy World: how a LoRA is learned, what one keeps of its effect, videos.

`python -m tests.bench.quantised` prints it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from framepack_core.lora.apply import apply_loras, open_loras
from framepack_core.models.build import dit_shapes, load_snapshot
from framepack_core.models.products import PRODUCTS
from framepack_core.sampling.flow import FlowDenoiser, Guided, x_at
from framepack_core.sampling.generate import SamplerConfig, generate, unipc_sampler
from framepack_core.sampling.plan import Mode
from framepack_core.sampling.sections import plan_video
from framepack_core.sampling.step_cache import OFFERED, StepCacheFactory
from framepack_core.toyworld import OPPOSITE_LORA, SNAPSHOT, concept, render
from framepack_core.training import loop
from framepack_core.training.batches import Batches, Sample
from framepack_core.training.config import AdapterConfig, TrainConfig
from framepack_core.training.objective import Objective
from framepack_core.weights.formats import MADE
from framepack_core.weights.precisions import STATED, Precision

from .concept_cases import CASES_OFFSET, hopped, prompts
from .evaluate import Cases, Toy, encode_embeds, encode_images, encode_prompts
from .train_lora import BATCH, Clip, encoders_of, make_clips, make_samples

CLIPS, LEVELS = 8, (0.95, 0.6, 0.2)  # of the passes that a LoRA's effect is measured on
UPDATES, COMPARED = 200, 50  # of a training, and its last ones
SEED, RANK, RATE = 42, 16, 1e-3
SECTIONS = 2


@dataclass(frozen=True)
class Base:
    """A precision, and whether its weights are multiplied in their own numbers, faster or not."""

    precision: Precision
    quantized_matmul: bool = False

    @property
    def name(self) -> str:
        if self.precision == "full":
            return "not quantised"
        how = "in its own numbers" if self.quantized_matmul else "dequantised"
        return f"{self.precision}, {how}"

    def load(self, device: torch.device) -> Toy:
        return Toy.load(SNAPSHOT, device, self.precision, self.quantized_matmul)


FULL = Base("full")
COMPUTED = (Base("float8_e4m3fn", True), Base("int8_tensorwise", True), Base("int8_convrot", True))
TRAINED = (FULL, *(Base(base.precision) for base in COMPUTED), *COMPUTED)
JUDGED = (*COMPUTED, Base("nvfp4"), Base("gguf_q4_k"))


def every_base() -> Iterator[Base]:
    """Each format as plain PyTorch multiplies it, and dequantised."""
    of_pytorch = {name for product in PRODUCTS if not product.module for name in product.formats}
    for precision in STATED:
        if MADE[precision].name in of_pytorch:
            yield Base(precision, True)
        yield Base(precision)


_caches = tempfile.TemporaryDirectory()  # of this process


def _samples(name: str, clips: Sequence[Clip]) -> list[Sample]:
    models = load_snapshot(SNAPSHOT, dtype=torch.float32)
    folder = Path(_caches.name) / name
    return list(make_samples(encoders_of(models), folder, clips, BATCH))


# --- learning -------------------------------------------------------------------------------------


@cache
def _lessons() -> list[Sample]:
    """Those of the word, cached for this process."""
    clips = [
        Clip(x.name, render.render(x.clips), render.start_image(x.clips)[0], [x.caption])
        for x in concept.lessons()
    ]
    return _samples("lessons", clips)


def learned(
    base: Base, device: torch.device, updates: int = UPDATES, cases: int = 16, steps: int = 25
) -> dict[str, Any]:
    """What a LoRA learns of a word on a base: losses, and how many held-out cases show it.

    Clips, noise and levels are the same on every base. The last is the loss of the finished LoRA
    on the model that is not quantised.
    """
    toy, batches = base.load(device), Batches(_lessons(), SEED)
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            output_dir=Path(folder),
            output_name="hops",
            seed=SEED,
            steps=updates,
            adapter=AdapterConfig(rank=RANK, alpha=RANK),
            learning_rate=RATE,
            gradient_checkpointing=False,
            quantized_matmul=base.quantized_matmul,
        )
        denoiser = FlowDenoiser(toy.dits["framepack"], toy.dtype)
        before = _loss(config, denoiser, batches, device)
        with patch.object(loop, "choose_products", lambda *_: True):  # those of the base stay
            made = loop.train(config, denoiser, batches, device=device)
    found = {"base": base.name, "before": before, "last updates": mean(made.losses[-COMPARED:])}
    whole = FULL.load(device)
    for name, models in (("after", toy), ("after, without quantising", whole)):
        dit = models.dits["framepack"]
        with made.adapters.attached(dit):
            found[name] = _loss(config, FlowDenoiser(dit, models.dtype), batches, device)
            if models is toy:
                asked = Cases.draw(cases, CASES_OFFSET)
                video = toy.make_videos(
                    "framepack", asked.starts, prompts(asked), 1, asked.seeds, steps=steps
                )
                found |= {"learned": sum(hopped(video.track)), "of": cases}
    return found


@torch.no_grad()
def _loss(
    config: TrainConfig, denoiser: FlowDenoiser, batches: Batches, device: torch.device
) -> float:
    """Of the updates that would come next."""
    objective, first = Objective(config, denoiser, batches, device), config.steps or 0
    return mean(float(objective.loss(i)) for i in range(first, first + COMPARED))


# --- a LoRA's effect ------------------------------------------------------------------------------


def effect(base: Base, device: torch.device, clips: int = CLIPS) -> dict[str, Any]:
    """What is left of the effect of Toy World's LoRA on whole passes, over that in bf16.

    norm: of the changes. along: of their part that is the change in bf16; the rest is rounding.
    """
    expected, found = (_effects(b, device, clips) for b in (FULL, base))
    pairs = list(zip(found, expected, strict=True))
    along = sum(float((a * b).sum()) for a, b in pairs) / sum(
        float(b.norm()) ** 2 for b in expected
    )
    norm = sum(float(x.norm()) for x in found) / sum(float(x.norm()) for x in expected)
    return {"effect on": base.name, "norm": norm, "along": along}


@cache
@torch.no_grad()
def _effects(base: Base, device: torch.device, clips: int) -> list[Tensor]:
    """The LoRA's change of the velocity in each pass."""
    toy, changes = base.load(device), []
    dit = toy.dits["framepack"]
    denoiser = FlowDenoiser(dit, toy.dtype)
    uses = open_loras([OPPOSITE_LORA], dit_shapes(dit.config))
    batches = Batches(_opposites(clips))
    for number in range(len(batches)):
        batch = batches.load(number).to(device)
        draws = torch.Generator().manual_seed(number)
        noise = torch.randn(batch.latents.shape, generator=draws).to(device)
        inputs = Guided(batch.text, batch.image_embeds), batch.latent_indices, batch.context
        for level in LEVELS:
            sigma = torch.full((len(noise),), level, device=device)
            x = x_at(sigma, batch.latents.float(), noise)
            plain = denoiser.velocity(x, sigma, *inputs)
            applied = apply_loras(dit, uses)
            changes.append(denoiser.velocity(x, sigma, *inputs) - plain)
            applied.remove()
    return changes


@cache
def _opposites(clips: int) -> list[Sample]:
    return _samples(f"opposites {clips}", make_clips(clips))


# --- videos ---------------------------------------------------------------------------------------


def distances(device: torch.device, cases: int = 16, steps: int = 25) -> Iterator[dict[str, Any]]:
    """How far the latents on each base are from those of bf16 without a step cache, by norm."""
    expected: dict[Mode, Tensor] = {}
    for base in (FULL, *every_base()):
        toy = base.load(device)
        for name in ("none", *OFFERED):
            factory = OFFERED[name]().factory() if name in OFFERED else None
            found: dict[str, Any] = {"latents on": base.name, "step cache": name}
            for mode in toy.dits:
                latents = _latents(toy, mode, cases, steps, factory)
                whole = expected.setdefault(mode, latents)
                found[mode] = float((latents - whole).norm() / whole.norm())
            yield found


def computed_steps(device: torch.device, steps: int) -> dict[str, list[bool]]:
    """Which steps each step cache computes in the second section of a video."""
    toy, patterns = FULL.load(device), {}
    for name, kind in OFFERED.items():
        made: list[Any] = []

        def factory(sigmas: Tensor, kind: Any = kind, made: list[Any] = made) -> Any:
            made.append(kind().factory()(sigmas))
            return made[-1]

        _latents(toy, "framepack", 1, steps, factory)
        patterns[name] = list(made[1].computed)
    return patterns


@torch.no_grad()
def _latents(
    toy: Toy, mode: Mode, cases: int, steps: int, step_cache: StepCacheFactory | None
) -> Tensor:
    drawn = Cases.draw(cases, 20_000)
    guided = Guided(encode_prompts(toy, drawn.prompts), encode_embeds(toy, drawn.starts))
    config = SamplerConfig(steps, step_cache=step_cache)
    sample = unipc_sampler(FlowDenoiser(toy.dits[mode], toy.dtype), guided, config)
    plan = plan_video(mode, SECTIONS)
    return generate(plan, sample, encode_images(toy, drawn.starts), drawn.seeds)
