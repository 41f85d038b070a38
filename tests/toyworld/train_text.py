"""Train the LoRA with which Toy World makes a video of a prompt alone.

`python tests/toyworld train_text OUT` makes the file that comes with the built-in model,
OUT/text.safetensors, in two minutes on a GPU.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from framepack_core.runtime.device import default_device, parse_device
from framepack_core.runtime.images import NOISE, made_picture
from framepack_core.sampling.flow import FlowDenoiser
from framepack_core.toyworld import SNAPSHOT, render
from framepack_core.training.batches import Batches
from framepack_core.training.config import AdapterConfig, Timesteps, TrainConfig
from framepack_core.training.loop import Callbacks, train

from .evaluate import Toy
from .train_lora import Clip, encoders_of, make_samples, print_step

NAME = "text"
CLIPS, BATCH, RANK = 640, 64, 16
STEPS, RATE, SEED = 1000, 1.5e-3, 5
SHIFT = 8.0  # what is drawn, and where, is decided early
TOGETHER = 40  # clips in memory at once


def train_text(
    folder: Path, device: torch.device, steps: int = STEPS, clips: int = CLIPS, batch: int = BATCH
) -> Path:
    """Train in `folder` and return the finished file."""
    toy = Toy.load(SNAPSHOT, device)
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
    )
    with tempfile.TemporaryDirectory() as cache:
        samples = list(make_samples(encoders_of(toy), Path(cache), make_clips(clips), batch))
        denoiser = FlowDenoiser(toy.dits["framepack"], toy.dtype)
        batches = Batches(samples, config.seed)
        train(config, denoiser, batches, Callbacks(print_step), device=device)
    return config.adapter_path


def make_clips(count: int) -> Iterator[Clip]:
    """Clips whose first frame is a picture that shows nothing; half have one section, half two.

    That is the clip's own background, or for a quarter noise, behind which the background comes.
    """
    for numbers, sections in ((range(count // 2), 1), (range(count // 2, count), 2)):
        for first in range(0, len(numbers), TOGETHER):
            yield from _clips(numbers[first : first + TOGETHER], sections)


def _clips(seeds: Sequence[int], sections: int) -> Iterator[Clip]:
    motions = torch.tensor([seed % len(render.MOTIONS) for seed in seeds])
    clips = render.draw(seeds, 1, central=True)
    clips = render.with_motions(clips, motions[:, None].repeat(1, sections))
    pixels, starts = render.render(clips), _empty(clips)
    for i, seed in enumerate(seeds):
        if seed % 4 == 3:
            noise = made_picture(NOISE, (render.SIZE, render.SIZE), seed, "start")
            starts[i] = torch.from_numpy(noise)
    pixels[:, :, 0] = rearrange(starts, "b h w c -> b c h w").float() / 127.5 - 1
    drawn = zip(seeds, clips.form.tolist(), clips.colour.tolist(), motions.tolist(), strict=True)
    for i, (seed, form, colour, motion) in enumerate(drawn):
        variant = random.Random(seed).randrange(render.CAPTION_VARIANTS)
        words = render.caption(form, colour, motion, variant=variant)
        yield Clip(str(seed), pixels[i : i + 1], starts[i], [words] * sections)


def _empty(clips: render.Clips) -> Tensor:
    """The background of each clip alone, uint8 [B, 64, 64, 3]."""
    away = torch.tensor([-float(render.SIZE), -float(render.SIZE), 1.0], dtype=clips.track.dtype)
    return render.start_image(replace(clips, track=away.expand(len(clips), 1, 3)))


def main(argv: Sequence[str] | None = None) -> None:
    """Make the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", type=str)
    args = parser.parse_args(argv)
    device = parse_device(args.device) if args.device else default_device()
    print(train_text(args.out, device))
