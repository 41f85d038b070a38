"""What is trained on: a folder of clips or a TOML description, and the clips of Toy World."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from comfy_api.latest import io, ui

from ..framepack_core.runtime.errors import FramePackError
from ..framepack_core.runtime.files import is_folder
from ..framepack_core.toyworld.concept import WORD, write_lessons, write_pairs
from ..framepack_core.training.cache_files import is_cache
from ..framepack_core.training.config import TrainMode
from ..framepack_core.training.dataset import TrainingSet
from ..framepack_core.training.dataset_config import (
    ImageDataset,
    VideoDataset,
    load_datasets,
    parse_datasets,
)
from ..framepack_core.training.stale import UNKNOWN_MODELS, CacheModels
from .comfyui.paths import input_folder, is_inside, output_folder
from .comfyui.progress import show_text
from .option_inputs import input_values, option_inputs
from .types import CATEGORY, DatasetSocket, advanced, schema

TRAINING = f"{CATEGORY}/training"
# Names in the order of their widgets: saved workflows hold values by position.
BASIC = ("resolution", "batch_size")
ADVANCED = (
    *("repeats", "window", "frame_extraction", "max_frames", "target_frames", "frame_stride"),
    *("frame_sample", "source_fps"),
)
TOY_CLIPS = "toyworld_clips"
CLIPS, PAIRS = "clips", "pictures"


@dataclass(frozen=True)
class Dataset:
    """A training set on its way: the mode is known once its latents are cached."""

    found: TrainingSet
    mode: TrainMode | None = None
    models: CacheModels = UNKNOWN_MODELS

    def cached_for(self, mode: TrainMode, latents: str) -> Dataset:
        """With its latents cached by models of that identity."""
        return replace(self, mode=mode, models=replace(self.models, latents=latents))

    def captioned(self, text: str) -> Dataset:
        """With its captions cached by models of that identity."""
        return replace(self, models=replace(self.models, text=text))


class FindDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelDataset",
            display_name="FramePack Dataset",
            category=TRAINING,
            description="Finds what a LoRA is to be trained on and shows it: clips, sizes, "
            "sections, steps an epoch and the disk space of the caches.",
            search_aliases=["training data", "dataset config", "toml", "musubi", "lora training"],
            inputs=[
                io.String.Input(
                    "path",
                    default="",
                    tooltip="A folder of clips, each with a text file of the same name beside it "
                    "that says what it shows; or a .toml or .json file as musubi-tuner has them. "
                    "A relative path starts in ComfyUI's input folder. The inputs below are for "
                    "what a file leaves out.",
                ),
                *option_inputs(VideoDataset, BASIC, optional=False),
                *option_inputs(VideoDataset, ADVANCED),
                advanced(
                    io.String.Input(
                        "toml",
                        default="",
                        multiline=True,
                        optional=True,
                        tooltip="The description itself, in place of a path: [general] and "
                        "[[datasets]] tables. For one-frame training with control images. Relative "
                        "folders start in ComfyUI's input folder.",
                    )
                ),
            ],
            outputs=[
                DatasetSocket.Output(display_name="dataset"),
                io.String.Output(display_name="summary"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(
        cls, path: str | None = None, toml: str | None = None, **settings: Any
    ) -> Any:
        """Clips and captions that changed are found again; caches beside them do not count."""
        known = {name: value for name, value in settings.items() if value is not None}
        try:
            datasets = _described(path or "", toml or "", known)
        except FramePackError:  # a link, or what `execute` will tell
            return None
        return [[repr(one), *map(_listing, _places(one))] for one in datasets]

    @classmethod
    def execute(cls, path: str, toml: str = "", **settings: Any) -> io.NodeOutput:
        found = TrainingSet.of(_described(path, toml, settings))
        text = found.describe()
        show_text(cls.hidden.unique_id, text)
        return io.NodeOutput(Dataset(found), text, ui=ui.PreviewText(text))


PATHS = (
    *("video_directory", "video_jsonl_file", "image_directory", "image_jsonl_file"),
    *("control_directory", "cache_directory"),
)
PER_PIECE = ("frame_extraction", "target_frames", "frame_stride", "frame_sample")


def _described(
    path: str, toml: str, settings: Mapping[str, Any]
) -> list[VideoDataset | ImageDataset]:
    """The data sets of a description, or else of what lies at a path."""
    defaults = _defaults(settings)
    if toml.strip():
        return [_placed(dataset) for dataset in parse_datasets(toml, "toml", defaults)]
    return load_datasets(_place(path), defaults)


def _places(dataset: VideoDataset | ImageDataset) -> list[Path]:
    """Folders and files that say what a data set holds."""
    places = dataset.folder, dataset.jsonl, dataset.control_directory
    return [place for place in places if place is not None]


def _defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The node's settings by the names that a description has."""
    values = input_values(VideoDataset, settings)
    if values.get("frame_extraction", "full") == "full":  # what an empty description means too
        values = {name: value for name, value in values.items() if name not in PER_PIECE}
    elif "target_frames" in values:
        values["target_frames"] = [values["target_frames"]]
    return values


