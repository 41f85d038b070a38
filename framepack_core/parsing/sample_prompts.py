"""Prompts of the samples that a training run makes: a text, or a .toml or .json file.

A text has a prompt line each, where --f counts frames and --g is the distilled guidance, as in
musubi-tuner. A .toml file has [[prompt.subset]] tables over the settings that they share in
[prompt], a .json file a list of tables or lines; a table has the names of SamplePrompt's fields.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..runtime.errors import FramePackError
from ..runtime.files import read_text
from ..runtime.options import MAX_SEED, NonEmpty, Settings, option
from .json_toml import parse_json, parse_toml
from .prompt_lines import (
    line_options,
    parse_options,
    read_prompt_file,
    repeats,
    set_option,
)


class SamplePrompt(Settings):
    """One sample of a training run; None is the trainer's default."""

    prompt: str = ""
    width: int | None = option(None, "Width.", lines=("w",), ge=1)
    height: int | None = option(None, "Height.", lines=("h",), ge=1)
    frame_count: int | None = option(None, "Frames.", lines=("f",), ge=1)
    video_sections: int | None = option(None, "Sections.", lines=("vs",), ge=1)
    seed: int | None = option(None, "Seed.", lines=("d",), ge=0, le=MAX_SEED)
    sample_steps: int | None = option(None, "Steps.", lines=("s",), ge=1)
    guidance_scale: float | None = option(None, "Distilled guidance scale.", lines=("g",), ge=0)
    cfg_scale: float | None = option(None, "CFG scale.", lines=("l",), ge=0)
    discrete_flow_shift: float | None = option(None, "Flow shift.", lines=("fs",), gt=0)
    negative_prompt: str | None = option(None, "Negative prompt.", lines=("n",))
    image_path: NonEmpty | None = option(None, "Start image.", lines=("i",))
    end_image_path: NonEmpty | None = option(None, "End image.", lines=("ei",))
    control_image_path: tuple[NonEmpty, ...] = option((), "Control images.", lines=("ci",))
    control_image_mask_path: tuple[NonEmpty, ...] = option((), "Their masks.", lines=("cim",))
    one_frame: NonEmpty | None = option(None, "One frame.", lines=("of",))

    @property
    def is_still(self) -> bool:
        """Whether it asks for a picture: a video has a length."""
        return self.video_sections is None and (self.frame_count or 1) == 1

    def check(self) -> None:
        """Raise for what no sample can be made without."""
        if self.image_path is None:
            raise FramePackError(
                f"sample {self.prompt!r}: no start image; FramePack needs one (--i, image_path)"
            )


OPTIONS = line_options(SamplePrompt)
_BY_FIELD = {leaf.name: leaf for leaf in OPTIONS.values()}
_BOOKKEEPING = {"enum", "subset"}  # keys of musubi-tuner's own that say nothing


def parse_sample_line(line: str) -> SamplePrompt:
    """Read a sample of a line; errors name the option."""
    return SamplePrompt(**parse_options(line, OPTIONS))


def load_sample_prompts(path: str | Path) -> list[SamplePrompt]:
    """All samples of a file; errors name the file and the place in it."""
    path = Path(path)
    read = _READERS.get(path.suffix.lower())
    if read is None:
        return [_read_at(f"{path} line {i}", line) for i, line in read_prompt_file(path)]
    items = read(path)
    return [_read_at(f"{path} prompt {i}", item) for i, item in enumerate(items, 1)]


def _read_at(place: str, item: Any) -> SamplePrompt:
    try:
        return parse_sample_line(item) if isinstance(item, str) else _read_table(item)
    except FramePackError as error:
        raise FramePackError(f"{place}: {error}") from None


def _read_table(table: Any) -> SamplePrompt:
    if not isinstance(table, dict):
        raise FramePackError(f"{table!r} is neither a line nor a table")
    if not isinstance(table.get("prompt"), str):
        raise FramePackError("prompt: missing, or no text")
    values: dict[str, Any] = {"prompt": table["prompt"]}
    for key in table:
        if key == "prompt" or key in _BOOKKEEPING:
            continue
        leaf = _BY_FIELD.get(key)
        if leaf is None:
            raise FramePackError(f"{key}: unknown; known are prompt, {', '.join(_BY_FIELD)}")
        several = repeats(leaf) and isinstance(table[key], list)
        for value in table[key] if several else [table[key]]:
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise FramePackError(f"{key}: {value!r} is neither a text nor a number")
            set_option(values, leaf, str(value), key)
    return SamplePrompt(**values)


def _read_toml(path: Path) -> list[Any]:
    shared = parse_toml(read_text(path), str(path)).get("prompt")
    subsets = shared.pop("subset", None) if isinstance(shared, dict) else None
    rows = isinstance(subsets, list) and all(isinstance(s, dict) for s in subsets)
    if not (isinstance(shared, dict) and isinstance(subsets, list) and rows):
        raise FramePackError(f"{path}: no [[prompt.subset]] in it; write one for each prompt")
    return [{**shared, **subset} for subset in subsets]


def _read_json(path: Path) -> list[Any]:
    items = parse_json(read_text(path), str(path))
    if not isinstance(items, list):
        raise FramePackError(f"{path}: it should hold a list of prompts")
    return items


_READERS: dict[str, Callable[[Path], list[Any]]] = {".toml": _read_toml, ".json": _read_json}
