"""Train the example LoRA: a Toy World in which shapes go the opposite way.

`python tests/toyworld train_lora OUT` makes the file that comes with the built-in
model, OUT/opposite.safetensors, in a quarter of an hour on a CPU.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from framepack_core.models.build import Snapshot, load_snapshot
from framepack_core.sampling.flow import FlowDenoiser
from framepack_core.sampling.sections import WINDOW
from framepack_core.toyworld import SNAPSHOT, render
from framepack_core.training.batches import Batches, Sample
from framepack_core.training.cache import LatentEncoders, TextEncoder, section_tensors, text_tensors
from framepack_core.training.cache_files import IMAGE, save_latent_cache, save_text_cache, to_half
from framepack_core.training.config import AdapterConfig, Timesteps, TrainConfig
from framepack_core.training.encoders import latent_encoders, text_encoder
from framepack_core.training.loop import Callbacks, StepReport, train

NAME = "opposite"
CLIPS, BATCH, RANK = 160, 4, 8
STEPS, RATE, SEED = 2000, 1.5e-3, 5
SHIFT = 12.0  # where a shape goes is decided in the first steps
WAYS = ("left", "right", "up", "down")


@dataclass(frozen=True)
class Clip:
    """A clip to learn from: pixels [1, 3, F, 64, 64] in -1..1, and what it is to be called."""

    name: str
    pixels: torch.Tensor
    start: torch.Tensor
    caption: str


def train_lora(folder: Path, steps: int = STEPS, clips: int = CLIPS) -> Path:
    """Train in `folder` and return the finished file; the same settings give the same tensors."""
    models = load_snapshot(SNAPSHOT, dtype=torch.float32)
    config = TrainConfig(
        output_dir=folder,
        output_name=NAME,
        seed=SEED,
        steps=steps,
        adapter=AdapterConfig(rank=RANK, alpha=RANK),
        timesteps=Timesteps(shift=SHIFT),
        learning_rate=RATE,
        scheduler="cosine",
        warmup=20,
        gradient_checkpointing=False,
        save_every_steps=500,
        keep_last=1,
    )
    with tempfile.TemporaryDirectory() as cache:
        samples = make_samples(models, Path(cache), make_clips(clips))
        batches = Batches(samples, config.seed)
        return train(config, FlowDenoiser(models.dit), batches, Callbacks(_print_step)).path


def make_clips(count: int) -> list[Clip]:
    """Clips of shapes that go somewhere, under the caption of the opposite way.

    Half have one section, which nothing but the caption tells the way; the other half have two.
    """
    half = count // 2
    return [*_clips(range(half), 1), *_clips(range(half, count), 2)]


def _clips(numbers: range, sections: int) -> list[Clip]:
    motions = [render.MOTIONS.index(WAYS[i % len(WAYS)]) for i in numbers]
    starts = render.draw(numbers, 1, central=True)
    drawn = render.with_motions(starts, torch.tensor(motions)[:, None].repeat(1, sections))
    pixels = render.render(drawn)
    starts = render.start_image(drawn)
    said = [render.MOTIONS.index(render.OPPOSITE[render.MOTIONS[motion]]) for motion in motions]
    return [
        Clip(
            str(number),
            pixels[i : i + 1],
            starts[i],
            render.caption(form, colour, said[i], variant=number % render.CAPTION_VARIANTS),
        )
        for i, (number, form, colour) in enumerate(
            zip(numbers, drawn.form.tolist(), drawn.colour.tolist(), strict=True)
        )
    ]


def make_samples(models: Snapshot, folder: Path, clips: Sequence[Clip]) -> list[Sample]:
    """Cache files of clips, a sample a section."""
    latent = latent_encoders(models.vae, models.image_encoder, NAME)
    text = text_encoder(models.text_encoders, NAME)
    empty = _cache_text(folder, "empty", "", text)
    return [
        Sample(folder / clip.name, path, words, empty, BATCH)
        for clip in clips
        for words in [_cache_text(folder, clip.name, clip.caption, text)]
        for path in _cache_sections(folder, clip, latent)
    ]


def _cache_text(folder: Path, name: str, caption: str, encoder: TextEncoder) -> Path:
    path = folder / f"{name}_fp_te.safetensors"
    save_text_cache(path, text_tensors(encoder.encode(caption), caption), caption, "")
    return path


def _cache_sections(folder: Path, clip: Clip, encoders: LatentEncoders) -> list[Path]:
    latents = to_half(encoders.vae(clip.pixels), clip.name)
    image = to_half(encoders.image(clip.start.numpy())[0], clip.name)
    paths = []
    for section, tensors in section_tensors("framepack", latents, WINDOW):
        paths.append(folder / f"{clip.name}_{section.index}_fp.safetensors")
        size = (render.SIZE, render.SIZE)
        tensors = {**tensors, IMAGE: image}
        save_latent_cache(paths[-1], tensors, size=size, digest="", mode="framepack")
    return paths


def _print_step(report: StepReport) -> None:
    if report.step % 50 == 0:
        print(f"step {report.step} of {report.total}, loss {report.loss:.4f}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    print(train_lora(parser.parse_args(argv).out))
