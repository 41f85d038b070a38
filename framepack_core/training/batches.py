"""Batches from cache files: which items a step sees is a function of (seed, step)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models.packing import Context
from ..models.prompt import TextCondition
from ..runtime.errors import FramePackError
from ..runtime.files import is_file
from ..weights.files import open_weights, read_header
from .cache import empty_path, text_path
from .cache_files import (
    END_INDEX,
    IMAGE,
    LATENTS,
    POOLED,
    TEXT,
    TEXT_MASK,
    end_path,
    load_cache,
    show_end,
)
from .config import TrainConfig, TrainMode
from .dataset import TrainingSet
from .rng import draw_seed
from .stale import UNKNOWN_MODELS, CacheModels, check_fresh
from .timesteps import LatentShape


@dataclass(frozen=True)
class Sample:
    """One section or picture of a clip on disk, and the captions that it can be shown with."""

    clip: Path
    latents: Path
    text: Path
    empty: Path
    batch_size: int = 1
    repeats: int = 1
    end: Path | None = None


@dataclass(frozen=True)
class Batch:
    """What one pass trains on; latents [B, C, T, h, w]; the context as a sampler would give it."""

    latents: Tensor
    text: TextCondition
    image_embeds: Tensor
    latent_indices: Tensor
    context: Context

    @property
    def shape(self) -> LatentShape:
        frames, height, width = self.latents.shape[2:]
        return frames, height, width

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device."""

        context = {
            name: None if value is None else value.to(device)
            for name, value in vars(self.context).items()
        }
        return Batch(
            self.latents.to(device),
            text_to(self.text, device),
            self.image_embeds.to(device),
            self.latent_indices.to(device),
            Context(**context),
        )


def text_to(text: TextCondition, device: torch.device | str) -> TextCondition:
    """A condition on a device."""
    mask = None if text.mask is None else text.mask.to(device)
    return TextCondition(text.text.to(device), text.pooled.to(device), mask)


def find_samples(
    found: TrainingSet, mode: TrainMode, models: CacheModels = UNKNOWN_MODELS
) -> list[Sample]:
    """The samples of a training set, all cached for `mode` as it is now.

    Raises FramePackError naming items whose caches are missing or stale, and what changed.
    """
    check_fresh(found, mode, models)
    samples = []
    for item in found.items:
        for path, caption in zip(item.paths, item.captions, strict=True):
            sample = Sample(
                item.source.path,
                path,
                text_path(item, caption),
                empty_path(item),
                item.dataset.batch_size,
                item.dataset.num_repeats,
                end_path(path) if is_file(end_path(path)) else None,
            )
            samples.append(sample)
    return samples


