"""The built-in LoRA for text to video: what it draws, and that it is made as its training says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toyworld.evaluate import Toy
from toyworld.evaluate_text import drawn
from toyworld.train_text import STEPS, train_text

from framepack_core.toyworld import SNAPSHOT, TEXT_LORA
from framepack_core.weights.files import open_weights


@pytest.mark.slow
def test_a_prompt_is_drawn_without_a_picture() -> None:
    toy = Toy.load(SNAPSHOT, torch.device("cpu"))
    assert drawn(toy, 2, 8, "grey", 1) == 1
    assert drawn(toy, 2, 8, "grey", 1, lora=False) == 0


@pytest.mark.slow
def test_the_lora_for_text_to_video_is_made_as_its_training_says(tmp_path: Path) -> None:
    made = open_weights(train_text(tmp_path, torch.device("cpu"), steps=1, clips=4, batch=2))
    shipped = open_weights(TEXT_LORA)
    assert {n: (x.dtype, x.shape) for n, x in shipped.items()} == {
        n: (x.dtype, x.shape) for n, x in made.items()
    }
    kept = ("framepack_mode", "ss_network_dim", "ss_learning_rate")
    assert [shipped.metadata[n] for n in kept] == [made.metadata[n] for n in kept]
    assert shipped.metadata["ss_steps"] == str(STEPS) and made.metadata["ss_steps"] == "1"
