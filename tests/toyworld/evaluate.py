"""What the toy models can do, measured by tracking the shape in videos made by the pipeline itself.

`python tests/toyworld evaluate` prints one table: each line a measure, its bar, and
whether it is met. Clips are drawn from seeds that no training has used.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from einops import rearrange
from torch import Tensor

from framepack_core.models.build import load_dit, load_snapshot
from framepack_core.models.dit import FramePackDiT
from framepack_core.models.image import ImageEncoder
from framepack_core.models.products import PRODUCTS
from framepack_core.models.prompt import TextCondition, fit_length
from framepack_core.models.text import TextEncoders
from framepack_core.models.vae import AutoencoderKL
from framepack_core.runtime.device import default_device, parse_device
from framepack_core.sampling.decode import decode_sections
from framepack_core.sampling.flow import FlowDenoiser, Guided
from framepack_core.sampling.generate import SamplerConfig, SampleSection, generate, unipc_sampler
from framepack_core.sampling.plan import Mode, Plan
from framepack_core.sampling.sections import WINDOW, plan_video
from framepack_core.sampling.step_cache import StepCacheFactory
from framepack_core.toyworld import SNAPSHOT, render
from framepack_core.weights.layouts import F1_FOLDER, FOLDERS
from framepack_core.weights.precisions import Precision
from framepack_core.weights.quantised_linear import QuantisedLinear

from .tracker import Track, motion, track

LONG = 6  # sections of the long runs
END_ERROR = 0.05 * render.SIZE  # pixels
NEAR_JOIN = 9  # frames on both sides of a join that count as its neighbourhood


@dataclass(frozen=True)
class Toy:
    """The models of a snapshot on one device."""

    dits: Mapping[Mode, FramePackDiT]
    vae: AutoencoderKL
    text_encoders: TextEncoders
    image_encoder: ImageEncoder
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def load(
        cls,
        snapshot: Path,
        device: torch.device,
        precision: Precision = "auto",
        quantized_matmul: bool = False,
    ) -> Toy:
        """quantized_matmul: multiply by quantised weights in their own numbers, faster or not."""
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        loaded = load_snapshot(snapshot, dtype=dtype, device=device)
        folders: dict[Mode, str] = {"framepack": FOLDERS["dit"], "f1": F1_FOLDER}
        dits = {
            mode: load_dit(snapshot / folder, dtype=dtype, device=device, precision=precision)
            for mode, folder in folders.items()
        }
        for dit in dits.values() if quantized_matmul else ():
            for layer in dit.modules():
                if isinstance(layer, QuantisedLinear):
                    layer.product = next((p for p in PRODUCTS if p.takes(layer)), None)
        return cls(dits, loaded.vae, loaded.text_encoders, loaded.image_encoder, device, dtype)

    def make_videos(
        self,
        mode: Mode,
        starts: Tensor,
        prompts: Sequence[str],
        sections: int,
        seeds: Sequence[int],
        *,
        steps: int = 25,
        ends: Tensor | None = None,
    ) -> Video:
        """Videos of start images uint8 [B, 64, 64, 3], one prompt each; ends: end images alike."""
        plan = plan_video(mode, sections)
        if ends is not None:
            plan = plan.with_end(ends)
        return make_planned(self, plan, starts, prompts, seeds, steps=steps)


@dataclass(frozen=True)
class Measure:
    """One line of the table; the value has to be at least, or at most, the bar."""

    name: str
    value: float
    bar: float
    at_most: bool = False
    percent: bool = True

    @property
    def met(self) -> bool:
        return self.value <= self.bar if self.at_most else self.value >= self.bar

    def __str__(self) -> str:
        form = "{:6.1%}" if self.percent else "{:6.2f}"
        value, bar = form.format(self.value), form.format(self.bar).strip()
        sign = "<=" if self.at_most else ">="
        return f"{'ok  ' if self.met else 'MISS'}  {value}  {sign} {bar:<7} {self.name}"


@dataclass(frozen=True)
class Video:
    """Generated clips: pixels [B, 3, F, 64, 64] in -1..1 and what the tracker sees in them."""

    pixels: Tensor
    track: Track

    @property
    def sections(self) -> int:
        return (self.pixels.shape[2] - 1) // render.SECTION_FRAMES


@torch.no_grad()
def make_planned(
    toy: Toy,
    plan: Plan,
    starts: Tensor,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 25,
    step_cache: StepCacheFactory | None = None,
) -> Video:
    """Videos of a plan whose handles hold one of each case, as `starts` and `prompts` do."""
    latents = make_latents(toy, plan, starts, prompts, seeds, steps, step_cache)

    def decode(chunk: Tensor) -> Tensor:
        return toy.vae.decode(chunk.to(toy.dtype)).float()

    pixels = torch.cat(list(decode_sections(decode, latents, WINDOW)), dim=2).clamp(-1, 1)
    return Video(pixels, track(pixels))


@torch.no_grad()
def make_latents(
    toy: Toy,
    plan: Plan,
    starts: Tensor,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    step_cache: StepCacheFactory | None = None,
) -> Tensor:
    """The latents [B, 16, 1 + n W, 8, 8] of `make_planned`."""
    sample = sampler(toy, plan.mode, starts, prompts, steps, step_cache)
    encode = {"image": encode_images, "image_embeds": encode_embeds, "prompt": encode_prompts}
    plan = plan.encoded(**{name: partial(function, toy) for name, function in encode.items()})
    return generate(plan, sample, encode_images(toy, starts), list(seeds))


def sampler(
    toy: Toy,
    mode: Mode,
    seen: Tensor,
    prompts: Sequence[str],
    steps: int,
    step_cache: StepCacheFactory | None = None,
) -> SampleSection:
    """Sections for the prompts, the image encoder seeing pictures uint8 [B, 64, 64, 3]."""
    guided = Guided(encode_prompts(toy, prompts), encode_embeds(toy, seen))
    config = SamplerConfig(steps, step_cache=step_cache)
    return unipc_sampler(FlowDenoiser(toy.dits[mode], toy.dtype), guided, config)


def encode_prompts(toy: Toy, prompts: Sequence[str]) -> TextCondition:
    """Prompts as one masked batch."""
    return join_texts([toy.text_encoders.encode(prompt) for prompt in prompts], toy)


def encode_embeds(toy: Toy, images: Tensor) -> Tensor:
    """What the image encoder says [B, N, C] of pictures uint8 [B, 64, 64, 3]."""
    embeds = [toy.image_encoder.encode(image.numpy()) for image in images]
    return torch.cat(embeds).to(toy.device, toy.dtype)


def encode_images(toy: Toy, images: Tensor) -> Tensor:
    """Latents [B, 16, 1, 8, 8] of pictures uint8 [B, 64, 64, 3], each encoded alone."""
    pixels = rearrange(images.to(toy.device), "b h w c -> b c 1 h w").float() / 127.5 - 1
    return toy.vae.encode(pixels.to(toy.dtype)).float()


def join_texts(conditions: Sequence[TextCondition], toy: Toy) -> TextCondition:
    """Prompts of any length as one masked batch."""
    longest = max(c.text.shape[1] for c in conditions)
    fitted = [fit_length(c.text, longest) for c in conditions]
    text, mask = (torch.cat(parts) for parts in zip(*fitted, strict=True))
    pooled = torch.cat([c.pooled for c in conditions])
    return TextCondition(text.to(toy.dtype), pooled.to(toy.dtype), mask)


# Measures


def evaluate(
    toy: Toy, cases: int, modes: Sequence[Mode] = get_args(Mode), steps: int = 25
) -> Iterator[Measure]:
    """All measures, each over at least `cases` cases (a multiple of 16 spreads them evenly)."""
    yield Measure("VAE: PSNR in dB, 73 frames", vae_psnr(toy, cases), 34, percent=False)
    for mode in modes:
        yield from motion_measures(toy, mode, cases, steps)
        yield from long_measures(toy, mode, cases, steps)
        if mode == "framepack":
            for sections in (1, 2):
                yield end_measure(toy, mode, cases, steps, sections)


@torch.no_grad()
def vae_psnr(toy: Toy, cases: int, sections: int = 2) -> float:
    """Mean PSNR of held-out clips, in dB."""
    seeds = range(render.HELD_OUT, render.HELD_OUT + cases)
    values = []
    for rows in torch.arange(cases).split(8):
        clips = render.draw([seeds[i] for i in rows.tolist()], sections, "changing")
        pixels = render.render(clips, device=toy.device)
        decoded = toy.vae.decode(toy.vae.encode(pixels.to(toy.dtype))).float().clamp(-1, 1)
        error = (decoded - pixels).square().flatten(1).mean(1) / 4
        values.append(-10 * error.log10())
    return torch.cat(values).mean().item()


@dataclass(frozen=True)
class Cases:
    """Held-out start images near the middle, each with a motion that its prompt asks for."""

    clips: render.Clips
    motions: tuple[str, ...]

    @classmethod
    def draw(cls, count: int, offset: int, motions: Sequence[str] = render.MOTIONS) -> Cases:
        first = render.HELD_OUT + offset
        clips = render.draw(range(first, first + count), 1, central=True)
        return cls(clips, tuple(motions[i % len(motions)] for i in range(count)))

    @property
    def prompts(self) -> list[str]:
        """Every caption variant in turn."""
        return [
            render.caption(
                form, colour, render.MOTIONS.index(name), variant=i % render.CAPTION_VARIANTS
            )
            for i, (form, colour, name) in enumerate(
                zip(self.clips.form.tolist(), self.clips.colour.tolist(), self.motions, strict=True)
            )
        ]

    @property
    def starts(self) -> Tensor:
        return render.start_image(self.clips)

    @property
    def seeds(self) -> list[int]:
        return [seed % 2**31 for seed in self.clips.seeds]

    def opposites(self) -> Cases:
        """The same start images with the opposite prompts."""
        return replace(self, motions=tuple(render.OPPOSITE[name] for name in self.motions))


def motion_measures(toy: Toy, mode: Mode, cases: int, steps: int) -> Iterator[Measure]:
    """How well short videos follow their prompts."""
    for sections in (1, 2):
        drawn = Cases.draw(cases, 10_000 * sections)
        video = _run(toy, mode, drawn, sections, steps)
        yield Measure(
            f"{mode}: motion follows the prompt, {sections} section(s)",
            share(a == b for a, b in zip(motion(video.track), drawn.motions, strict=True)),
            0.95,
        )
        if sections == 1:
            yield Measure(f"{mode}: colour and form kept after 1 section", kept(video, drawn), 0.95)
    forth = Cases.draw(cases, 30_000, tuple(render.OPPOSITE))
    back = forth.opposites()
    seen = [motion(_run(toy, mode, case, 1, steps).track) for case in (forth, back)]
    flipped = zip(seen[0], seen[1], forth.motions, back.motions, strict=True)
    yield Measure(
        f"{mode}: the opposite prompt flips the motion",
        share((a, b) == (c, d) for a, b, c, d in flipped),
        0.95,
    )


def long_measures(toy: Toy, mode: Mode, cases: int, steps: int) -> Iterator[Measure]:
    """What is left of the start image at the end of a long video, and the joins in it."""
    drawn = Cases.draw(cases, 40_000)
    video = _run(toy, mode, drawn, LONG, steps)
    name = f"{mode}: colour and form kept after {LONG} sections"
    yield Measure(name, kept(video, drawn), 0.90)
    first, last = (_drift(video, section) for section in (1, LONG))
    yield Measure(
        f"{mode}: colour drift after {LONG} sections ({last:.4f}) over that after 1 ({first:.4f})",
        last / max(first, 1e-6),
        2.0,
        at_most=True,
        percent=False,
    )
    yield Measure(
        f"{mode}: jump at a join over an ordinary step",
        join_ratio(video),
        1.5,
        at_most=True,
        percent=False,
    )


def end_measure(
    toy: Toy, mode: Mode, cases: int, steps: int, sections: int, *, shown: bool = True
) -> Measure:
    """How often a shape that travels ends where the end image has it, be it shown or not."""
    first = render.HELD_OUT + 50_000 * sections
    clips = render.draw(range(first, first + cases), sections, "travel")
    prompts = [texts[0] for texts in render.captions(clips)]
    seeds = [seed % 2**31 for seed in clips.seeds]
    starts, ends = render.start_image(clips), render.end_image(clips)
    options = {"steps": steps, "ends": ends if shown else None}
    video = toy.make_videos(mode, starts, prompts, sections, seeds, **options)
    goal = clips.track[:, -1, :2].to(video.pixels)
    error = (video.track.position[:, -1] - goal).norm(dim=-1)
    found = (error <= END_ERROR) & video.track.present[:, -1]
    name = f"{mode}: last frame within 5 % of the given end frame, {sections} section(s)"
    return Measure(name, found.float().mean().item(), 0.90)


def _run(toy: Toy, mode: Mode, cases: Cases, sections: int, steps: int) -> Video:
    return toy.make_videos(mode, cases.starts, cases.prompts, sections, cases.seeds, steps=steps)


def kept(video: Video, cases: Cases) -> float:
    """Share of clips whose last frame shows the right colour and form."""
    last = video.track[-1]
    device = last.form.device
    right = last.present & (last.form == cases.clips.form.to(device))
    right &= last.colour_index == cases.clips.colour.to(device)
    return right.float().mean().item()


def _drift(video: Video, section: int) -> float:
    """Mean distance in RGB between the shape's colour at the end of a section and at the start."""
    colour = video.track.colour
    frame = section * render.SECTION_FRAMES
    return (colour[:, frame] - colour[:, 0]).norm(dim=-1).mean().item()


