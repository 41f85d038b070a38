"""The models of caching and training: encoders loaded when they are needed, the base model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

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
from .model_files import find_models
from .models import Models, open_models
from .options import DecodingOptions, ExecutionOptions, LoraOptions, ModelOptions
from .training_options import NEEDED, CacheJob, TrainJob

ENCODERS: tuple[Component, ...] = tuple(
    component for needed in NEEDED.values() for component in needed
)


def open_dataset(data: DataOptions, models: ModelOptions) -> TrainingSet:
    """The data set, with the options' values for what it does not say.

    Raises FramePackError for another window than that of a table which says its own.
    """
    small = {"resolution": TOY_SIZE} if models.uses_toyworld else {}
    given = data.defaults()
    found = TrainingSet.load(data.path, {**small, **given})
    wanted = given.get("fp_latent_window_size")
    for number, dataset in enumerate(found.datasets, 1):
        if wanted not in (None, dataset.window):
            raise FramePackError(
                f"--latent_window_size {wanted}: {data.path}: datasets {number} has "
                f"fp_latent_window_size = {dataset.window}; take one of them out"
            )
    return found


def cache_models(job: CacheJob) -> Models:
    """What encodes latents, text or both."""
    needed: list[Component] = [c for kind in job.kinds for c in NEEDED[kind]]
    return open_models(job.models, needed, decoding=DecodingOptions(**job.vae.model_dump()))


def train_models(job: TrainJob, samples: bool) -> Models:
    """The base model, and what encodes and decodes samples."""
    base = LoraOptions(
        lora_weight=job.base.base_weights, lora_multiplier=job.base.base_weights_multiplier
    )
    return open_models(
        job.models.model_copy(update={"dtype": job.dtype}),
        ("dit", *ENCODERS) if samples else ("dit",),
        f1=job.data.mode == "f1",
        fp8=job.fp8,
        execution=ExecutionOptions(dequantise=True),  # the loop chooses, where it is to
        loras=base,
        decoding=job.decoding,
    )


def known_models(job: TrainJob) -> CacheModels:
    """The encoders that a training's options name, by which stale caches are noticed."""

    def identity(kind: str) -> str | None:
        try:
            return _identity(find_models(job.models, NEEDED[kind]), kind)
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

        yield loaded_late(load, latent_identity(_identity(models.paths, "latents"), tile))


@contextmanager
def text_encoder_of(models: Models) -> Iterator[TextEncoder]:
    """The text encoders, loaded when the first caption needs them."""
    with ExitStack() as stack:

        def load() -> TextEncoder:
            return text_encoder(stack.enter_context(models.text_encoders()), "")

        yield text_loaded_late(load, text_identity(_identity(models.paths, "text")))


def _identity(paths: Mapping[Component, Path], kind: str) -> str:
    files = [find_component(paths[c], c).weights for c in NEEDED[kind]]
    return model_identity(path for weights in files for path in weights)
