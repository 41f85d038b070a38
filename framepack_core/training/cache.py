"""Caching what the encoders make of a data set, so that training needs the DiT alone.

The context of a section is cut by the sampler's own History, fed with the true latents: training
sees what inference will see. A finished file is whole, so a stopped run resumes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ..models.packing import Context
from ..models.prompt import TextCondition, fit_length
from ..runtime.errors import FramePackError
from ..runtime.files import is_folder
from ..runtime.fingerprint import fingerprint
from ..runtime.images import Pixels, load_image, resize_and_crop, to_tensor
from ..sampling.history import History
from ..sampling.masks import latent_mask, load_control, mask_latents
from ..sampling.one_frame import one_frame_context
from ..sampling.plan import HISTORY_LENGTH, Mode, Section
from ..sampling.sections import plan_f1, plan_video
from .cache_files import (
    DIGEST,
    END_INDEX,
    END_SLOT,
    IMAGE,
    MODELS,
    POOLED,
    TEXT,
    TEXT_MASK,
    cached_header,
    cached_mode,
    end_path,
    save_end,
    save_latent_cache,
    save_text_cache,
    to_half,
)
from .config import TrainMode
from .dataset import TEXT_SUFFIX, ImageItem, Item, TrainingSet, VideoItem
from .media import pictures

TEXT_TOKENS = 512
SECTION_CAPTION = re.compile(r"-[0-9a-f]{8}$")  # behind the stem, of a section's own caption
EMPTY_STEM = "empty-caption"  # the text that caption dropout puts in a caption's place


@dataclass(frozen=True)
class LatentEncoders:
    """vae: pixels [B, 3, F, H, W] in -1..1 to scaled latents, the mean; image: uint8 [H, W, 3] to
    SigLIP tokens [1, N, C]; identity: says which models they are, for the digest."""

    vae: Callable[[Tensor], Tensor]
    image: Callable[[Pixels], Tensor]
    identity: str


@dataclass(frozen=True)
class TextEncoder:
    """encode: a caption to its condition; identity: which models and system prompt they are."""

    encode: Callable[[str], TextCondition]
    identity: str


@dataclass(frozen=True)
class CacheProgress:
    """After an item: how many of `total` are done, and how many of those were encoded now."""

    done: int
    total: int
    encoded: int
    name: str


OnItem = Callable[[CacheProgress], None]


@dataclass(frozen=True)
class OneFrameContexts:
    """Which blank contexts a one-frame cache leaves out."""

    no_2x: bool = False
    no_4x: bool = False


ALL_CONTEXTS = OneFrameContexts()


# --- latents --------------------------------------------------------------------------------------


def cache_latents(
    found: TrainingSet,
    mode: TrainMode,
    encoders: LatentEncoders,
    *,
    one_frame: OneFrameContexts = ALL_CONTEXTS,
    batch_size: int = 1,
    skip_existing: bool = True,
    end_frames: bool = False,
    on_item: OnItem | None = None,
) -> CacheProgress:
    """Encode every item whose files are missing or stale; other files are left alone.

    end_frames: also keep the last frame of each crop, for training with end images.
    `on_item` follows each item; it may raise to stop, and the next call resumes there.
    Raises FramePackError if the folder holds caches of these items in another mode, unless
    skip_existing is off, which writes over them.
    """
    if end_frames and mode == "one_frame":
        raise FramePackError("end_frames: one_frame makes no video that could end; leave them out")
    check_cached(found, mode, overwritten=not skip_existing)
    stale = []
    for item in found.items:
        digest = source_digest(item, mode, one_frame)
        entries = {DIGEST: digest, MODELS: encoders.identity}
        current = _is_current(item, entries) and (not end_frames or _has_ends(item, mode, entries))
        if not (skip_existing and current):
            stale.append((item, digest))
    progress = CacheProgress(len(found.items) - len(stale), len(found.items), 0, "")
    for batch in _batches(stale, batch_size):
        if mode == "one_frame":
            for item, digest in batch:
                assert isinstance(item, ImageItem)
                _encode_image(item, digest, encoders, one_frame)
        else:
            _encode_videos(batch, mode, encoders, end_frames)
        for item, _ in batch:
            progress = _advance(progress, item.name, on_item)
    return progress


def source_digest(item: Item, mode: TrainMode, options: OneFrameContexts) -> str:
    """A digest of all that the files of an item depend on besides the models."""
    source = item.source
    about = {"mode": mode, "window": item.dataset.window, "size": item.size}
    if isinstance(item, VideoItem):
        frames = pictures(source.path) if is_folder(source.path) else [source.path]
        crop = (item.first, item.frames, item.dataset.source_fps)
        shown = item.clip.traits
        return fingerprint({**about, "shown": shown, "frames": frames, "crop": crop})
    indices = item.plan(no_2x=options.no_2x, no_4x=options.no_4x)
    return fingerprint({**about, "images": [source.path, *item.controls], "indices": indices})


def check_cached(found: TrainingSet, mode: TrainMode, overwritten: bool = False) -> None:
    """Refuse items that are cached for another mode already; looks at files alone.

    overwritten: all of them will be encoded again, so that only the items matter.
    """
    found.check_mode(mode)
    if overwritten:
        return
    for path in (path for item in found.items for path in item.paths):
        if cached_header(path) is not None and (other := cached_mode(path)) != mode:
            raise FramePackError(
                f"{path} is a cache for the mode {other}, not {mode}; give each mode a "
                "cache_directory of its own, empty this one, or cache with --no-skip_existing"
            )


def _is_current(item: Item, entries: Mapping[str, str]) -> bool:
    """Whether all files of an item are there and fit.

    A file of musubi-tuner's has no such entries: it counts if its name and window fit.
    """
    headers = [cached_header(path) for path in item.paths]
    if any(header is None for header in headers):
        return False
    frames = item.dataset.window if isinstance(item, VideoItem) else 1
    return all(
        all(header.metadata.get(name, value) == value for name, value in entries.items())
        and any(name.startswith(f"latents_{frames}x") for name in header.tensors)
        for header in headers
        if header is not None
    )


def _batches(
    items: Sequence[tuple[Item, str]], batch_size: int
) -> Iterator[list[tuple[Item, str]]]:
    """Neighbours of one shape, at most batch_size together."""
    batch: list[tuple[Item, str]] = []
    for entry in items:
        if batch and (len(batch) == batch_size or _shape(entry[0]) != _shape(batch[0][0])):
            yield batch
            batch = []
        batch.append(entry)
    if batch:
        yield batch


def _shape(item: Item) -> tuple[object, ...]:
    if isinstance(item, VideoItem):
        return (item.size, item.used_frames, item.dataset.window)
    return (item.size, len(item.controls))


def _has_ends(item: Item, mode: TrainMode, entries: Mapping[str, str]) -> bool:
    """Whether the end frame is there for every section that can see it."""
    places = end_places(mode, item.sections, item.dataset.window)
    headers = [cached_header(end_path(item.paths[section])) for section, _ in places]
    return all(h is not None and entries.items() <= h.metadata.items() for h in headers)


def end_places(
    mode: TrainMode, sections: int, window: int
) -> Iterator[tuple[int, Mapping[str, int]]]:
    """Each section that can see the end of a video of so many sections, and where it sees it.

    That is a place in the history of the framepack mode, and an index of its own in F1.
    """
    if mode == "f1":
        for section in plan_f1(sections, window).with_end(None).sections:
            yield section.index, {END_INDEX: section.clean_indices[-1]}
        return
    for section in range(sections):
        slot = (sections - 1 - section) * window
        if slot < HISTORY_LENGTH:
            yield section, {END_SLOT: slot}


def _encode_videos(
    batch: list[tuple[Item, str]], mode: TrainMode, encoders: LatentEncoders, end_frames: bool
) -> None:
    items = [item for item, _ in batch if isinstance(item, VideoItem)]
    pixels = [item.load() for item in items]
    latents = encoders.vae(torch.cat([to_tensor(x) for x in pixels]))
    digests = [digest for _, digest in batch]
    for item, digest, frames, z in zip(items, digests, pixels, latents, strict=True):
        half = to_half(z[None], item.name)
        image = to_half(encoders.image(frames[0])[0], item.name)
        _save_sections(item, mode, half, image, digest, encoders.identity)
        _drop_old_ends(item, {DIGEST: digest, MODELS: encoders.identity})
        if end_frames:
            end = to_half(encoders.vae(to_tensor(frames[-1]))[0], item.name)
            for section, place in end_places(mode, item.sections, item.dataset.window):
                save_end(item.paths[section], end, place, digest, encoders.identity)


def _drop_old_ends(item: VideoItem, entries: Mapping[str, str]) -> None:
    """Remove end frames of what was cached before, which no longer belong to the item."""
    for path in map(end_path, item.paths):
        header = cached_header(path)
        if header is not None and not entries.items() <= header.metadata.items():
            path.unlink()


def _save_sections(
    item: VideoItem, mode: TrainMode, latents: Tensor, image: Tensor, digest: str, models: str
) -> None:
    """One file a section, from latents [1, C, 1 + n W, h, w] of the whole crop."""
    window = item.dataset.window
    for section, tensors in section_tensors(mode, latents, window):
        save_latent_cache(
            item.paths[section.index],
            {**tensors, IMAGE: image},
            size=item.size,
            digest=digest,
            models=models,
            mode=mode,
            frame_count=item.frames,
        )


def _context_tensors(context: Context) -> dict[str, Tensor]:
    """What a section of a video sees, which has all three rates."""
    seen = {
        "latents_clean": context.clean,
        "latents_clean_2x": context.clean_2x,
        "latents_clean_4x": context.clean_4x,
    }
    return {name: cast(Tensor, latents)[0] for name, latents in seen.items()}


def section_tensors(
    mode: TrainMode, latents: Tensor, window: int
) -> Iterator[tuple[Section, dict[str, Tensor]]]:
    """Every section of true latents [1, C, 1 + n W, h, w], with the context a sampler gives it."""
    plan = plan_video(cast(Mode, mode), (latents.shape[2] - 1) // window, window)
    history = History(plan, latents[:, :, :1])
    for section in plan.sections:
        context = history.context(section)
        first = 1 + section.index * window
        target = latents[:, :, first : first + window]
        history.append(section, target)
        yield (
            section,
            {
                "latents": target[0],
                **_context_tensors(context),
                **_index_tensors(section),
            },
        )


def _index_tensors(section: Section) -> dict[str, Tensor]:
    """Frame indices; those of a context that is left out are left out."""
    indices = {
        "latent_indices": section.latent_indices,
        "clean_latent_indices": section.clean_indices,
        "clean_latent_2x_indices": section.clean_2x_indices,
        "clean_latent_4x_indices": section.clean_4x_indices,
    }
    return {name: torch.tensor(values) for name, values in indices.items() if values}


def _encode_image(
    item: ImageItem, digest: str, encoders: LatentEncoders, options: OneFrameContexts
) -> None:
    """Controls and target, each encoded alone; blank 2x and 4x latents are not stored."""
    section = item.plan(no_2x=options.no_2x, no_4x=options.no_4x)
    width, height = item.size
    pixels, masks = [], []
    for path in item.controls:
        control, mask = load_control(path)
        pixels.append(resize_and_crop(control, width, height, resample="auto"))
        masks.append(None if mask is None else _fit_mask(mask, width, height))
    pixels.append(resize_and_crop(load_image(item.source.path), width, height, resample="auto"))
    *controls, target = (encoders.vae(to_tensor(x)).cpu() for x in pixels)
    clean = one_frame_context(section, mask_latents(torch.cat(controls, dim=2), masks)).clean
    assert clean is not None
    tensors = {
        "latents": to_half(target[0], item.name),
        "latents_clean": to_half(clean[0], item.name),
        IMAGE: to_half(encoders.image(pixels[0])[0], item.name),
        **_index_tensors(section),
    }
    save_latent_cache(
        item.paths[0],
        tensors,
        size=item.source_size,
        digest=digest,
        models=encoders.identity,
        mode="one_frame",
    )


def _fit_mask(mask: Pixels, width: int, height: int) -> Tensor:
    """A mask cropped as its image, in one resizing to the bucket and another to the latent."""
    grey = np.repeat(mask[..., None], 3, axis=2)
    cropped = resize_and_crop(grey, width, height, resample="auto")[..., 0]
    return latent_mask(cropped, width, height)


# --- text -----------------------------------------------------------------------------------------


def text_path(item: Item, caption: str) -> Path:
    """The cache of a caption; a section's own caption has a file of its own beside the clip's."""
    name = item.source.stem
    if caption != item.source.caption:
        name += f"-{hashlib.sha256(caption.encode()).hexdigest()[:8]}"
    return item.dataset.cache / f"{name}{TEXT_SUFFIX}"


def empty_path(item: Item) -> Path:
    """The cache of the empty caption in the folder of an item."""
    return item.dataset.cache / f"{EMPTY_STEM}{TEXT_SUFFIX}"


def cache_text(
    found: TrainingSet,
    encoder: TextEncoder,
    *,
    skip_existing: bool = True,
    on_item: OnItem | None = None,
) -> CacheProgress:
    """Encode every caption whose file is missing or stale, and the empty one for dropout."""
    # The clip's own caption too, even if no section is left to it: other trainers read that one.
    files = {
        text_path(item, text): text
        for item in found.items
        for text in (item.source.caption, *item.captions)
    }
    files |= {empty_path(item): "" for item in found.items}
    stale = {
        path: caption
        for path, caption in files.items()
        if not (skip_existing and _is_text_current(path, caption, encoder.identity))
    }
    progress = CacheProgress(len(files) - len(stale), len(files), 0, "")
    for path, caption in stale.items():
        tensors = text_tensors(encoder.encode(caption), str(path))
        save_text_cache(path, tensors, caption, text_digest(caption), encoder.identity)
        progress = _advance(progress, path.name, on_item)
    return progress


def text_tensors(condition: TextCondition, what: str) -> dict[str, Tensor]:
    """A condition of one prompt, its words padded to 512 tokens."""
    text, mask = fit_length(condition.text, TEXT_TOKENS)
    return {
        TEXT: to_half(text[0], what),
        TEXT_MASK: mask[0].cpu(),
        POOLED: to_half(condition.pooled[0], what),
    }


def text_digest(caption: str) -> str:
    """A digest of what a caption's file depends on besides the models."""
    return fingerprint({"caption": caption})


def _is_text_current(path: Path, caption: str, identity: str) -> bool:
    """A file of musubi-tuner's has no digest: it counts if it is of the same caption."""
    header = cached_header(path)
    if header is None:
        return False
    entries = {DIGEST: text_digest(caption), MODELS: identity}
    same = header.metadata.get("caption1") == caption
    return same and all(header.metadata.get(n, value) == value for n, value in entries.items())


def _advance(progress: CacheProgress, name: str, on_item: OnItem | None) -> CacheProgress:
    progress = CacheProgress(progress.done + 1, progress.total, progress.encoded + 1, name)
    if on_item is not None:
        on_item(progress)
    return progress
