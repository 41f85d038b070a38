"""Plans against hand-worked layouts."""

from __future__ import annotations

import pytest

from framepack_core.runtime.errors import FramePackError
from framepack_core.sampling.sections import (
    check_size,
    plan_f1,
    plan_framepack,
    sections_for_seconds,
)


def test_framepack_runs_backwards_with_shrinking_paddings() -> None:
    plan = plan_framepack(6)
    assert [s.index for s in plan.sections] == [5, 4, 3, 2, 1, 0]
    assert [s.padding for s in plan.sections] == [3, 2, 2, 2, 1, 0]
    assert plan.frames == 217 and plan.latent_frames == 55


def test_framepack_layout_by_hand() -> None:
    section = plan_framepack(2, window=4).sections[0]
    assert section.latent_indices == (5, 6, 7, 8)
    assert section.clean_indices == (0, 9)
    assert section.clean_2x_indices == (10, 11)
    assert section.clean_4x_indices == tuple(range(12, 28))


def test_f1_layout_by_hand() -> None:
    first, second = plan_f1(2, window=3).sections
    assert (first.index, second.index) == (0, 1)
    assert first.clean_4x_indices == tuple(range(1, 17))
    assert first.clean_2x_indices == (17, 18)
    assert first.clean_indices == (0, 19)
    assert first.latent_indices == second.latent_indices == (20, 21, 22)


@pytest.mark.parametrize(
    ("seconds", "sections"), [(0.1, 1), (1.2, 1), (5, 4), (5.4, 4), (6.6, 6), (60, 50)]
)
def test_seconds_are_a_way_to_say_sections(seconds: float, sections: int) -> None:
    assert sections_for_seconds(seconds) == sections


def test_frames_of_a_section() -> None:
    plan = plan_framepack(2)
    assert [plan.frames_of(s) for s in plan.sections] == [(37, 72), (1, 36)]


def test_description_states_size_length_and_order() -> None:
    text = plan_framepack(2).describe(640, 480)
    assert text.splitlines() == [
        "framepack: 640x480, 73 frames, 2.43 s at 30 fps, 2 sections of 36 frames (window 9)",
        "  made 1: section 1, frames 37-72 (1.23-2.40 s), padding 1",
        "  made 2: section 0, frames 1-36 (0.03-1.20 s), padding 0",
    ]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: plan_framepack(0), "sections: 0"),
        (lambda: plan_f1(2.5), "sections: 2.5"),
        (lambda: plan_framepack(10**9), "1000000000 are more than 100000"),
        (lambda: plan_framepack(2, window=0), "window: 0"),
        (lambda: plan_f1(2, window=99), "window: 99"),
        (lambda: plan_framepack(3, paddings=[1, 0]), "2 given for 3 sections"),
        (lambda: plan_framepack(2, paddings=[-1, 0]), "paddings: -1 must be at least 0"),
        (lambda: sections_for_seconds(0), "seconds: 0"),
        (lambda: sections_for_seconds(float("nan")), "seconds: nan"),
        (lambda: check_size(72, 64), "use 64x64"),
        (lambda: check_size(640, 0), "use 640x16"),
    ],
)
def test_bad_plans_say_what_to_mend(make, words: str) -> None:
    with pytest.raises(FramePackError, match=words):
        make()
