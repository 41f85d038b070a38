"""A data set encoded before training: latents and captions, with bars that show how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch

from ..runtime.display import Bar, Display, say
from ..training.cache import (
    CacheProgress,
    OneFrameContexts,
    cache_latents,
    cache_text,
    check_cached,
)
from ..training.dataset import TrainingSet
from ..training.stale import caches_of_gone_clips
from .models import Models, explain_out_of_memory
from .training_models import (
    cache_models,
    latent_encoders_of,
    open_dataset,
    text_encoder_of,
)
from .training_options import CacheJob

SMALLER_ENCODE = "add --vae_chunk_size 16, then --vae_spatial_tile_sample_min_size 128"


def cache(job: CacheJob) -> None:
    """Encode what is not cached yet; a run that was stopped resumes where it was."""
    found = open_dataset(job.data, job.models)
    check_cached(found, job.data.mode, overwritten=not job.cache.skip_existing)
    with Display("summary of the data set"):
        say(found.describe())
    models = cache_models(job)
    if "latents" in job.kinds:
        plain = job.cache.disable_cudnn_backend
        with torch.backends.cudnn.flags(enabled=False) if plain else nullcontext():
            _cache_latents(job, found, models)
    if "text" in job.kinds:
        with text_encoder_of(models) as encoder, _bar("captions") as on_item:
            skip = job.cache.skip_existing
            done = cache_text(found, encoder, skip_existing=skip, on_item=on_item)
        say(f"captions: {done.encoded} encoded, {done.total - done.encoded} were cached")
    if not job.cache.keep_cache:
        for kind in job.kinds:
            _remove_gone(found, kind)


def _remove_gone(found: TrainingSet, kind: str) -> None:
    if gone := caches_of_gone_clips(found, latents=kind == "latents"):
        for path in gone:
            path.unlink()
        say(f"{kind}: {len(gone)} caches of clips that are gone were removed")


def _cache_latents(job: CacheJob, found: TrainingSet, models: Models) -> None:
    with (
        latent_encoders_of(models) as encoders,
        _bar("latents") as on_item,
        explain_out_of_memory(SMALLER_ENCODE),
    ):
        done = cache_latents(
            found,
            job.data.mode,
            encoders,
            one_frame=OneFrameContexts(job.cache.no_2x, job.cache.no_4x),
            batch_size=job.data.batch_size,
            skip_existing=job.cache.skip_existing,
            end_frames=job.cache.end_frames,
            on_item=on_item,
        )
    say(f"latents: {done.encoded} encoded, {done.total - done.encoded} were cached")


@contextmanager
def _bar(what: str) -> Iterator[Callable[[CacheProgress], None]]:
    """A bar over all items, with the time left; what was cached before counts as done."""
    with Bar(what, unit="item") as bar:

        def on_item(progress: CacheProgress) -> None:
            before = progress.done - progress.encoded
            bar.move_to(progress.done, progress.total, before=before, note=progress.name)

        yield on_item