class Batches:
    """Batches by number: every epoch goes through all samples, in an order of its own."""

    def __init__(self, samples: Sequence[Sample], seed: int = 0) -> None:
        if not samples:
            raise FramePackError("data set: there is nothing to train on")
        self.samples, self.seed = list(samples), seed
        self._groups: dict[tuple[Any, ...], list[Sample]] = {}
        for sample in self.samples:
            self._groups.setdefault(_group(sample), []).extend([sample] * sample.repeats)
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def __len__(self) -> int:
        """Batches an epoch."""
        return sum(-(-len(group) // group[0].batch_size) for group in self._groups.values())

    def largest(self) -> int:
        """The number of a batch that is as large as any."""
        sizes = {
            sample.latents: sum(prod(s) for name, s in shapes if name.startswith(LATENTS))
            for (_, *shapes), group in self._groups.items()
            for sample in group
        }

        def size(number: int) -> int:
            return sum(sizes[sample.latents] for sample in self.pick(number))

        return max(range(len(self)), key=size)

    def pick(self, number: int) -> list[Sample]:
        """The samples of the number-th batch, 0 first; an epoch is len(self) of them."""
        epoch, place = divmod(number, len(self))
        return self._order(epoch)[place]

    def load(self, number: int, dropped: Sequence[bool] = (), ended: Sequence[bool] = ()) -> Batch:
        """The number-th batch.

        Where `dropped` says so a sample's caption is the empty one, where `ended` does it sees the
        end frame, if it can. In F1, where that makes the context longer, all do as the first.
        """
        samples = self.pick(number)
        none = [False] * len(samples)
        if ended and _lengthened(samples[0]):
            ended = [ended[0]] * len(samples)
        each = zip(samples, dropped or none, ended or none, strict=True)
        return collate([_load(*sample) for sample in each])

    def _shuffled(self, epoch: int) -> list[list[Sample]]:
        shuffle = random.Random(draw_seed("epoch", self.seed, epoch)).shuffle
        batches = []
        for group in self._groups.values():
            samples = list(group)
            shuffle(samples)
            size = group[0].batch_size
            batches += [samples[i : i + size] for i in range(0, len(samples), size)]
        shuffle(batches)
        return batches


def _group(sample: Sample) -> tuple[Any, ...]:
    """What samples of one batch have in common: their data set, names and shapes of tensors."""
    tensors = read_header(sample.latents).tensors
    shapes = sorted((name, info.shape) for name, info in tensors.items())
    return ((sample.latents.parent, _lengthened(sample)), *shapes)


def _lengthened(sample: Sample) -> bool:
    """Whether the end frame comes to what a sample sees, instead of in a blank frame's place."""
    return sample.end is not None and END_INDEX in read_header(sample.end).tensors


def _load(sample: Sample, dropped: bool, ended: bool) -> dict[str, Tensor]:
    tensors = load_cache(sample.latents)
    if ended and sample.end is not None:
        tensors = show_end(tensors, open_weights(sample.end))
    return {**tensors, **_load_text(sample.empty if dropped else sample.text)}


def _load_text(path: Path) -> dict[str, Tensor]:
    if not is_file(path):
        raise FramePackError(f"{path} is not there: cache the captions of this data set again")
    return load_cache(path)


def collate(samples: Sequence[Mapping[str, Tensor]]) -> Batch:
    """One batch of cached tensors that have the same shapes."""
    stacked = {name: torch.stack([s[name] for s in samples]) for name in samples[0]}
    return Batch(
        stacked["latents"],
        _text(stacked[TEXT], stacked[POOLED], stacked[TEXT_MASK].bool()),
        stacked[IMAGE],
        stacked["latent_indices"],
        batch_context(stacked),
    )


def _text(text: Tensor, pooled: Tensor, mask: Tensor) -> TextCondition:
    """Words cut to the longest prompt; a mask stays only where lengths differ."""
    lengths = mask.sum(1)
    longest = int(lengths.max())
    ragged = bool((lengths != longest).any())
    return TextCondition(text[:, :longest], pooled, mask[:, :longest] if ragged else None)


def batch_context(tensors: Mapping[str, Tensor]) -> Context:
    """The context of cached tensors [B, ...]; coarse latents that are not stored are blank."""
    clean = tensors["latents_clean"]
    context = Context(clean, tensors["clean_latent_indices"])
    for rate in ("2x", "4x"):
        indices = tensors.get(f"clean_latent_{rate}_indices")
        if indices is None:
            continue
        latents = tensors.get(f"latents_clean_{rate}")
        if latents is None:
            latents = clean.new_zeros(*clean.shape[:2], indices.shape[1], *clean.shape[3:])
        context = replace(context, **{f"clean_{rate}": latents, f"clean_{rate}_indices": indices})
    return context


def open_batches(
    found: TrainingSet, config: TrainConfig, models: CacheModels = UNKNOWN_MODELS
) -> tuple[Batches, Batches | None]:
    """What a run trains on, and what it is validated on, if anything is; all must be cached.

    models: the encoders that the run knows, so that caches of others are noticed.
    """
    samples, held = find_samples(found, config.mode, models), []
    if config.validation_clips:
        samples, held = split_validation(samples, config.validation_clips)
    return Batches(samples, config.seed), Batches(held) if held else None


def split_validation(samples: Sequence[Sample], clips: int) -> tuple[list[Sample], list[Sample]]:
    """(training, held out) samples; held out is all of the last `clips` clips."""
    names = list(dict.fromkeys(sample.clip for sample in samples))
    if clips >= len(names):
        raise FramePackError(
            f"validation_clips: {clips} of {len(names)} clips would leave nothing to train on; "
            "hold fewer out"
        )
    held = set(names[len(names) - clips :])
    return (
        [sample for sample in samples if sample.clip not in held],
        [sample for sample in samples if sample.clip in held],
    )
