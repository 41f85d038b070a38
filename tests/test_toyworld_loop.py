"""Loops of the built-in model close: `evaluate_loop` in short, on the CPU."""

from __future__ import annotations

import pytest
import torch
from toyworld.evaluate import Toy
from toyworld.evaluate_loop import outcome

from framepack_core.sampling.sections import plan_framepack
from framepack_core.toyworld import SNAPSHOT

CASES, STEPS = 2, 4


@pytest.mark.slow
def test_the_last_frame_leads_into_the_first() -> None:
    toy = Toy.load(SNAPSHOT, torch.device("cpu"))
    plan = plan_framepack(1)
    loop, free = (outcome(toy, made, CASES, STEPS) for made in (plan.with_loop(), plan))
    assert loop.smooth == 1 and loop.kept.all()
    assert free.smooth == 0
