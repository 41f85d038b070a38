"""What is trained on: crops of clips in whole sections, and pictures with their controls."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..parsing.section_spec import parse_spec
from ..runtime.errors import FramePackError
from ..runtime.files import is_folder, list_folder, natural_key, size_text
from ..runtime.images import BucketSelector, Pixels, Size, load_image
from ..sampling.one_frame import OneFrame, plan_one_frame
from ..sampling.plan import HISTORY_LENGTH, Section
from ..sampling.sections import LATENT_CHANNELS, LATENT_STRIDE, sections_for_frames
from .config import TrainMode
from .dataset_config import FRAME_STEP, Dataset, ImageDataset, VideoDataset, load_datasets
from .media import Clip, kept_frames, open_clip, read_crop
from .sources import Source, find_sources

SUFFIX = "_fp.safetensors"
TEXT_SUFFIX = "_fp_te.safetensors"
# Of a section of a clip, or of a picture: as VideoItem.paths and ImageItem.paths name them.
CACHED_LATENTS = re.compile(
    rf"(?P<stem>.+?)(_\d{{5,}}-\d{{3,}}-\d{{4,}})?_(?P<size>\d{{4,}}x\d{{4,}}){re.escape(SUFFIX)}"
)
# For the estimate of the disk: fp16 SigLIP tokens, fp16 LLaMA tokens of a padded prompt.
IMAGE_BYTES = 729 * 1152 * 2
TEXT_BYTES = 512 * (4096 * 2 + 1) + 768 * 2


@dataclass(frozen=True)
class VideoItem:
    """A crop of a clip: `frames` frames from the first-th on, counted at 30 fps.

    size: (width, height) of its bucket; captions: one a section, in order of time.
    """

    source: Source
    dataset: VideoDataset
    first: int
    frames: int
    size: Size
    captions: tuple[str, ...]
    clip: Clip

    @property
    def name(self) -> str:
        return f"clip {self.source.path}"

    @property
    def sections(self) -> int:
        return len(self.captions)

    @property
    def used_frames(self) -> int:
        """What fills whole sections; the rest of the crop is left out."""
        return FRAME_STEP * self.dataset.window * self.sections + 1

    @property
    def paths(self) -> list[Path]:
        """The cache file of every section, in order of time."""
        width, height = self.size
        name = f"{self.source.stem}_{self.first:05d}-{self.frames:03d}"
        end = f"{width:04d}x{height:04d}{SUFFIX}"
        return [self.dataset.cache / f"{name}-{i:04d}_{end}" for i in range(self.sections)]

    def load(self) -> Pixels:
        """Its frames as uint8 [used_frames, H, W, 3]."""
        frames = _kept(self.clip, self.dataset)
        return read_crop(self.clip, frames[self.first : self.first + self.used_frames], self.size)


@dataclass(frozen=True)
class ImageItem:
    """A picture to be made from control images; source_size is its (width, height) on disk."""

    source: Source
    dataset: ImageDataset
    source_size: Size
    size: Size

    @property
    def name(self) -> str:
        return f"image {self.source.path}"

    @property
    def captions(self) -> tuple[str, ...]:
        return (self.source.caption,)

    @property
    def sections(self) -> int:
        return 1

    @property
    def controls(self) -> tuple[Path, ...]:
        return self.source.controls[: len(self.dataset.fp_1f_clean_indices)]

    @property
    def paths(self) -> list[Path]:
        width, height = self.source_size
        return [self.dataset.cache / f"{self.source.stem}_{width:04d}x{height:04d}{SUFFIX}"]

    def plan(self, *, no_2x: bool = False, no_4x: bool = False) -> Section:
        """Where target and controls stand."""
        options = OneFrame(
            target_index=self.dataset.fp_1f_target_index,
            control_index=self.dataset.fp_1f_clean_indices,
            no_2x=no_2x,
            no_4x=no_4x,
            no_post=self.dataset.fp_1f_no_post,
        )
        return plan_one_frame(options, len(self.controls), self.dataset.window)


Item = VideoItem | ImageItem


@dataclass(frozen=True)
class TrainingSet:
    """Everything that a run learns from, found and checked without a model."""

    datasets: tuple[Dataset, ...]
    items: tuple[Item, ...]

    @classmethod
    def load(cls, path: Path | str, defaults: Mapping[str, Any] | None = None) -> TrainingSet:
        """The training set of a TOML or JSON file, or of a folder of clips with captions.

        `defaults` is for keys that the file leaves out.
        """
        return cls.of(load_datasets(path, defaults))

    @classmethod
    def of(cls, datasets: Sequence[Dataset]) -> TrainingSet:
        """Look at every clip; raises FramePackError for the first that cannot be trained on."""
        items = [item for dataset in datasets for item in _items(dataset)]
        return cls(tuple(datasets), tuple(items))

    def check_mode(self, mode: TrainMode) -> None:
        """Refuse items that a mode cannot be trained on."""
        kind = ImageItem if mode == "one_frame" else VideoItem
        for item in self.items:
            if not isinstance(item, kind):
                other = "video clips" if kind is VideoItem else "images with control images"
                raise FramePackError(
                    f"{item.name}: the mode {mode} learns from {other}; put it into a data set "
                    "of its own and train that in its own mode"
                )

    @property
    def window(self) -> int:
        """Of the first data set: what samples are made with."""
        return self.datasets[0].window

    @cached_property
    def steps_an_epoch(self) -> int:
        """Batches of one pass over all items, when a batch holds one shape only."""
        counts: Counter[tuple[int, Size, int]] = Counter()
        for item in self.items:
            dataset = item.dataset
            i = self.datasets.index(dataset)
            counts[i, item.size, dataset.window] += item.sections * dataset.num_repeats
        return sum(-(-n // self.datasets[i].batch_size) for (i, _, _), n in counts.items())

    @property
    def disk_bytes(self) -> int:
        """About what the caches will take."""
        captions = {caption for item in self.items for caption in item.captions}
        return len(captions) * TEXT_BYTES + sum(_cache_bytes(item) for item in self.items)

    def describe(self) -> str:
        """What will be trained, as text."""
        lines = [_summary(self.items)]
        sizes = Counter(item.size for item in self.items)
        for (width, height), count in sorted(sizes.items()):
            lines.append(f"  {width}x{height}: {count} crop{'s' * (count > 1)}")
        lines.append(
            f"  {self.steps_an_epoch} steps an epoch, {size_text(self.disk_bytes)} of caches"
        )
        if gone := self.gone:
            lines.append(f"  not used: caches of clips that are gone ({', '.join(gone)})")
        return "\n".join(lines)

    @property
    def gone(self) -> list[str]:
        """Names of clips and pictures of which only caches are left."""
        there = {(item.dataset.cache, item.source.stem) for item in self.items}
        folders = [dataset.cache for dataset in self.datasets if is_folder(dataset.cache)]
        cached = {
            match["stem"]: folder
            for folder in folders
            for path in list_folder(folder)
            if (match := CACHED_LATENTS.fullmatch(path.name))
        }
        names = [stem for stem, folder in cached.items() if (folder, stem) not in there]
        return sorted(names, key=natural_key)


def _summary(items: Sequence[Item]) -> str:
    sections = sum(item.sections for item in items)
    sources = len({item.source.path for item in items})
    pictures = sum(isinstance(item, ImageItem) for item in items)
    clips = f"{sources - pictures} clips in {sections - pictures} sections"
    parts = [clips] * (sources > pictures) + [f"{pictures} images"] * (pictures > 0)
    return ", ".join(parts)


def _cache_bytes(item: Item) -> int:
    width, height = item.size
    window = item.dataset.window if isinstance(item, VideoItem) else 1
    frames = window + 1 + HISTORY_LENGTH
    pixels = (width // LATENT_STRIDE) * (height // LATENT_STRIDE)
    return item.sections * (LATENT_CHANNELS * frames * pixels * 2 + IMAGE_BYTES)


def _items(dataset: Dataset) -> Iterator[Item]:
    selector = BucketSelector(*dataset.resolution, dataset.enable_bucket, dataset.bucket_no_upscale)
    for source in find_sources(dataset):
        if isinstance(dataset, ImageDataset):
            yield _image_item(source, dataset, selector)
        else:
            yield from _video_items(source, dataset, selector)


def _image_item(source: Source, dataset: ImageDataset, selector: BucketSelector) -> ImageItem:
    wanted = len(dataset.fp_1f_clean_indices)
    if len(source.controls) < wanted:
        raise FramePackError(
            f"image {source.path}: {len(source.controls)} control images where "
            f"fp_1f_clean_indices has {wanted}; name them {source.stem}_0, {source.stem}_1, ... "
            "in the control_directory"
        )
    height, width = load_image(source.path).shape[:2]
    return ImageItem(source, dataset, (width, height), selector.choose(width, height))


def _video_items(
    source: Source, dataset: VideoDataset, selector: BucketSelector
) -> Iterator[VideoItem]:
    clip = open_clip(source.path)
    usable = len(_kept(clip, dataset))
    crops = extract(dataset, usable)
    if not crops:
        wanted = dataset.shortest if dataset.takes_all else min(dataset.lengths)
        rate = " at 30 fps" if dataset.source_fps else ""
        raise FramePackError(
            f"clip {source.path}: {usable} frames{rate}, but {wanted} are needed; take it out or "
            "use a longer clip"
        )
    size = selector.choose(*clip.size)
    for first, frames in crops:
        sections = sections_for_frames(frames, dataset.window)
        captions = _captions(source, sections)
        yield VideoItem(source, dataset, first, frames, size, captions, clip)


def _kept(clip: Clip, dataset: VideoDataset) -> list[int]:
    """The frames of a clip that count; one of a variable rate is read at 30 fps already."""
    return kept_frames(len(clip), dataset.source_fps if clip.is_constant else None)


def _captions(source: Source, sections: int) -> tuple[str, ...]:
    spec = parse_spec(source.section_captions, f"{source.path}: section captions")
    return tuple(text or source.caption for text in spec.resolve(sections))


def extract(dataset: VideoDataset, frames: int) -> list[tuple[int, int]]:
    """(first frame, length) of every crop of a clip, each once."""
    if dataset.takes_all:
        length = (min(frames, dataset.max_frames) - 1) // FRAME_STEP * FRAME_STEP + 1
        return [(0, length)] if length >= dataset.shortest else []
    crops = [
        (first, length)
        for length in dataset.lengths
        if length <= frames
        for first in _starts(dataset, frames, length)
    ]
    return list(dict.fromkeys(crops))


def _starts(dataset: VideoDataset, frames: int, length: int) -> list[int]:
    last = frames - length
    if dataset.frame_extraction == "chunk":
        return list(range(0, last + 1, length))
    if dataset.frame_extraction == "slide":
        return list(range(0, last + 1, dataset.frame_stride))
    if dataset.frame_extraction == "uniform" and dataset.frame_sample > 1:
        return np.linspace(0, last, dataset.frame_sample).astype(int).tolist()
    return [0]