def join_ratio(video: Video) -> float:
    """Mean step over the joins, over the mean step of the frames around them; in x, y, radius."""
    state = torch.cat((video.track.position, video.track.radius[..., None]), dim=-1)
    steps = (state[:, 1:] - state[:, :-1]).norm(dim=-1)
    joins = [section * render.SECTION_FRAMES for section in range(1, video.sections)]
    near = sorted({j + d for j in joins for d in range(-NEAR_JOIN, NEAR_JOIN + 1)} - set(joins))
    ordinary = steps[:, [i for i in near if i < steps.shape[1]]].mean()
    return (steps[:, joins].mean() / ordinary.clamp(min=1e-6)).item()


def share(flags: Iterator[bool]) -> float:
    values = list(flags)
    return sum(values) / len(values)


Evaluation = Callable[[Toy, int, Sequence[Mode], int], Iterator[Measure]]
"""Measures of a snapshot by cases, modes and steps."""


def main(argv: Sequence[str] | None = None, evaluation: Evaluation = evaluate) -> None:
    """Print an evaluation's table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=64)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--snapshot", type=Path, default=SNAPSHOT)
    parser.add_argument("--modes", nargs="+", choices=get_args(Mode), default=get_args(Mode))
    parser.add_argument("--device", type=str)
    parser.add_argument("--precision", choices=get_args(Precision), default="auto")
    parser.add_argument("--quantized_matmul", action="store_true", help="no weight is dequantised")
    args = parser.parse_args(argv)
    device = parse_device(args.device) if args.device else default_device()
    toy = Toy.load(args.snapshot, device, args.precision, args.quantized_matmul)
    about = f"{args.snapshot.name}, {args.precision}, {args.cases} held-out cases each"
    print(f"{about}, {args.steps} steps, {device}")
    for measure in evaluation(toy, args.cases, args.modes, args.steps):
        print(measure, flush=True)
