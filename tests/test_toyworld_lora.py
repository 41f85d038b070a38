"""The example LoRA in short; `python tests/toyworld evaluate_lora` measures it whole.

How it is made is run for two updates only: that it is the same each time, and what the file holds.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lora_dialects import differences
from tiny import multiply_in_fp8
from toyworld.evaluate import Toy, end_measure
from toyworld.evaluate_f1_end import applied
from toyworld.evaluate_lora import measure, read
from toyworld.quantised import Base, effect
from toyworld.train_f1_end import STEPS as F1_END_STEPS
from toyworld.train_f1_end import train_f1_end
from toyworld.train_lora import STEPS, train_lora

from framepack_core.toyworld import F1_END_LORA, OPPOSITE_LORA, SNAPSHOT
from framepack_core.weights.files import open_weights


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy.load(SNAPSHOT, torch.device("cpu"))


@pytest.mark.slow
def test_shapes_go_the_opposite_way(toy: Toy) -> None:
    lora = read(toy, OPPOSITE_LORA)
    found = {x: measure(toy, lora, x, cases=4, steps=8) for x in (1.0, 0.5, 0.0)}
    assert found[1.0].opposite >= 0.75 > found[0.5].opposite, found
    assert found[0.0].opposite == 0 and found[0.0].as_prompted == 1, found


@pytest.mark.parametrize(
    "base",
    [
        pytest.param(Base("float8_e4m3fn", quantized_matmul=True), marks=pytest.mark.slow),
        pytest.param(Base("int8_convrot", quantized_matmul=True), marks=pytest.mark.slow),
        Base("fp8_scaled"),
        Base("nvfp4"),
        Base("gguf_q4_k"),
    ],
    ids=lambda base: base.name,
)
def test_quantised_models_keep_the_effect_on_whole_passes(base: Base) -> None:
    """At least 99 % of its norm without quantising, nearly all of it in the same direction."""
    if base.quantized_matmul and base.precision == "float8_e4m3fn":
        multiply_in_fp8()
    found = effect(base, torch.device("cpu"), clips=2)
    assert found["norm"] >= 0.99 and found["along"] >= 0.94, found


def test_every_dialect_gives_the_same_latents(toy: Toy, tmp_path: Path) -> None:
    """Bit-exact, but where factors had to be fused: those are multiplied in another order."""
    for name, difference in differences(toy, tmp_path, steps=2):
        assert difference == 0 if "Hunyuan" not in name else difference < 1e-5, name


def test_made_the_same_each_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (open_weights(train_lora(tmp_path / n, steps=2, clips=2)) for n in "ab")
    assert set(one) == set(two)
    assert all(torch.equal(one[name], two[name]) for name in one)
    shipped = open_weights(OPPOSITE_LORA)
    assert {n: (x.dtype, x.shape) for n, x in shipped.items()} == {
        n: (x.dtype, x.shape) for n, x in one.items()
    }
    assert shipped.metadata["ss_network_dim"] == "8"
    assert shipped.metadata["ss_steps"] == str(STEPS)


@pytest.mark.slow
def test_f1_ends_where_its_lora_sees_the_end(toy: Toy) -> None:
    with applied(toy):
        assert end_measure(toy, "f1", 4, 8, 1).value >= 0.75


def test_the_lora_for_end_images_is_made_as_its_training_says(tmp_path: Path) -> None:
    clips = {("travel", 1): 1, ("steady", 1): 1}
    made = open_weights(train_f1_end(tmp_path, torch.device("cpu"), steps=2, clips=clips))
    shipped = open_weights(F1_END_LORA)
    assert {n: (x.dtype, x.shape) for n, x in shipped.items()} == {
        n: (x.dtype, x.shape) for n, x in made.items()
    }
    kept = ("framepack_mode", "framepack_end_target", "ss_network_dim")
    assert [shipped.metadata[n] for n in kept] == ["f1", "True", "16"]
    assert [made.metadata[n] for n in kept] == ["f1", "True", "16"]
    assert shipped.metadata["ss_steps"] == str(F1_END_STEPS)
