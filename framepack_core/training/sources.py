"""Where clips, pictures, control images and captions of a data set are: a folder or a jsonl."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..parsing.json_toml import parse_json
from ..runtime.errors import FramePackError
from ..runtime.files import is_file, is_folder, list_folder, natural_key, read_text, split_lines
from .dataset_config import Dataset, ImageDataset
from .media import IMAGES, VIDEOS, is_frames, is_image, is_video

SECTION_CAPTIONS = ".sections"  # clip.sections.txt beside clip.txt
# What a file with the stem of a caption may be without being a clip or a picture.
NOTES = {
    *(".txt", ".caption", ".json", ".jsonl", ".toml", ".yaml", ".yml", ".csv", ".md", ".xml"),
    *(".srt", ".vtt", ".ass", ".log", ".html", ".safetensors", ".pt", ".npz", ".npy"),
}


@dataclass(frozen=True)
class Source:
    """One clip or picture; `section_captions` is a section spec that wins over the caption."""

    path: Path
    caption: str
    section_captions: str | None = None
    controls: tuple[Path, ...] = ()

    @property
    def stem(self) -> str:
        """What the cache files of it begin with."""
        return self.path.name if is_folder(self.path) else self.path.stem


def find_sources(dataset: Dataset) -> list[Source]:
    """All clips or pictures of a data set, each with its caption; a folder's in natural order."""
    found = list(_from_folder(dataset) if dataset.folder is not None else _from_jsonl(dataset))
    place = dataset.folder or dataset.jsonl
    if not found:
        kind = "images" if isinstance(dataset, ImageDataset) else "video clips"
        raise FramePackError(f"{place}: holds no {kind}; put some there")
    _check_stems(found, str(place))
    return found


def _check_stems(sources: list[Source], place: str) -> None:
    """Cache files are named by stem alone, as musubi-tuner's are."""
    seen: dict[str, Path] = {}
    for source in sources:
        if source.stem in seen:
            raise FramePackError(
                f"{place}: {seen[source.stem]} and {source.path} have the same name, so their "
                "caches would be one; rename one of them"
            )
        seen[source.stem] = source.path


# --- folders --------------------------------------------------------------------------------------


def _from_folder(dataset: Dataset) -> Iterator[Source]:
    folder = dataset.folder
    assert folder is not None
    if not is_folder(folder):
        raise FramePackError(f"{folder}: no such folder; check {_key(dataset)}_directory")
    pictures = isinstance(dataset, ImageDataset)

    def wanted(path: Path) -> bool:
        if pictures or not is_folder(path):
            return is_image(path) if pictures else is_video(path)
        # Other folders of pictures, such as samples, lie here too: a caption tells a clip.
        caption = folder / f"{path.name}{dataset.caption_extension}"
        return is_file(caption) and is_frames(path)

    paths = list(filter(wanted, list_folder(folder)))
    _check_kinds(dataset, folder, {path.name if is_folder(path) else path.stem for path in paths})
    controls = _match_controls(dataset, [path.stem for path in paths]) if pictures else {}
    for path in paths:
        stem = path.name if is_folder(path) else path.stem
        extension = dataset.caption_extension
        caption = _read_caption(path, folder / f"{stem}{extension}")
        own = folder / f"{stem}{SECTION_CAPTIONS}{extension}"
        sections = read_text(own) if is_file(own) else None
        yield Source(path, caption, sections, controls.get(stem, ()))


def _check_kinds(dataset: Dataset, folder: Path, found: set[str]) -> None:
    """Refuse a folder where a file has a caption, and so is meant, but is of no kind we read.

    Clips among pictures and pictures among clips are left to a data set of their own.
    """
    captions = {
        path.name.removesuffix(dataset.caption_extension)
        for path in list_folder(folder)
        if path.name.endswith(dataset.caption_extension)
    }
    for path in list_folder(folder):
        if path.stem in captions - found and path.suffix.lower() not in IMAGES | VIDEOS:
            _refuse_unknown(path, dataset, "it has a caption")


