"""The models of caching and training: encoders loaded when they are needed, the base model."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ..runtime.errors import FramePackError
from ..toyworld.render import SIZE as TOY_SIZE
from ..training.cache import LatentEncoders, TextEncoder
from ..training.dataset import TrainingSet
from ..training.dataset_config import DataOptions
from ..training.encoders import (
    latent_encoders,
    latent_identity,
    loaded_late,
    model_identity,
    text_encoder,
    text_identity,
    text_loaded_late,
)
from ..training.stale import CacheModels
from ..weights.layouts import Component, find_component
from .models import Models
from .options import Fp8Options, ModelOptions
from .training_options import CacheJob, TrainJob

NEEDED: dict[str, tuple[Component, ...]] = {
    "latents": ("vae", "image_encoder"),
    "text": ("llama", "clip"),
}
ENCODERS = tuple(component for needed in NEEDED.values() for component in needed)


def open_dataset(data: DataOptions, models: ModelOptions) -> TrainingSet:
    """The data set, with the options' values for what it does not say."""
    small = {"resolution": TOY_SIZE} if models.uses_toyworld else {}
    return TrainingSet.load(data.path, {**small, **data.defaults()})


def cache_models(job: CacheJob, kinds: list[str]) -> Models:
    """What encodes latents, text or both."""
    return _models(job, [c for kind in kinds for c in NEEDED[kind]], Fp8Options())


def train_models(job: TrainJob, samples: bool) -> Models:
    """The base model, and what encodes and decodes samples."""
    return _models(
        job,
        ["dit", *(ENCODERS if samples else ())],
        job.fp8,
        dtype=job.dtype,
        lora_weight=list(map(str, job.base.base_weights)),
        lora_multiplier=list(job.base.base_weights_multiplier),
    )


def _models(
    job: CacheJob | TrainJob, needed: list[Component], fp8: Fp8Options, **more: Any
) -> Models:
    groups = (job.models, job.decoding, fp8)
    values = {name: value for group in groups for name, value in group.model_dump().items()}
    return Models.from_args(Namespace(**{**values, **more, "f1": job.data.mode == "f1"}), needed)


def known_models(job: TrainJob) -> CacheModels:
    """The encoders that a training's options name, by which stale caches are noticed."""

    def identity(kind: str) -> str | None:
        try:
            return _identity(_models(job, list(NEEDED[kind]), Fp8Options()), kind)
        except FramePackError:  # training itself needs no encoders, so they need not be there
            return None

    return CacheModels(identity("latents"), identity("text"))


@contextmanager
def latent_encoders_of(models: Models) -> Iterator[LatentEncoders]:
    """VAE and image encoder, loaded when the first item needs them."""
    tile = models.decoding.tile
    with ExitStack() as stack:

        def load() -> LatentEncoders:
            vae = stack.enter_context(models.vae())
            return latent_encoders(vae, stack.enter_context(models.image_encoder()), "", tile=tile)

        yield loaded_late(load, latent_identity(_identity(models, "latents"), tile))


@contextmanager
def text_encoder_of(models: Models) -> Iterator[TextEncoder]:
    """The text encoders, loaded when the first caption needs them."""
    with ExitStack() as stack:

        def load() -> TextEncoder:
            return text_encoder(stack.enter_context(models.text_encoders()), "")

        yield text_loaded_late(load, text_identity(_identity(models, "text")))


def _identity(models: Models, kind: str) -> str:
    files = [find_component(models.paths[c], c).weights for c in NEEDED[kind]]
    return model_identity(path for weights in files for path in weights)
