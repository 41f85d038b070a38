"""Where clips, pictures, control images and captions of a data set are: a folder or a jsonl."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.errors import FramePackError
from ..runtime.texts import parse_json
from .dataset_config import Dataset, ImageDataset
from .media import is_frames, is_image, is_video

SECTION_CAPTIONS = ".sections"  # clip.sections.txt beside clip.txt


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
        return self.path.name if self.path.is_dir() else self.path.stem


def find_sources(dataset: Dataset) -> list[Source]:
    """All clips or pictures of a data set, in a fixed order, each with its caption."""
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
    if not folder.is_dir():
        raise FramePackError(f"{folder}: no such folder; check {_key(dataset)}_directory")
    pictures = isinstance(dataset, ImageDataset)

    def wanted(path: Path) -> bool:
        if pictures or not path.is_dir():
            return is_image(path) if pictures else is_video(path)
        # Other folders of pictures, such as samples, lie here too: a caption tells a clip.
        return (folder / f"{path.name}{dataset.caption_extension}").is_file() and is_frames(path)

    paths = sorted(path for path in folder.iterdir() if wanted(path))
    controls = _match_controls(dataset, [path.stem for path in paths]) if pictures else {}
    for path in paths:
        stem = path.name if path.is_dir() else path.stem
        extension = dataset.caption_extension
        caption = _read_caption(path, folder / f"{stem}{extension}")
        own = folder / f"{stem}{SECTION_CAPTIONS}{extension}"
        sections = _read_text(own) if own.is_file() else None
        yield Source(path, caption, sections, controls.get(stem, ()))


def _read_caption(path: Path, file: Path) -> str:
    if not file.is_file():
        raise FramePackError(f"{path}: no caption; write one into {file.name} beside it")
    caption = _read_text(file).strip()
    if not caption:
        raise FramePackError(f"{file}: the caption is empty; write what the clip shows")
    return caption


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FramePackError(f"{file}: cannot be read ({error}); save it as UTF-8") from None


def _match_controls(dataset: ImageDataset, stems: list[str]) -> dict[str, tuple[Path, ...]]:
    """Control images by the stem of their picture: `stem.*` first, then `stem_0.*`, `stem_1.*`.

    A file belongs to the longest stem that fits it.
    """
    folder = dataset.control_directory
    assert folder is not None
    if not folder.is_dir():
        raise FramePackError(f"{folder}: no such folder; check control_directory")
    found: dict[str, list[tuple[int, Path]]] = {stem: [] for stem in stems}
    longest_first = sorted(stems, key=len, reverse=True)
    for path in sorted(file for file in folder.iterdir() if is_image(file)):
        for stem in longest_first:
            if match := re.fullmatch(rf"{re.escape(stem)}(?:_(\d+))?", path.stem):
                found[stem].append((-1 if match[1] is None else int(match[1]), path))
                break
    return {stem: tuple(path for _, path in sorted(files)) for stem, files in found.items()}


# --- jsonl ----------------------------------------------------------------------------------------


def _from_jsonl(dataset: Dataset) -> Iterator[Source]:
    path = dataset.jsonl
    assert path is not None
    if not path.is_file():
        raise FramePackError(f"{path}: no such file; check {_key(dataset)}_jsonl_file")
    for number, line in enumerate(_read_text(path).splitlines(), 1):
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
        raise FramePackError(f"{place}: {key}: {path} is no {_key(dataset)} or not there")
    sections = entry.get("section_captions")
    if sections is not None and not isinstance(sections, str):
        raise FramePackError(f"{place}: section_captions: not a text such as '0:...;;;1:...'")
    return Source(path, _text(entry, "caption", place).strip(), sections, _controls(entry, place))


def _controls(entry: dict[str, Any], place: str) -> tuple[Path, ...]:
    """`control_path`, then `control_path_N` by number."""
    numbered = {}
    for key in entry:
        if match := re.fullmatch(r"control_path(?:_(\d+))?", key):
            numbered[-1 if match[1] is None else int(match[1])] = Path(_text(entry, key, place))
    for path in numbered.values():
        if not is_image(path):
            raise FramePackError(f"{place}: control_path: {path} is no image or not there")
    return tuple(numbered[number] for number in sorted(numbered))


def _text(entry: dict[str, Any], key: str, place: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value.strip():
        raise FramePackError(f"{place}: {key}: missing or empty; give a text")
    return value


def _key(dataset: Dataset) -> str:
    return "image" if isinstance(dataset, ImageDataset) else "video"
