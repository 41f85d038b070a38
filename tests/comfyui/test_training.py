"""A short form of `measure_training.py`: Toy World learns a word inside ComfyUI."""

from __future__ import annotations

import measure_training
import pytest
from comfy_host import ComfyUI

STEPS, CASES = 120, 6


@pytest.mark.slow
@pytest.mark.timeout(900)  # it trains, and makes videos before and after
def test_a_word_is_learned_and_nothing_forgotten(comfy: ComfyUI) -> None:
    found = measure_training.main(STEPS, CASES)
    assert found["clips"] <= 16 and found["word before"] == 0
    assert found["word"] >= 0.75, found
    assert found["others as before"] >= 0.75, found