def _refuse_unknown(path: Path, dataset: Dataset, meant: str) -> None:
    """Raise for a file that is meant to be read, but is neither of a known kind nor a note."""
    if path.suffix.lower() not in NOTES and is_file(path):
        readable = IMAGES if isinstance(dataset, ImageDataset) else VIDEOS
        raise FramePackError(
            f"{path}: {meant}, but {path.suffix or 'its kind'} is not read; convert it to one of "
            f"{', '.join(sorted(readable))}, or take it out of the folder"
        )


def _read_caption(path: Path, file: Path) -> str:
    """What a caption file says; an empty one is an empty caption, as in musubi-tuner."""
    if not is_file(file):
        raise FramePackError(f"{path}: no caption; write one into {file.name} next to it")
    return read_text(file).strip()


def _match_controls(dataset: ImageDataset, stems: list[str]) -> dict[str, tuple[Path, ...]]:
    """Control images by the stem of their picture: `stem.*` first, then `stem_0.*`, `stem_1.*`.

    A file belongs to the longest stem that fits it.
    """
    folder = dataset.control_directory
    assert folder is not None
    if not is_folder(folder):
        raise FramePackError(f"{folder}: no such folder; check control_directory")
    found: dict[str, list[tuple[int, Path]]] = {stem: [] for stem in stems}
    longest_first = sorted(stems, key=len, reverse=True)
    for path in list_folder(folder):
        for stem in longest_first:
            if match := re.fullmatch(rf"{re.escape(stem)}(?:_(\d+))?", path.stem):
                if not is_image(path):
                    _refuse_unknown(path, dataset, f"it is named as a control image of {stem}")
                    break
                found[stem].append((-1 if match[1] is None else int(match[1]), path))
                break

    def by_number(file: tuple[int, Path]) -> tuple[object, ...]:
        return (file[0], natural_key(file[1].name))

    return {
        stem: tuple(path for _, path in sorted(files, key=by_number))
        for stem, files in found.items()
    }


# --- jsonl ----------------------------------------------------------------------------------------


def _from_jsonl(dataset: Dataset) -> Iterator[Source]:
    path = dataset.jsonl
    assert path is not None
    if not is_file(path):
        raise FramePackError(f"{path}: no such file; check {_key(dataset)}_jsonl_file")
    for number, line in enumerate(split_lines(read_text(path)), 1):
        if line.strip():
            yield _read_entry(line, f"{path} line {number}", dataset)


def _read_entry(line: str, place: str, dataset: Dataset) -> Source:
    entry = parse_json(line, place)
    if not isinstance(entry, dict):
        raise FramePackError(f"{place}: not an object; write {{...}}")
    key = f"{_key(dataset)}_path"
    path = Path(_text(entry, key, place))
    pictures = isinstance(dataset, ImageDataset)
    if not (is_image(path) if pictures else is_video(path) or is_frames(path)):
        raise _no_media(path, f"{place}: {key}", IMAGES if pictures else VIDEOS)
    sections = entry.get("section_captions")
    if sections is not None and not isinstance(sections, str):
        raise FramePackError(f"{place}: section_captions: not a text such as '0:...;;;1:...'")
    caption = _text(entry, "caption", place, empty=True).strip()
    return Source(path, caption, sections, _controls(entry, place))


def _no_media(path: Path, place: str, readable: set[str]) -> FramePackError:
    if not os.path.exists(path):
        return FramePackError(f"{place}: {path} is not there")
    return FramePackError(f"{place}: {path} is not read; use one of {', '.join(sorted(readable))}")


def _controls(entry: dict[str, Any], place: str) -> tuple[Path, ...]:
    """`control_path`, then `control_path_N` by number."""
    numbered = {}
    for key in entry:
        if match := re.fullmatch(r"control_path(?:_(\d+))?", key):
            numbered[-1 if match[1] is None else int(match[1])] = Path(_text(entry, key, place))
    for path in numbered.values():
        if not is_image(path):
            raise _no_media(path, f"{place}: control_path", IMAGES)
    return tuple(numbered[number] for number in sorted(numbered))


def _text(entry: dict[str, Any], key: str, place: str, *, empty: bool = False) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not (empty or value.strip()):
        missing = "missing" if empty else "missing or empty"
        raise FramePackError(f"{place}: {key}: {missing}; give a text")
    return value


def _key(dataset: Dataset) -> str:
    return "image" if isinstance(dataset, ImageDataset) else "video"
