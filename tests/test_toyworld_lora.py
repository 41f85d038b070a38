"""The example LoRA in short; `python tests/toyworld evaluate_lora` measures it whole.

How it is made is run for two updates only: that it is the same each time, and what the file holds.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lora_dialects import differences
from toyworld.evaluate import Toy
from toyworld.evaluate_lora import measure, read
from toyworld.train_lora import STEPS, make_samples, train_lora

from framepack_core.lora.apply import LoraUse, apply_loras
from framepack_core.lora.files import load_lora
from framepack_core.models.build import dit_shapes, load_dit, load_snapshot
from framepack_core.sampling.flow import FlowDenoiser, Guided, x_at
from framepack_core.toyworld import OPPOSITE_LORA, SNAPSHOT
from framepack_core.training.batches import Batches
from framepack_core.weights.files import open_weights


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy.load(SNAPSHOT, torch.device("cpu"))


def test_shapes_go_the_opposite_way(toy: Toy) -> None:
    lora = read(toy, OPPOSITE_LORA)
    found = {x: measure(toy, lora, x, cases=4, steps=8) for x in (1.0, 0.5, 0.0)}
    assert found[1.0].opposite >= 0.75 > found[0.5].opposite, found
    assert found[0.0].opposite == 0 and found[0.0].as_prompted == 1, found


@torch.no_grad()
def test_fp8_keeps_the_effect_on_whole_passes(tmp_path: Path) -> None:
    """At least 99 % of its norm in bf16, over clips of the world at three levels of noise."""
    batches = Batches(make_samples(load_snapshot(SNAPSHOT, dtype=torch.float32), tmp_path, 8))
    norms = dict.fromkeys(("full", "fp8_scaled"), 0.0)
    for precision in norms:
        dit = load_dit(SNAPSHOT, dtype=torch.bfloat16, precision=precision)
        denoiser = FlowDenoiser(dit, torch.bfloat16)
        uses = [LoraUse(load_lora(OPPOSITE_LORA, dit_shapes(dit.config)))]
        for number in range(len(batches)):
            batch = batches.load(number)
            noise = torch.randn(
                batch.latents.shape, generator=torch.Generator().manual_seed(number)
            )
            inputs = Guided(batch.text, batch.image_embeds), batch.latent_indices, batch.context
            for level in (0.95, 0.6, 0.2):
                sigma = torch.full((len(noise),), level)
                x = x_at(sigma, batch.latents.float(), noise)
                plain = denoiser.velocity(x, sigma, *inputs)
                applied = apply_loras(dit, uses)
                norms[precision] += float((denoiser.velocity(x, sigma, *inputs) - plain).norm())
                applied.remove()
    assert norms["fp8_scaled"] >= 0.99 * norms["full"], norms


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
