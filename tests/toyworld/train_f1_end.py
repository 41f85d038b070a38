"""Train the LoRA that shows Toy World F1 where a video is to end.

`python tests/toyworld train_f1_end OUT` makes the file that comes with the built-in model,
OUT/f1_end.safetensors, in a few minutes on a GPU.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from framepack_core.runtime.device import default_device, parse_device
from framepack_core.sampling.flow import FlowDenoiser
from framepack_core.toyworld import SNAPSHOT, render
from framepack_core.training.batches import Batches
from framepack_core.training.config import AdapterConfig, Timesteps, TrainConfig
from framepack_core.training.loop import Callbacks, train

from .evaluate import Toy
from .train_lora import Clip, encoders_of, make_samples, print_step

NAME = "f1_end"
BATCH, RANK = 32, 16
# F1 is close to it already: what is trained longer or faster drifts in colour, up to 3.6 times.
STEPS, RATE, SEED = 400, 3e-4, 6
SHIFT = 5.0  # where a shape goes is decided early, where it stops in the middle
END_SHARE = 0.5  # of batches; the others are as without an end image
TOGETHER = 32  # clips in memory at once
FIRST = 700_000_000  # seed of the first clip
Count = Mapping[tuple[render.Kind, int], int]
"""How many clips of each kind and number of sections."""
CLIPS: Count = {
    ("travel", 1): 768,
    ("travel", 2): 512,
    ("travel", 3): 256,
    ("travel", 4): 256,
    ("steady", 2): 256,
    ("steady", 4): 128,
    ("changing", 3): 128,
}


def train_f1_end(
    folder: Path, device: torch.device, steps: int = STEPS, clips: Count = CLIPS
) -> Path:
    """Train in `folder` and return the finished file."""
    toy = Toy.load(SNAPSHOT, device)
    config = TrainConfig(
        output_dir=folder,
        output_name=NAME,
        mode="f1",
        seed=SEED,
        steps=steps,
        adapter=AdapterConfig(rank=RANK, alpha=RANK),
        timesteps=Timesteps(shift=SHIFT),
        learning_rate=RATE,
        scheduler="cosine",
        warmup=20,
        end_frame_prob=END_SHARE,
        gradient_checkpointing=False,
        save_every_steps=None,
    )
    with tempfile.TemporaryDirectory() as cache:
        encoders, drawn = encoders_of(toy), make_clips(clips)
        samples = list(make_samples(encoders, Path(cache), drawn, BATCH, "f1", ends=True))
        denoiser = FlowDenoiser(toy.dits["f1"], toy.dtype)
        batches = Batches(samples, config.seed)
        return train(config, denoiser, batches, Callbacks(print_step), device=device).path


def make_clips(counts: Count) -> Iterator[Clip]:
    """Clips that travel to a place, and clips of the motions that F1 knows, in every wording."""
    seed = FIRST
    for (kind, sections), count in counts.items():
        seeds = range(seed, seed + count)
        seed += count
        for first in range(0, len(seeds), TOGETHER):
            clips = render.draw(seeds[first : first + TOGETHER], sections, kind)
            yield from _clips(clips)


def _clips(clips: render.Clips) -> Iterator[Clip]:
    pixels, starts = render.render(clips), render.start_image(clips)
    wordings = [
        render.captions(clips, variant=variant, then=True)
        for variant in range(render.CAPTION_VARIANTS)
    ]
    for i, seed in enumerate(clips.seeds):
        captions = wordings[seed % render.CAPTION_VARIANTS][i]
        yield Clip(str(seed), pixels[i : i + 1], starts[i], captions)


def main(argv: Sequence[str] | None = None) -> None:
    """Make the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", type=str)
    args = parser.parse_args(argv)
    device = parse_device(args.device) if args.device else default_device()
    print(train_f1_end(args.out, device))
