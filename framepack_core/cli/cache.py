"""`framepack cache`: what the encoders make of a data set, on disk before training."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ..headless.models import Models, explain_out_of_memory, uses_toyworld
from ..runtime.display import Bar, Display, say
from ..runtime.errors import FramePackError
from ..toyworld.render import SIZE as TOY_SIZE
from ..training.cache import (
    CacheProgress,
    LatentEncoders,
    OneFrameOptions,
    TextEncoder,
    cache_latents,
    cache_text,
    check_cached,
)
from ..training.dataset import TrainingSet, TrainMode
from ..training.encoders import (
    latent_encoders,
    latent_identity,
    loaded_late,
    model_identity,
    text_encoder,
    text_identity,
    text_loaded_late,
)
from ..weights.layouts import Component, find_component

NEEDED: dict[str, tuple[Component, ...]] = {
    "latents": ("vae", "image_encoder"),
    "text": ("llama", "clip"),
}
SMALLER_ENCODE = "add --vae_chunk_size 16, then --vae_spatial_tile_sample_min_size 128"


def run(args: Namespace) -> None:
    """Encode what is not cached yet; a run that was stopped goes on where it was."""
    kinds = [args.only] if args.only else list(NEEDED)
    found = open_dataset(args)
    check_cached(found, mode_of(args))
    with Display("summary of the data set"):
        say(found.describe())
    models = Models.from_args(args, [c for kind in kinds for c in NEEDED[kind]])
    if "latents" in kinds:
        _cache_latents(args, found, models)
    if "text" in kinds:
        with text_encoder_of(models) as encoder, _bar("captions") as on_item:
            done = cache_text(found, encoder, skip_existing=args.skip_existing, on_item=on_item)
        say(f"captions: {done.encoded} encoded, {done.total - done.encoded} were cached")


def _cache_latents(args: Namespace, found: TrainingSet, models: Models) -> None:
    options = OneFrameOptions(args.one_frame_no_2x, args.one_frame_no_4x)
    with (
        latent_encoders_of(models) as encoders,
        _bar("latents") as on_item,
        explain_out_of_memory(SMALLER_ENCODE),
    ):
        done = cache_latents(
            found,
            mode_of(args),
            encoders,
            one_frame=options,
            batch_size=args.batch_size or 1,
            skip_existing=args.skip_existing,
            end_frames=args.end_frames,
            on_item=on_item,
        )
    say(f"latents: {done.encoded} encoded, {done.total - done.encoded} were cached")


def mode_of(args: Namespace) -> TrainMode:
    if args.one_frame:
        return "one_frame"
    return "f1" if args.f1 else "framepack"


def open_dataset(args: Namespace) -> TrainingSet:
    """The data set, with the command line's values for what it does not say."""
    if args.dataset_config is None:
        raise FramePackError(
            "--dataset_config missing; name a .toml file, or a folder of clips with captions"
        )
    return TrainingSet.load(args.dataset_config, _defaults(args))


def _defaults(args: Namespace) -> dict[str, Any]:
    given = {
        "resolution": _resolution(args),
        "batch_size": args.batch_size,
        "fp_latent_window_size": args.latent_window_size,
    }
    return {name: value for name, value in given.items() if value is not None}


def _resolution(args: Namespace) -> list[int] | int | None:
    if args.resolution is None:
        return TOY_SIZE if uses_toyworld(args) else None
    if len(args.resolution) > 2:
        raise FramePackError(f"--resolution: {len(args.resolution)} numbers; give W H or one")
    return args.resolution if len(args.resolution) == 2 else args.resolution[0]


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


@contextmanager
def _bar(what: str) -> Iterator[Callable[[CacheProgress], None]]:
    """A bar over all items, with the time left; what was cached before counts as done."""
    with Bar(what, unit="item") as bar:

        def on_item(progress: CacheProgress) -> None:
            before = progress.done - progress.encoded
            bar.move_to(progress.done, progress.total, before=before, note=progress.name)

        yield on_item
