"""Train the example LoRA: a Toy World in which shapes go the opposite way.

`python tests/toyworld train_lora OUT` makes the file that comes with the built-in
model, OUT/opposite.safetensors, in a quarter of an hour on a CPU.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from framepack_core.models.build import Snapshot, load_snapshot
from framepack_core.sampling.flow import FlowDenoiser
from framepack_core.sampling.plan import Mode
from framepack_core.sampling.sections import WINDOW
from framepack_core.toyworld import SNAPSHOT, render
from framepack_core.training.batches import Batches, Sample
from framepack_core.training.cache import (
    LatentEncoders,
    TextEncoder,
    end_places,
    section_tensors,
    text_tensors,
)
from framepack_core.training.cache_files import (
    IMAGE,
    end_path,
    save_end,
    save_latent_cache,
    save_text_cache,
    to_half,
)
from framepack_core.training.config import AdapterConfig, Timesteps, TrainConfig
from framepack_core.training.encoders import latent_encoders, text_encoder
from framepack_core.training.loop import Callbacks, StepReport, train

from .evaluate import Toy

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
    captions: Sequence[str]  # of its sections


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
        samples = list(make_samples(encoders_of(models), Path(cache), make_clips(clips), BATCH))
        batches = Batches(samples, config.seed)
        return train(config, FlowDenoiser(models.dit), batches, Callbacks(print_step)).path


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
            [render.caption(form, colour, said[i], variant=number % render.CAPTION_VARIANTS)]
            * sections,
        )
        for i, (number, form, colour) in enumerate(
            zip(numbers, drawn.form.tolist(), drawn.colour.tolist(), strict=True)
        )
    ]


@dataclass(frozen=True)
class Encoders:
    """What encodes clips and captions."""

    latent: LatentEncoders
    text: TextEncoder


def encoders_of(models: Snapshot | Toy) -> Encoders:
    """Those of loaded models."""
    return Encoders(
        latent_encoders(models.vae, models.image_encoder, NAME),
        text_encoder(models.text_encoders, NAME),
    )


def make_samples(
    encoders: Encoders,
    folder: Path,
    clips: Iterable[Clip],
    batch: int,
    mode: Mode = "framepack",
    *,
    ends: bool = False,
) -> Iterator[Sample]:
    """Cache files of clips, a sample a section; ends: also each clip's last frame."""
    texts = {"": _cache_text(folder, 0, "", encoders.text)}
    for clip in clips:
        for caption in clip.captions:
            if caption not in texts:
                texts[caption] = _cache_text(folder, len(texts), caption, encoders.text)
        paths = _cache_sections(folder, clip, encoders.latent, mode, ends)
        for path, caption in zip(paths, clip.captions, strict=True):
            end = end_path(path) if ends else None
            text, empty = texts[caption], texts[""]
            yield Sample(folder / clip.name, path, text, empty, batch, end=end)


def _cache_text(folder: Path, number: int, caption: str, encoder: TextEncoder) -> Path:
    path = folder / f"caption{number}_fp_te.safetensors"
    save_text_cache(path, text_tensors(encoder.encode(caption), caption), caption, "")
    return path


def _cache_sections(
    folder: Path, clip: Clip, encoders: LatentEncoders, mode: Mode, ends: bool
) -> list[Path]:
    latents = to_half(encoders.vae(clip.pixels), clip.name)
    image = to_half(encoders.image(clip.start.numpy())[0], clip.name)
    paths = {}
    for section, tensors in section_tensors(mode, latents, WINDOW):
        path = folder / f"{clip.name}_{section.index}_fp.safetensors"
        size = (render.SIZE, render.SIZE)
        save_latent_cache(path, {**tensors, IMAGE: image}, size=size, digest="", mode=mode)
        paths[section.index] = path
    if ends:
        end = to_half(encoders.vae(clip.pixels[:, :, -1:])[0], clip.name)
        for index, place in end_places(mode, len(paths), WINDOW):
            save_end(paths[index], end, place, "")
    return [paths[index] for index in sorted(paths)]


def print_step(report: StepReport) -> None:
    """The loss, now and then."""
    if report.step % 50 == 0:
        print(f"step {report.step} of {report.total}, loss {report.loss:.4f}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    print(train_lora(parser.parse_args(argv).out))
