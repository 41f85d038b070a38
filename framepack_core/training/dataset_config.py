"""The description of a data set: musubi-tuner's TOML or JSON schema, or nothing but a folder.

A key is looked up in its [[datasets]] table, then in [general], then in what the caller gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from ..parsing.json_toml import parse_toml, read_table
from ..runtime.display import warn
from ..runtime.errors import FramePackError
from ..runtime.files import is_folder
from ..runtime.options import Settings, option, validate
from ..sampling.sections import MAX_WINDOW, SIZE_MULTIPLE, WINDOW
from .config import TrainMode

Extraction = Literal["head", "chunk", "slide", "uniform", "full"]
DATA_SET = "data set"
# Keys that musubi-tuner has or had for other models, or for itself.
OF_OTHER_MODELS = frozenset(
    {
        *("flux_kontext_no_resize_control", "qwen_image_edit_no_resize_control"),
        *("qwen_image_edit_control_resolution", "debug_dataset"),
    }
)
FRAME_STEP = 4  # frames a latent
FOLDER_DEFAULTS = {"enable_bucket": True, "resolution": 640}  # FramePack's own sizes
MAX_FRAMES = 100_000  # of a clip, as a widget's range


def _size(value: Any) -> Any:
    """One number stands for both sides."""
    sides = [value] if isinstance(value, int) else value
    if not isinstance(sides, list | tuple) or len(sides) not in (1, 2):
        raise ValueError("give one number, or width and height")
    return (sides[0], sides[-1])


Size = Annotated[tuple[PositiveInt, PositiveInt], BeforeValidator(_size)]


class DataSource(Settings):
    """Where a data set is, and what is learned from it."""

    title: ClassVar[str] = DATA_SET
    about: ClassVar[str] = (
        "sizes count where the data set says nothing itself; the resolution of a plain folder is "
        "640, with toyworld 64"
    )
    dataset_config: Path | None = option(
        None,
        "Dataset config: a .toml or .json file, or simply a folder of clips with captions beside "
        "them.",
    )
    mode: TrainMode = option(
        "framepack",
        "Training mode, what the LoRA is for: the original model, F1, or one-frame edits of "
        "pictures. Each mode needs a cache folder of its own.",
        switches={
            "f1": ("f1", "F1: train for the F1 model."),
            "one_frame": ("one_frame", "One frame: train edits of pictures, not videos."),
        },
        advanced=False,
    )


class Sizes(Settings):
    """What tables, the command line and nodes can all say: the nearest of them wins."""

    title: ClassVar[str] = DATA_SET
    resolution: Size = option(
        (960, 544),
        "Resolution: clips are scaled to about this many pixels, width and height or one number "
        "for both, in their own shape where buckets are on.",
        metavar="N",
        initial=640,
        low=16,
        high=4096,
        step=16,
        advanced=False,
    )
    batch_size: PositiveInt = option(
        1,
        "Batch size: sections trained together; more needs more memory.",
        high=64,
        advanced=False,
    )


class Window(Settings):
    """How long a section is."""

    title: ClassVar[str] = DATA_SET
    fp_latent_window_size: int = option(
        WINDOW,
        "Latent window size: latent frames of a section, as in FramePack Plan.",
        "latent_window_size",
        node="window",
        ge=1,
        le=MAX_WINDOW,
    )


class DataOptions(Window, Sizes, DataSource):
    """The data set of a command, and what holds where it says nothing itself."""

    @property
    def path(self) -> Path:
        """Where the data set is described; raises FramePackError if nothing says so."""
        if self.dataset_config is None:
            raise FramePackError(
                "--dataset_config missing; name a .toml file, or a folder of clips with captions"
            )
        return self.dataset_config

    def defaults(self) -> dict[str, Any]:
        """What was given for keys that a description leaves out."""
        shared = self.model_fields_set & (Window.model_fields.keys() | Sizes.model_fields.keys())
        return {name: getattr(self, name) for name in shared}


class General(Sizes):
    """What all data sets of a file share."""

    caption_extension: str = ".txt"
    num_repeats: PositiveInt = option(
        1, "Repeats: how often each clip counts in an epoch.", node="repeats", high=1000
    )
    enable_bucket: bool = False
    bucket_no_upscale: bool = False

    @model_validator(mode="after")
    def _whole_tokens(self) -> General:
        if not self.enable_bucket and any(side % SIZE_MULTIPLE for side in self.resolution):
            raise ValueError(
                f"resolution {self.resolution[0]}x{self.resolution[1]} is not a multiple of "
                f"{SIZE_MULTIPLE} on both sides; change it or set enable_bucket"
            )
        if self.resolution[0] * self.resolution[1] < SIZE_MULTIPLE**2:
            raise ValueError(
                f"resolution {self.resolution[0]}x{self.resolution[1]} is less than "
                f"{SIZE_MULTIPLE}x{SIZE_MULTIPLE} pixels; choose a larger one"
            )
        return self


class _Dataset(General, Window):
    cache_directory: Path | None = None
    control_directory: Path | None = None

    def unused(self) -> list[str]:
        """Keys that have no effect with the others as they are."""
        return []

    @property
    def window(self) -> int:
        return self.fp_latent_window_size

    @property
    def folder(self) -> Path | None:
        raise NotImplementedError

    @property
    def jsonl(self) -> Path | None:
        raise NotImplementedError

    @property
    def cache(self) -> Path:
        """Where the caches are; the folder of the clips unless another is given."""
        found = self.cache_directory or self.folder
        assert found is not None  # _one_source has seen to it
        return found

    @model_validator(mode="after")
    def _one_source(self) -> _Dataset:
        if (self.folder is None) == (self.jsonl is None):
            kind = "video" if isinstance(self, VideoDataset) else "image"
            raise ValueError(f"give either {kind}_directory or {kind}_jsonl_file")
        if self.jsonl is not None and self.cache_directory is None:
            raise ValueError("cache_directory: missing; a jsonl file needs one")
        return self


class VideoDataset(_Dataset):
    """Clips with captions, cut into sections of 4 x window frames after a start frame.

    target_frames: lengths of the crops, cut down to 4 n + 1; None takes as much of every clip as
    `frame_extraction = "full"` does.
    """

    video_directory: Path | None = None
    video_jsonl_file: Path | None = None
    target_frames: tuple[PositiveInt, ...] | None = option(
        None,
        "Target frames: length of a piece, 1 more than a multiple of 36. Not for full.",
        initial=37,
        low=5,
        high=MAX_FRAMES,
    )
    frame_extraction: Extraction = option(
        "head",
        "Frame extraction: which part of a clip is used. full is as much of it as max_frames "
        "allows; the others take pieces of target_frames, from its head, one after the other "
        "(chunk), every frame_stride frames (slide) or frame_sample of them evenly (uniform).",
        initial="full",
    )
    frame_stride: PositiveInt = option(
        1,
        "Frame stride, of slide: from the start of one piece to the next.",
        high=MAX_FRAMES,
    )
    frame_sample: PositiveInt = option(
        1, "Frame samples, of uniform: pieces of each clip.", high=1000
    )
    max_frames: PositiveInt = option(
        129, "Max frames, of full: the most of a clip.", low=5, high=MAX_FRAMES
    )
    source_fps: float | None = option(
        None,
        "Source fps: frame rate of the clips, where it is above 30. Frames are left out to come to "
        "30.",
        none=0.0,
        absent="every frame",
        gt=0,
        high=1000.0,
    )

    @property
    def folder(self) -> Path | None:
        return self.video_directory

    @property
    def jsonl(self) -> Path | None:
        return self.video_jsonl_file

    @property
    def shortest(self) -> int:
        """Frames of a start image and one section."""
        return FRAME_STEP * self.window + 1

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple((n - 1) // FRAME_STEP * FRAME_STEP + 1 for n in self.target_frames or ())

    def unused(self) -> list[str]:
        used = {
            "control_directory": False,
            "target_frames": not self.takes_all,
            "max_frames": self.takes_all,
            "frame_stride": self.frame_extraction == "slide",
            "frame_sample": self.frame_extraction == "uniform",
        }
        return [key for key, does in used.items() if not does]

    @property
    def takes_all(self) -> bool:
        return self.frame_extraction == "full" or self.target_frames is None

    @model_validator(mode="after")
    def _long_enough(self) -> VideoDataset:
        lengths = (self.max_frames,) if self.takes_all else self.lengths
        key = "max_frames" if self.takes_all else "target_frames"
        if min(lengths) < self.shortest:
            raise ValueError(
                f"{key}: {min(lengths)} frames are less than one section of window {self.window}; "
                f"give {self.shortest} or more"
            )
        return self


class ImageDataset(_Dataset):
    """Pictures with control images, for one-frame training.

    fp_1f_clean_indices: where the controls stand, so also how many are used; fp_1f_target_index:
    where the picture itself stands; fp_1f_no_post: leave out the blank latent after the controls.
    """

    image_directory: Path | None = None
    image_jsonl_file: Path | None = None
    multiple_target: bool = False
    no_resize_control: bool = False
    control_resolution: Any = None
    fp_1f_clean_indices: Annotated[tuple[int, ...], Field(min_length=1)]
    fp_1f_target_index: int = Field(ge=0)
    fp_1f_no_post: bool = False

    @property
    def folder(self) -> Path | None:
        return self.image_directory

    @property
    def jsonl(self) -> Path | None:
        return self.image_jsonl_file

    @model_validator(mode="after")
    def _only_what_framepack_knows(self) -> ImageDataset:
        reasons = {
            "multiple_target": "an edit has one target",
            "no_resize_control": "controls have the target's size",
            "control_resolution": "controls have the target's size",
        }
        for key, reason in reasons.items():
            if getattr(self, key):
                raise ValueError(f"{key}: {reason}; leave it out")
        return self

    @model_validator(mode="after")
    def _has_controls(self) -> ImageDataset:
        if self.folder is not None and self.control_directory is None:
            raise ValueError(
                "control_directory: missing; FramePack learns from single images as one-frame "
                "edits, from control images to a target"
            )
        return self


Dataset = VideoDataset | ImageDataset


def load_datasets(path: Path | str, defaults: Mapping[str, Any] | None = None) -> list[Dataset]:
    """The data sets of a file, or of a folder of clips with captions.

    `defaults` is for keys that the file leaves out. Raises FramePackError naming file and key.
    """
    path = Path(path)
    if is_folder(path):
        found = {**FOLDER_DEFAULTS, "video_directory": path, **(defaults or {})}
        return [validate(VideoDataset, found, f"{path}")]
    if not path.suffix:
        raise FramePackError(f"{path}: no such folder; give one with clips and captions in it")
    return _from_table(read_table(path), f"{path}", defaults or {})


def parse_datasets(
    text: str, place: str, defaults: Mapping[str, Any] | None = None
) -> list[Dataset]:
    """As `load_datasets`, of a description in TOML; `place` is what an error calls it."""
    return _from_table(parse_toml(text, place), place, defaults or {})


def _from_table(table: Mapping[str, Any], place: str, defaults: Mapping[str, Any]) -> list[Dataset]:
    if unknown := sorted(set(table) - {"general", "datasets"}):
        raise FramePackError(f"{place}: {unknown[0]}: unknown; known are general, datasets")
    general, entries = table.get("general", {}), table.get("datasets", [])
    if not isinstance(general, dict):
        raise FramePackError(f"{place}: general: not a table; write [general]")
    if not isinstance(entries, list) or not entries:
        raise FramePackError(f"{place}: datasets: missing; write a [[datasets]] table for each")
    needless: dict[str, None] = {}
    general = _without_needless(general, needless)
    validate(General, general, f"{place}: general")
    datasets = []
    for i, entry in enumerate(entries, 1):
        kept = _without_needless(entry, needless) if isinstance(entry, dict) else entry
        dataset = _dataset(kept, {**defaults, **general}, f"{place}: datasets {i}")
        needless |= {key: None for key in dataset.unused() if key in kept}
        datasets.append(dataset)
    check_caches(datasets, place)
    if needless:
        warn(f"{place}: {', '.join(needless)}: not needed here, ignored")
    return datasets


def _without_needless(table: Mapping[str, Any], found: dict[str, None]) -> dict[str, Any]:
    found |= {key: None for key in table if key in OF_OTHER_MODELS}
    return {key: value for key, value in table.items() if key not in OF_OTHER_MODELS}


def _dataset(entry: Any, shared: dict[str, Any], place: str) -> Dataset:
    if not isinstance(entry, dict):
        raise FramePackError(f"{place}: not a table; write [[datasets]]")
    is_video = any(key.startswith("video_") for key in entry)
    is_image = any(key.startswith("image_") for key in entry)
    if is_video == is_image:
        what = "both videos and images" if is_video else "neither videos nor images"
        raise FramePackError(
            f"{place}: it names {what}; give one of video_directory, "
            "video_jsonl_file, image_directory, image_jsonl_file"
        )
    kind = VideoDataset if is_video else ImageDataset
    shared = {key: value for key, value in shared.items() if key in kind.model_fields}
    return validate(kind, {**shared, **entry}, place)


def check_caches(datasets: list[Dataset], place: str) -> None:
    """Refuse two data sets with one folder of caches, where one's files would replace another's."""
    owner: dict[Path, int] = {}
    for i, dataset in enumerate(datasets, 1):
        folder = dataset.cache.absolute()
        if folder in owner:
            raise FramePackError(
                f"{place}: data sets {owner[folder]} and {i} share the cache_directory "
                f"{dataset.cache}; give each its own"
            )
        owner[folder] = i
