"""A word that Toy World does not know: clips that teach it.

"a red circle hops": in a section it goes up and comes back to where it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..runtime.files import atomic_path
from ..runtime.images import save_png
from ..runtime.video import VideoWriter
from . import render
from .render import COLOUR_NAMES, COLOURS, FORMS, MOTIONS, SECTION_FRAMES, Clips

WORD = "hops"
HEIGHT = 12.0  # pixels
TAUGHT = 8  # clips that show the word; as many show the motions that must not be forgotten
FIRST_SEED = 1 << 32
MIDDLE, MIDDLE_INDEX = SECTION_FRAMES // 2, 5  # of a section: the frame, and the latent it is in
CRF = 8  # 4:2:0 takes half of the colour's detail already, of which 64 pixels have little


@dataclass(frozen=True)
class Lesson:
    """A clip of a start frame and one section, and its caption."""

    clips: Clips
    caption: str
    name: str


def lessons() -> Iterator[Lesson]:
    """Clips of the word and one of every known motion, in all forms and colours."""
    for i in range(TAUGHT + len(MOTIONS)):
        form, colour = i % len(FORMS), i % len(COLOURS)
        clips = render.draw([FIRST_SEED + i], 1, central=True)
        clips = replace(clips, form=torch.tensor([form]), colour=torch.tensor([colour]))
        if i < TAUGHT:
            yield Lesson(hop(clips), prompt(form, colour, i), f"{i:02d}_{WORD}")
        else:
            known = i - TAUGHT
            caption = render.caption(form, colour, known, variant=i % render.CAPTION_VARIANTS)
            clips = render.with_motions(clips, torch.tensor([[known]]))
            yield Lesson(clips, caption, f"{i:02d}_{MOTIONS[known]}")


def write_lessons(folder: Path) -> list[Path]:
    """The clips as mp4 files with captions beside them; clips that are there are left alone."""
    paths = []
    for lesson in lessons():
        path = folder / f"{lesson.name}.mp4"
        if not (path.is_file() and path.with_suffix(".txt").is_file()):
            _write(lesson, path)
        paths.append(path)
    return paths


def _write(lesson: Lesson, path: Path) -> None:
    side = render.SIZE
    with VideoWriter(path, width=side, height=side, fps=render.FPS, crf=CRF) as video:
        for frame in render.render_uint8(lesson.clips)[0].numpy():
            video.write(frame)
    _write_text(path.with_suffix(".txt"), lesson.caption)


def write_pairs(folder: Path) -> Path:
    """The same for one-frame edits: pictures of the start and of the middle of each section.

    Returns the description of the data set, which names the folders; pictures that are there are
    left alone.
    """
    before, after = folder / "before", folder / "after"
    for lesson in lessons():
        paths = [place / f"{lesson.name}.png" for place in (before, after)]
        caption = paths[1].with_suffix(".txt")
        if not all(path.is_file() for path in (*paths, caption)):
            frames = render.render_uint8(lesson.clips, frames=torch.tensor([0, MIDDLE]))[0]
            for path, frame in zip(paths, frames.numpy(), strict=True):
                save_png(path, frame)
            _write_text(caption, lesson.caption)
    description = folder / "dataset.toml"
    _write_text(
        description,
        "[[datasets]]\n"
        f"image_directory = {_quoted(after)}\n"
        f"control_directory = {_quoted(before)}\n"
        "fp_1f_clean_indices = [0]\n"
        f"fp_1f_target_index = {MIDDLE_INDEX}",
    )
    return description


def _quoted(path: Path) -> str:
    """A path as a text of TOML, which escapes as JSON does."""
    return json.dumps(str(path.absolute()), ensure_ascii=False)


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")


def hop(clips: Clips) -> Clips:
    """The same shapes from the same start frames, hopping for a section."""
    time = torch.arange(SECTION_FRAMES + 1) / SECTION_FRAMES
    track = clips.track[:, :1].repeat(1, SECTION_FRAMES + 1, 1)
    track[..., 1] -= HEIGHT * torch.sin(math.pi * time).square()
    return replace(clips, track=track)


def prompt(form: int, colour: int, variant: int) -> str:
    """What asks for the word."""
    article = ("a", "the")[variant % 2]
    return f"{article} {COLOUR_NAMES[colour]} {FORMS[form]} {WORD}"
