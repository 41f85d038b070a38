"""What one training sample of a DiT consists of, as tables that the device can draw from.

The latents of a clip form a bank of rows. A layout says which rows are the target and which are
its context, at which positions of the rotary embedding, and whose caption and picture belong to it.
The positions are those of the plans that inference uses; drawing a batch is then one gather.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from framepack_core.sampling.sections import (
    HISTORY,
    HISTORY_LENGTH,
    WINDOW,
    Mode,
    Section,
    plan_f1,
    plan_framepack,
)

SECTIONS = 4  # of the clips in memory
LATENTS = 1 + WINDOW * SECTIONS
BOUNDARY = LATENTS  # rows from here: the pictures at the section boundaries, encoded alone
ZERO = BOUNDARY + SECTIONS + 1  # the row that stands for "nothing finished yet"
BANK = ZERO + 1
LONGEST = 8  # sections of the longest plan that is trained

Group = Literal["steady", "changing", "travel_1", "travel_2", "travel_4"]
End = Literal["none", "first_section", "persistent"]

PARTS = (WINDOW, 1 + HISTORY[0], HISTORY[1], HISTORY[2])
"""Rows of a layout: target, clean, 2x, 4x."""


@dataclass(frozen=True)
class Layout:
    """One way to cut a training sample out of a clip.

    rows and indices [29] in the order of PARTS; boundary: the picture that the image encoder sees;
    section: whose caption it has; then: how likely the caption says "then" after a change;
    weight: how often it is drawn, relative to its group.
    """

    rows: tuple[int, ...]
    indices: tuple[int, ...]
    boundary: int
    section: int
    then: float
    weight: float


def layouts(mode: Mode, group: Group) -> list[Layout]:
    """All layouts that a group of clips is trained with."""
    if mode == "f1":
        return list(_f1(virtual=group == "steady"))
    if group == "steady":
        return list(_framepack_steady())
    if group == "changing":
        return [*_framepack_changing(), *_framepack_cuts()]
    return list(_framepack_travel(int(group.removeprefix("travel_"))))


def groups(mode: Mode) -> dict[Group, float]:
    """Which clips a mode learns from, and their shares of a batch."""
    if mode == "f1":
        return {"steady": 0.45, "changing": 0.55}
    travel = {"travel_1": 0.08, "travel_2": 0.06, "travel_4": 0.04}
    return {"steady": 0.5, "changing": 0.32, **travel}


def row(origin: int, frame: int) -> int:
    """The bank row of latent `frame` (1 or later) of a plan that starts at section `origin`.

    Beyond the clip the last section repeats: a steady motion has come to rest by then, or turns.
    """
    absolute = WINDOW * origin + frame
    if absolute >= LATENTS:
        absolute = LATENTS - WINDOW + (absolute - LATENTS) % WINDOW
    return absolute


def framepack_layout(
    section: Section,
    sections: int,
    *,
    origin: int = 0,
    end: End = "none",
    future: Sequence[int] | None = None,
    then: float = 1.0,
    weight: float = 1.0,
) -> Layout:
    """A section of an inverted anti-drifting plan, with the latents after it as its history.

    `future` are bank rows that take the place of what truly follows.
    """
    last = section.index == sections - 1
    if future is None:
        first = WINDOW * (section.index + 1) + 1
        future = [row(origin, frame) for frame in range(first, WINDOW * sections + 1)]
    if end == "persistent" or (end == "first_section" and last):
        future = [*future, BOUNDARY + min(origin + sections, SECTIONS)]
    history = [*future, *[ZERO] * HISTORY_LENGTH][:HISTORY_LENGTH]
    return _layout(section, origin, (BOUNDARY + origin, *history), then, weight)


def f1_layout(
    section: Section, *, origin: int = 0, start: int | None = None, weight: float = 1.0
) -> Layout:
    """A section of an F1 plan, with the latents before it as its history.

    `start` is the boundary whose picture is shown as the start image, if it is another one.
    """
    past = [BOUNDARY + origin, *(row(origin, f) for f in range(1, WINDOW * section.index + 1))]
    past = [*[ZERO] * HISTORY_LENGTH, *past][-HISTORY_LENGTH:]
    one, two, four = HISTORY
    clean_4x, clean_2x, near = past[:four], past[four : four + two], past[-one:]
    shown = origin if start is None else start
    layout = _layout(section, origin, (BOUNDARY + shown, *near, *clean_2x, *clean_4x), 0.5, weight)
    return replace(layout, boundary=shown)


def _layout(
    section: Section, origin: int, context: Iterable[int], then: float, weight: float
) -> Layout:
    first = WINDOW * section.index + 1
    target = [row(origin, frame) for frame in range(first, first + WINDOW)]
    indices = (
        *section.latent_indices,
        *section.clean_indices,
        *section.clean_2x_indices,
        *section.clean_4x_indices,
    )
    return Layout(
        rows=(*target, *context),
        indices=indices,
        boundary=origin,
        section=min(origin + section.index, SECTIONS - 1),
        then=then,
        weight=weight,
    )


def _framepack_steady() -> Iterator[Layout]:
    """Plans of 1 to 8 sections. The section made first has no future to read the motion off."""
    counts = {1: 0.22, 2: 0.20, 3: 0.14, 4: 0.14} | dict.fromkeys(range(5, LONGEST + 1), 0.075)
    ends: dict[End, float] = {"none": 0.7, "first_section": 0.1, "persistent": 0.2}
    for sections, count_weight in counts.items():
        origins = range(max(1, SECTIONS - sections + 1))
        for section in plan_framepack(sections).sections:
            first_made = section.index == sections - 1
            share = 0.5 if first_made else 0.5 / (sections - 1)
            for origin in origins:
                base = count_weight * share * (2.0 if origin == 0 else 1.0) / (len(origins) + 1)
                for end, end_weight in ends.items():
                    weight = base * end_weight
                    if first_made:
                        yield framepack_layout(
                            section, sections, origin=origin, end=end, weight=weight
                        )
                        continue
                    yield framepack_layout(
                        section, sections, origin=origin, end=end, weight=0.85 * weight
                    )
                    if end == "none":
                        yield framepack_layout(
                            section, sections, origin=origin, future=(), weight=0.15 * base
                        )


def _framepack_changing() -> Iterator[Layout]:
    """Plans whose motion changes at the joins; the captions say "then" from the change on."""
    for sections in (2, 3, 4):
        for section in plan_framepack(sections).sections:
            for end, share in (("none", 0.7), ("persistent", 0.3)):
                weight = 0.3 * share / (3 * sections)
                yield framepack_layout(section, sections, end=end, weight=weight)


def _framepack_cuts() -> Iterator[Layout]:
    """Sections at padding 0 that obey picture and caption, whatever the future shows.

    So a plan with all paddings 0, or with a picture of its own for a section, follows them.
    """
    (section,) = plan_framepack(1).sections
    for origin in range(SECTIONS):
        after = [row(0, f) for f in range(WINDOW * (origin + 1) + 1, LATENTS)]
        futures = [((), 0.3), (after, 0.3)]
        starts = [s for s in range(SECTIONS) if s != origin + 1]
        for start in starts:
            other = [row(0, f) for f in range(WINDOW * start + 1, LATENTS)]
            futures.append((other, 0.4 / len(starts)))
        for future, share in futures:
            weight = 0.7 * share / SECTIONS
            yield framepack_layout(
                section, 1, origin=origin, future=future, then=0.3, weight=weight
            )


def _framepack_travel(leg: int) -> Iterator[Layout]:
    """Straight to a given end frame, in legs of so many sections."""
    for origin in range(0, SECTIONS, leg):
        for section in plan_framepack(leg).sections:
            for end in get_args(End)[1:]:
                yield framepack_layout(section, leg, origin=origin, end=end)


def _f1(*, virtual: bool) -> Iterator[Layout]:
    """Every section of every start; a tenth with another picture of the scene as its start."""
    for origin in range(SECTIONS):
        count = LONGEST if virtual and origin == 0 else SECTIONS - origin
        for section in plan_f1(count).sections:
            weight = (2.0 if section.index == 0 else 1.0) / (1 + origin)
            yield f1_layout(section, origin=origin, weight=0.9 * weight)
            for start in range(SECTIONS + 1):
                share = 0.1 / (SECTIONS + 1)
                yield f1_layout(section, origin=origin, start=start, weight=share * weight)


@dataclass(frozen=True)
class LayoutTable:
    """Layouts as tensors on a device: rows, indices [N, 29]; the rest [N]."""

    rows: Tensor
    indices: Tensor
    boundary: Tensor
    section: Tensor
    then: Tensor
    cumulative: Tensor

    @classmethod
    def of(cls, items: Sequence[Layout], device: torch.device) -> LayoutTable:
        weights = torch.tensor([item.weight for item in items], dtype=torch.float64)
        cumulative = (weights / weights.sum()).cumsum(0).float()
        return cls(
            torch.tensor([item.rows for item in items], device=device),
            torch.tensor([item.indices for item in items], device=device),
            torch.tensor([item.boundary for item in items], device=device),
            torch.tensor([item.section for item in items], device=device),
            torch.tensor([item.then for item in items], device=device),
            cumulative.to(device),
        )

    def draw(self, count: int) -> Tensor:
        """Row numbers [count], each as likely as its weight."""
        uniform = torch.rand(count, device=self.cumulative.device)
        found = torch.searchsorted(self.cumulative, uniform)
        return found.clamp(max=len(self.cumulative) - 1)