def _place(path: str) -> Path:
    if not path.strip():
        raise FramePackError(
            "path: empty; name a folder of clips with captions beside them, or a .toml file"
        )
    return _from_input(Path(path.strip().strip('"')), "path")


def _from_input(path: Path, name: str) -> Path:
    """A path in full, which is where a user's clips lie, or one below ComfyUI's input folder."""
    if ".." in path.parts and not path.is_absolute():
        raise FramePackError(f"{name}: {path} leads out of ComfyUI's input folder; give it in full")
    return input_folder() / path


def _placed(dataset: VideoDataset | ImageDataset) -> VideoDataset | ImageDataset:
    """With its paths in full; as it came with a workflow, it must not choose where to write."""
    named = {name: getattr(dataset, name, None) for name in PATHS}
    full = {name: _from_input(path, f"toml: {name}") for name, path in named.items() if path}
    placed = dataset.model_copy(update=full)
    folders = [input_folder(), output_folder()]
    if not any(is_inside(placed.cache, place) for place in (*folders, placed.folder) if place):
        raise FramePackError(
            f"toml: cache_directory: {placed.cache} is neither below the clips nor in ComfyUI's "
            "input or output folder; change it, or give the description as a file in path"
        )
    return placed


def _listing(place: Path) -> list[tuple[str, int, int]] | str:
    """Names, sizes and times of what is in a folder, or of a file."""
    if not os.path.exists(place):
        return "nothing"
    files = sorted(place.iterdir()) if is_folder(place) else [place]
    states = [(file.name, file.stat()) for file in files if not is_cache(file)]
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]


class ToyWorldClips(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelToyWorldClips",
            display_name="Toy World Clips",
            category=TRAINING,
            description="Draws 16 clips, or 16 pairs of pictures, with captions that teach the "
            f"built-in Toy World model a word it does not know: {WORD}.",
            search_aliases=["toy world", "example dataset", "training example"],
            inputs=[
                io.String.Input(
                    "folder",
                    default=TOY_CLIPS,
                    tooltip="A folder in ComfyUI's output folder; clips that are there stay.",
                ),
                io.Combo.Input(
                    "lesson",
                    options=[CLIPS, PAIRS],
                    default=CLIPS,
                    tooltip="clips are for training videos; pictures are for one-frame edits: the "
                    "start, and how it looks at index 5.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="path", tooltip="For FramePack Dataset."),
                io.String.Output(display_name="prompt", tooltip="One that uses the word."),
            ],
        )

    @classmethod
    def execute(cls, folder: str, lesson: str = CLIPS) -> io.NodeOutput:
        root = output_folder().resolve()
        place = Path(os.path.normpath(root / folder))
        if not folder.strip() or place == root or not place.is_relative_to(root):
            raise FramePackError(f"folder: {folder!r} is no folder in ComfyUI's output folder")
        if lesson == PAIRS:
            place = write_pairs(place)
        else:
            write_lessons(place)
        return io.NodeOutput(str(place), f"a red circle {WORD}")
