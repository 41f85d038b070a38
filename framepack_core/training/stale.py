"""Whether the caches of a training set are what the encoders would make of it now, or why not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..runtime.errors import FramePackError
from ..runtime.files import is_folder, list_folder
from ..weights.files import Header
from .cache import (
    EMPTY_STEM,
    SECTION_CAPTION,
    OneFrameContexts,
    check_cached,
    source_digest,
    text_digest,
    text_path,
)
from .cache_files import ARCHITECTURE, DIGEST, END_SUFFIX, MODELS, cached_header, end_path
from .dataset import CACHED_LATENTS, SUFFIX, TEXT_SUFFIX, Item, TrainingSet, TrainMode, VideoItem

SHOWN = 3  # problems that an error spells out
CHOICES = [OneFrameContexts(no_2x, no_4x) for no_2x in (False, True) for no_4x in (False, True)]


@dataclass(frozen=True)
class CacheModels:
    """Identities of the encoders that a run uses itself; None for those that it does not know."""

    latents: str | None = None
    text: str | None = None


UNKNOWN_MODELS = CacheModels()


def check_fresh(found: TrainingSet, mode: TrainMode, models: CacheModels = UNKNOWN_MODELS) -> None:
    """Refuse to train on caches that do not fit what they were made of.

    Files of musubi-tuner say less about themselves: they count if name, window and caption fit.
    Raises FramePackError that names the first items and what has changed of each.
    """
    check_cached(found, mode)
    problems = {item.name: problem for item in found.items if (problem := _problem(item, mode))}
    problems |= _mismatched_items(found, models)
    if problems:
        named = [f"{name}: {problem}" for name, problem in list(problems.items())[:SHOWN]]
        more = f" (and {len(problems) - SHOWN} more)" if len(problems) > SHOWN else ""
        raise FramePackError(
            f"{'; '.join(named)}{more}; cache this data set again with the same settings "
            "(framepack cache, or FramePack Cache Latents and Cache Captions): what still fits is "
            "kept"
        )


def caches_of_gone_clips(found: TrainingSet, *, latents: bool) -> list[Path]:
    """Cache files, of latents or of captions, whose clips and pictures are there no more."""
    gone = []
    for dataset in found.datasets:
        there = {item.source.stem for item in found.items if item.dataset is dataset}
        folder = dataset.cache
        for path in list_folder(folder) if is_folder(folder) else []:
            stems = _latent_stems(path) if latents else _text_stems(path)
            if stems and not stems & there and _is_of_framepack(path):
                gone.append(path)
    return gone


def _latent_stems(path: Path) -> set[str]:
    match = CACHED_LATENTS.fullmatch(path.name.replace(END_SUFFIX, SUFFIX))
    return {match["stem"]} if match else set()


def _text_stems(path: Path) -> set[str]:
    """Those of which it may be; the empty caption's is everybody's."""
    stem = path.name.removesuffix(TEXT_SUFFIX)
    if stem in (path.name, EMPTY_STEM):
        return set()
    return {stem, SECTION_CAPTION.sub("", stem)}


def _is_of_framepack(path: Path) -> bool:
    header = cached_header(path)
    return header is not None and header.metadata.get("architecture") == ARCHITECTURE


def _problem(item: Item, mode: TrainMode) -> str | None:
    """What is wrong with the caches of an item; None for nothing."""
    headers = [cached_header(path) for path in item.paths]
    found = [header for header in headers if header is not None]
    if len(found) < len(headers):
        return _why_missing(item)
    for header in found:
        if problem := _changed(item, header, mode):
            return problem
    ends = [header for path in item.paths if (header := cached_header(end_path(path)))]
    if any(_changed_source(item, end, mode) for end in ends):
        return "the clip has changed since its end frame was cached"
    return _problem_of_text(item)


def _changed(item: Item, header: Header, mode: TrainMode) -> str | None:
    window = item.dataset.window if isinstance(item, VideoItem) else 1
    latents = next((n for n in header.tensors if re.match(r"latents_\d+x", n)), "")
    cached = int(latents.split("_")[1].split("x")[0]) if latents else 0
    if cached != window:
        return f"cached with a window of {cached}, not {window}"
    if _changed_source(item, header, mode):
        return "the file, or what is taken of it, has changed since its latents were cached"
    return None


def _changed_source(item: Item, header: Header, mode: TrainMode) -> bool:
    """Whether a cache was made of something else; one without a digest is not ours to judge."""
    noted = header.metadata.get(DIGEST)
    choices = CHOICES if mode == "one_frame" else CHOICES[:1]
    return noted is not None and noted not in (source_digest(item, mode, c) for c in choices)


def _why_missing(item: Item) -> str:
    """Told by what else is cached of the same clip."""
    folder = item.dataset.cache
    names = [path.name for path in folder.iterdir()] if is_folder(folder) else []
    found = [match for name in names if (match := CACHED_LATENTS.fullmatch(name))]
    sizes = {match["size"] for match in found if match["stem"] == item.source.stem}
    wanted = CACHED_LATENTS.fullmatch(item.paths[0].name)
    assert wanted is not None
    if not sizes:
        return "its latents are not cached"
    if wanted["size"] not in sizes:
        shown = ", ".join(sorted(_readable(size) for size in sizes))
        return f"cached at {shown}, not at {_readable(wanted['size'])}"
    return "other frames of it are cached than the data set asks for"


def _readable(size: str) -> str:
    width, height = map(int, size.split("x"))
    return f"{width}x{height}"


def _problem_of_text(item: Item) -> str | None:
    for caption in item.captions:
        header = cached_header(text_path(item, caption))
        if header is None:
            return "its caption is not cached"
        if header.metadata.get("caption1") != caption:
            return "its caption has changed since it was cached"
        if header.metadata.get(DIGEST, text_digest(caption)) != text_digest(caption):
            return "its caption was cached by an older version"
    return None


def _mismatched_items(found: TrainingSet, models: CacheModels) -> dict[str, str]:
    """Items whose caches come from other models than the run's, or than those of most."""
    latents = {item.name: item.paths[0] for item in found.items}
    texts = {item.name: text_path(item, item.captions[0]) for item in found.items}
    return {
        **dict(_encoder_mismatches(texts, models.text, "other text encoders")),
        **dict(_encoder_mismatches(latents, models.latents, "another VAE or image encoder")),
    }


def _encoder_mismatches(
    paths: dict[str, Path], wanted: str | None, what: str
) -> Iterator[tuple[str, str]]:
    headers = {name: cached_header(path) for name, path in paths.items()}
    made_by = {
        name: _models(header.metadata[MODELS])
        for name, header in headers.items()
        if header is not None and MODELS in header.metadata
    }
    if not made_by:
        return
    counts = list(made_by.values())
    usual = _models(wanted) if wanted is not None else max(counts, key=counts.count)
    than = "this run uses" if wanted is not None else "most of the data set"
    for name, (kind, digest) in made_by.items():
        # Of files and of loaded weights: a cache of the one says nothing about the other.
        if kind == usual[0] and digest != usual[1]:
            yield name, f"cached with {what} than {than}"


def _models(identity: str) -> tuple[str, str]:
    """Kind and digest of the models of an identity, without how they were used."""
    kind, _, digest = identity.split(" ")[0].rpartition(":")
    return kind, digest
