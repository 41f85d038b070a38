"""Sections as FramePack-eichi shares them: a zip of pictures and a `sections.yaml`.

    default_prompt: a cat plays
    SEED: 42
    section_info:
    - section: 0
      prompt: it falls asleep

Sections are numbered as they are made: 0 is the last in time of the original model, and the first
of F1. A prompt is that of its section alone. The picture `004.png` is that of section 4 and of the
numbers before it, down to the next picture; a video begins with `start*` and ends with `end*`.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from ..runtime.errors import FramePackError
from ..runtime.files import atomic_path, free_path
from ..runtime.options import MAX_SEED
from .timeline import MAX_PROMPT, MAX_SECTIONS

LISTS = "sections.yaml", "sections.yml"
SUFFIXES = ".png", ".jpg", ".jpeg", ".webp"
MAX_LIST = 1 << 20  # bytes of the list
MAX_PICTURES = 1 << 29  # bytes of all pictures
START, END = "start", "end"
DAMAGED = (
    *(OSError, EOFError, zipfile.BadZipFile, zlib.error),
    *(RuntimeError, ValueError, struct.error),  # encrypted, or its own numbers are wrong
)
_NUMBERED = re.compile("[0-9]{3}")


class SectionWords(NamedTuple):
    """What a section has of its own: a prompt and the name of a picture."""

    prompt: str | None
    image: str | None


@dataclass(frozen=True)
class SharedSections:
    """What such a file holds; `prompts` and `images` by number.

    prompt: of sections without their own. images, start and end are names in `pictures`, which has
    the files' bytes. lost: what else it says, by name.
    """

    prompt: str
    prompts: Mapping[int, str]
    images: Mapping[int, str]
    start: str | None
    end: str | None
    seed: int | None
    pictures: Mapping[str, bytes]
    lost: tuple[str, ...]

    @property
    def least(self) -> int:
        """How many sections a video needs for all of them."""
        return 1 + max([0, *self.prompts, *self.images])

    def in_time(self, count: int, forward: bool) -> list[SectionWords]:
        """The `count` sections in order of time; forward: as F1 makes them."""
        made = [
            SectionWords(self.prompts.get(n, self.prompt), self._image(n)) for n in range(count)
        ]
        return made if forward else made[::-1]

    def write_pictures(self, folder: Path) -> Path:
        """Write the pictures into a folder of this name, or the first free one behind it."""
        folder = free_path(folder)
        for name, data in self.pictures.items():
            with atomic_path(folder / name) as temporary:
                temporary.write_bytes(data)
        return folder

    def prompt_texts(self, forward: bool) -> dict[int, str]:
        """The prompts as of a section spec, for a video that may be longer than `least`."""
        return self._texts(self.prompts, self.prompt, forward)

    def image_texts(self, forward: bool) -> dict[int, str]:
        """The names of the pictures to begin with and of sections, as of a section spec."""
        images = {n: name for n in range(self.least) if (name := self._image(n))}
        return self._texts(images, self.start, forward)

    def _texts(self, own: Mapping[int, str], rest: str | None, forward: bool) -> dict[int, str]:
        if forward and rest and 0 in own:  # or the others would take what section 0 has
            own = dict.fromkeys(range(self.least), rest) | dict(own)
        texts = {n if forward else -1 - n: text for n, text in own.items()}
        return {0: rest} | texts if rest else texts

    def _image(self, number: int) -> str | None:
        return self.images.get(min((n for n in self.images if n >= number), default=-1))


def read_shared_sections(file: Path | IO[bytes], name: str) -> SharedSections:
    """Read such a file, which may come from anywhere; `name` is what errors call it."""
    try:
        with zipfile.ZipFile(file) as archive:
            return _Reader(archive, name).read()
    except DAMAGED as error:
        raise FramePackError(f"{name}: not a zip file, or a damaged one ({error})") from None


class _Reader:
    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self.archive, self.name = archive, name
        self.left = MAX_PICTURES
        self.entries = sorted(archive.infolist(), key=lambda info: info.filename)

    def read(self) -> SharedSections:
        table = self._table()
        numbered, named = self._pictures()
        pictures = {**{f"{n:03}": info for n, info in numbered.items()}, **named}
        files = {}
        for key, info in pictures.items():
            files[f"{key}{PurePosixPath(info.filename).suffix.lower()}"] = self._bytes(info)
        names = dict(zip(pictures, files, strict=True))
        return SharedSections(
            prompt=self._text(table.pop("default_prompt", None), "default_prompt"),
            prompts=self._prompts(table.pop("section_info", None)),
            images={number: names[f"{number:03}"] for number in numbered},
            start=names.get(START),
            end=names.get(END),
            seed=self._seed(table.pop("SEED", None)),
            pictures=files,
            lost=tuple(key for key, value in table.items() if value),
        )

    def _table(self) -> dict[str, Any]:
        import yaml

        found = [e for e in self.entries if PurePosixPath(e.filename).name.lower() in LISTS]
        if not found:
            raise FramePackError(
                f"{self.name}: no {LISTS[0]} in it; take a zip that FramePack-eichi has saved"
            )
        place = f"{self.name}: {found[0].filename}"
        data = self._limited(found[0], MAX_LIST, place)
        try:
            table = yaml.safe_load(data.decode("utf-8-sig"))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise FramePackError(f"{place}: not YAML ({' '.join(str(error).split())})") from None
        if not isinstance(table, dict):
            raise FramePackError(f"{place}: it should hold section_info and default_prompt")
        return {str(key): value for key, value in table.items()}

    def _pictures(self) -> tuple[dict[int, zipfile.ZipInfo], dict[str, zipfile.ZipInfo]]:
        numbered: dict[int, zipfile.ZipInfo] = {}
        named: dict[str, zipfile.ZipInfo] = {}
        for info in self.entries:
            name = PurePosixPath(info.filename).name.lower()
            if not name.endswith(SUFFIXES):
                continue
            if _NUMBERED.match(name):
                numbered.setdefault(self._number(int(name[:3]), info.filename), info)
            for word in (START, END):
                if name.startswith(word):
                    named.setdefault(word, info)
        return numbered, named

    def _bytes(self, info: zipfile.ZipInfo) -> bytes:
        data = self._limited(info, self.left, f"{self.name}: pictures")
        self.left -= len(data)
        return data

    def _limited(self, info: zipfile.ZipInfo, most: int, what: str) -> bytes:
        with self.archive.open(info) as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise FramePackError(f"{what}: too large; nothing of it was read")
        return data

    def _prompts(self, rows: Any) -> dict[int, str]:
        if not isinstance(rows or [], list):
            raise FramePackError(f"{self.name}: section_info: it should be a list of sections")
        prompts = {}
        for place, row in enumerate(rows or []):
            where = f"section_info.{place}"
            if not isinstance(row, dict):
                raise FramePackError(f"{self.name}: {where}: no section and prompt in it")
            number = self._number(row.get("section"), f"{where}.section")
            if text := self._text(row.get("prompt"), f"{where}.prompt"):
                prompts[number] = text
        return prompts

    def _number(self, value: Any, where: str) -> int:
        if type(value) is not int or not 0 <= value < MAX_SECTIONS:
            raise FramePackError(
                f"{self.name}: {where}: {_shown(value)} is no section; use 0 to {MAX_SECTIONS - 1}"
            )
        return value

    def _text(self, value: Any, where: str) -> str:
        if value is not None and not isinstance(value, str):
            raise FramePackError(f"{self.name}: {where}: {_shown(value)} is no text")
        text = (value or "").strip()
        if len(text) > MAX_PROMPT:
            raise FramePackError(f"{self.name}: {where}: longer than {MAX_PROMPT} characters")
        return text

    def _seed(self, value: Any) -> int | None:
        if value is None or value == -1:  # another one each time
            return None
        if type(value) is not int or not 0 <= value <= MAX_SEED:
            raise FramePackError(f"{self.name}: SEED: {_shown(value)} is no seed; use 0 and up")
        return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
