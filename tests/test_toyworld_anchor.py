"""The drift anchor holds the built-in F1's colours: `evaluate_anchor` in short, on the CPU."""

from __future__ import annotations

import pytest
import torch
from toyworld.evaluate import Toy
from toyworld.evaluate_anchor import outcomes

from framepack_core.toyworld import SNAPSHOT

CASES, STEPS, SECTIONS = 2, 4, 3


@pytest.mark.slow
def test_drift_is_taken_out_and_motion_and_form_stay() -> None:
    toy = Toy.load(SNAPSHOT, torch.device("cpu"))
    free, held = (
        outcomes(toy, CASES, STEPS, anchor, (SECTIONS,), drifting=True)[SECTIONS]
        for anchor in (0.0, 1.0)
    )
    assert held.colour < free.colour / 2
    assert held.follows.all() and held.kept.all()
