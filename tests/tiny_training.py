"""A tiny run of training: made-up caches for the tiny DiT, alone or as a process of its own.

As a program: `tiny_training.py FOLDER STEPS KILL_AT [resume]` trains, and is killed at an update.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from torch import Tensor

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[1])]

from tiny import CONFIG, randn, tiny_dit

from framepack_core.models.prompt import TextCondition
from framepack_core.sampling.flow import FlowDenoiser
from framepack_core.sampling.plan import Mode
from framepack_core.training.batches import Batches, Sample
from framepack_core.training.cache import end_places, section_tensors, text_tensors
from framepack_core.training.cache_files import (
    end_path,
    save_end,
    save_latent_cache,
    save_text_cache,
)
from framepack_core.training.config import AdapterConfig, TrainConfig
from framepack_core.training.loop import Callbacks, StepReport, TrainResult, train

WINDOW, SIDE = 2, 4
IMAGE_TOKENS = 3


def make_samples(
    folder: Path,
    clips: int = 3,
    batch_size: int = 1,
    mode: Mode = "framepack",
    ends: bool = False,
) -> list[Sample]:
    """Two cached sections a clip, with captions of different lengths; ends: with end frames."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    empty = folder / "empty-caption_fp_te.safetensors"
    _save_text(empty, 1, seed=0)
    for clip in range(clips):
        text = folder / f"{clip}_fp_te.safetensors"
        _save_text(text, 3 + clip, seed=100 + clip)
        latents = randn(1, 16, 1 + 2 * WINDOW, SIDE, SIDE, seed=clip)
        image = randn(IMAGE_TOKENS, CONFIG.image_proj_dim, seed=200 + clip)
        places = dict(end_places(mode, 2, WINDOW))
        for section, tensors in section_tensors(mode, latents.half(), WINDOW):
            path = folder / f"{clip}_00000-017-{section.index:04d}_0032x0032_fp.safetensors"
            save_latent_cache(
                path,
                {**tensors, "image_embeddings": image.half()},
                size=(32, 32),
                digest="",
                mode=mode,
                frame_count=17,
            )
            if ends:
                save_end(path, latents[0, :, -1:].half(), places[section.index], "")
            end = end_path(path) if ends else None
            samples.append(Sample(folder / str(clip), path, text, empty, batch_size, end=end))
    return samples


def _save_text(path: Path, words: int, seed: int) -> None:
    condition = TextCondition(
        randn(1, words, CONFIG.text_embed_dim, seed=seed),
        randn(1, CONFIG.pooled_projection_dim, seed=seed + 1),
    )
    save_text_cache(path, text_tensors(condition, "test"), f"{words} words", "")


def tiny_config(folder: Path, **settings: object) -> TrainConfig:
    """Every kind of draw is in use."""
    values = {
        "output_dir": folder,
        "output_name": "tiny",
        "steps": 4,
        "learning_rate": 1e-2,
        "scheduler": "cosine",
        "warmup": 2,
        "adapter": AdapterConfig(rank=2, alpha=2, dropout=0.1, rank_dropout=0.1),
        "caption_dropout": 0.3,
        "save_every_steps": None,
        **settings,
    }
    return TrainConfig(**values)


def run(
    config: TrainConfig, samples: list[Sample], callbacks: Callbacks | None = None
) -> TrainResult:
    batches = Batches(samples, config.seed)
    return train(config, FlowDenoiser(tiny_dit()), batches, callbacks or Callbacks())


def state_of(config: TrainConfig) -> dict[str, Tensor]:
    return torch.load(config.state_path, weights_only=True)


def main(folder: Path, steps: int, kill_at: int, *resume: str) -> None:
    torch.set_num_threads(1)

    def on_step(report: StepReport) -> None:
        if report.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    config = tiny_config(folder / "out", steps=steps, save_every_steps=8, resume=bool(resume))
    run(config, make_samples(folder / "cache"), Callbacks(on_step))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
