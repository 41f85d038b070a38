"""Guidance has its effect on the built-in model: `evaluate_guidance` in short, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from toyworld import evaluate_guidance as measures
from toyworld.evaluate import Toy

from framepack_core.sampling.plan import Plan
from framepack_core.sampling.sections import plan_f1, plan_framepack
from framepack_core.toyworld import SNAPSHOT

CASES, STEPS = 1, 8


@pytest.fixture(scope="module")
def toy() -> Iterator[Toy]:
    with torch.inference_mode():
        yield Toy.load(SNAPSHOT, torch.device("cpu"))


@pytest.mark.parametrize(
    "plan",
    [plan_framepack(2, paddings=[0] * 2), pytest.param(plan_f1(2), marks=pytest.mark.slow)],
)
def test_sections_follow_prompts_of_their_own(toy: Toy, plan: Plan) -> None:
    assert measures.sections_that_follow(toy, STEPS, plan, 0, CASES).tolist() == [[True, True]]


def test_a_section_image_places_the_shape(toy: Toy) -> None:
    assert measures.section_images(toy, STEPS, 0, CASES).all()


def test_an_end_image_draws_the_shape_by_its_strength(toy: Toy) -> None:
    [[none, half, full]] = measures.end_errors(toy, 4, 1, 2, 1).tolist()
    assert none > 5 > half > full and full < 1


def test_one_frame_is_ahead_of_its_control_image(toy: Toy) -> None:
    ahead = measures.displacements(toy, STEPS, 0, CASES)
    assert ahead[:, 0].min() > 1 and (ahead.diff(dim=1) > 0).all()


def test_a_mask_hides_the_shape_of_a_control_image(toy: Toy) -> None:
    assert measures.masked_controls(toy, STEPS, 0, CASES).tolist() == [[True, False]]


@pytest.mark.parametrize("plan", [plan_framepack(3), plan_f1(3)])
def test_another_seed_leaves_what_was_made_before(toy: Toy, plan: Plan) -> None:
    assert measures.seeded(toy, 2, plan, 0, CASES).all()
