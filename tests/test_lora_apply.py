"""LoRAs on a model: beside its layers, merged while it loads, stacked, and taken off again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lora_files import (
    DIM,
    SHAPES,
    every_kind,
    output,
    random,
)
from tiny import CONFIG, randn, tiny_dit
from torch import Tensor, nn

from framepack_core.lora.apply import LoraUse, MergeLoras, apply_loras
from framepack_core.lora.delta import Difference, LowRank
from framepack_core.lora.files import load_lora
from framepack_core.models.build import dit_state, load_dit
from framepack_core.models.dit import FramePackDiT
from framepack_core.runtime.errors import FramePackError
from framepack_core.weights.files import save_weights

FILES = every_kind()


def use(folder: Path, kind: str, strength: float = 1.0) -> LoraUse:
    path = folder / f"{kind}.safetensors"
    return LoraUse(load_lora(FILES[kind].save(folder).rename(path), SHAPES), strength)


def merged(uses: list[LoraUse]) -> FramePackDiT:
    model, merge = tiny_dit(), MergeLoras(uses)
    model.load_state_dict({name: merge(name, x) for name, x in model.state_dict().items()})
    return model


def assert_same_state(model: nn.Module, expected: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], x) for name, x in expected.items())


@pytest.mark.parametrize("kind", FILES)
def test_beside_the_layers_as_merged(tmp_path: Path, kind: str) -> None:
    uses = [use(tmp_path, kind, 0.05)]
    model = tiny_dit()
    plain = output(model)
    apply_loras(model, uses)
    beside, expected = output(model), output(merged(uses))
    torch.testing.assert_close(beside, expected, rtol=1e-4, atol=1e-4)
    assert (beside - plain).norm() > 20 * (beside - expected).norm()


@pytest.mark.parametrize("kind", FILES)
def test_strength_zero_and_removed_are_the_base_to_the_bit(tmp_path: Path, kind: str) -> None:
    model = tiny_dit()
    plain, state = output(model), {n: x.clone() for n, x in model.state_dict().items()}
    applied = apply_loras(model, [use(tmp_path, kind)])
    assert not torch.equal(output(model), plain)
    applied.set_strength(0, 0.0)
    assert torch.equal(output(model), plain)
    assert_same_state(model, state)
    applied.set_strength(0, 0.5)
    assert not torch.equal(output(model), plain)
    applied.remove()
    assert torch.equal(output(model), plain)
    assert_same_state(model, state)
    merge = MergeLoras([LoraUse(use(tmp_path, kind).lora, 0.0)])
    assert not merge.names


def test_changing_strength_equals_applying_with_it(tmp_path: Path) -> None:
    one, other = tiny_dit(), tiny_dit()
    kinds = ("LoRA", "others")
    applied = apply_loras(one, [use(tmp_path, kind, 0.1) for kind in kinds])
    applied.set_strength(0, 0.03)
    applied.set_strength(1, -0.5)
    apply_loras(other, [use(tmp_path, "LoRA", 0.03), use(tmp_path, "others", -0.5)])
    assert torch.equal(output(one), output(other))


def test_scaled_strengths_are_what_they_were_afterwards(tmp_path: Path) -> None:
    one, other = tiny_dit(), tiny_dit()
    plain = output(one)
    applied = apply_loras(one, [use(tmp_path, "LoRA", 0.1), use(tmp_path, "others", -0.5)])
    whole = output(one)
    apply_loras(other, [use(tmp_path, "LoRA", 0.5 * 0.1), use(tmp_path, "others", 0.5 * -0.5)])
    with pytest.raises(KeyboardInterrupt), applied.scaled(0.5):
        assert torch.equal(output(one), output(other))
        raise KeyboardInterrupt
    assert applied.strengths == [0.1, -0.5]
    with applied.scaled(1.0):
        assert torch.equal(output(one), whole)
    with applied.scaled(0.0):
        assert torch.equal(output(one), plain)


def test_stacked_loras_add_up_in_any_order(tmp_path: Path) -> None:
    """Each change is that of the unmerged weight, so DoRA's too does not depend on the order."""
    uses = [use(tmp_path, "DoRA", 0.5), use(tmp_path, "LoRA", 0.1), use(tmp_path, "others")]
    base = tiny_dit().state_dict()
    there, back = MergeLoras(uses), MergeLoras(uses[::-1])
    alone = [MergeLoras([one]) for one in uses]
    for name in there.names:
        total = sum((merge(name, base[name]).double() - base[name] for merge in alone), base[name])
        torch.testing.assert_close(there(name, base[name]).double(), total, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(there(name, base[name]), back(name, base[name]))
    model = tiny_dit()
    apply_loras(model, uses)
    torch.testing.assert_close(output(model), output(merged(uses)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_merging_keeps_the_type_and_rounds_once(tmp_path: Path, dtype: torch.dtype) -> None:
    made = use(tmp_path, "LoRA", 0.7)
    base = {name: x.to(dtype) for name, x in tiny_dit().state_dict().items()}
    merge = MergeLoras([made])
    for name, weight in FILES["LoRA"].merged(0.7).items():
        delta = weight - tiny_dit().state_dict()[name].double()
        found = merge(name, base[name])
        assert found.dtype == dtype
        near = torch.finfo(dtype).eps
        exact = base[name].double() + delta
        torch.testing.assert_close(found.double(), exact, rtol=near, atol=near)


def test_a_parameter_without_change_comes_back_itself(tmp_path: Path) -> None:
    x = randn(16)
    assert MergeLoras([use(tmp_path, "LoRA")])("transformer_blocks.0.attn.norm_k.weight", x) is x


def test_factors_can_be_taken_and_given_back(tmp_path: Path) -> None:
    """A host moves the tensors of a change by itself."""
    base = tiny_dit().state_dict()
    for kind in FILES:
        for name, delta in use(tmp_path, kind).lora.deltas.items():
            again = delta.with_tensors({key: x.double() for key, x in delta.tensors.items()})
            double = again.delta(base[name].double())
            torch.testing.assert_close(
                double, delta.delta(base[name]).double(), rtol=1e-4, atol=1e-4
            )
            assert type(again) is type(delta) and isinstance(delta.needs_base, bool)


def test_a_lora_of_another_model(tmp_path: Path) -> None:
    with pytest.raises(FramePackError, match=r"the model has no module .* read the LoRA for"):
        apply_loras(nn.Linear(2, 2), [use(tmp_path, "LoRA")])


def test_branch_of_a_low_rank_change_makes_no_matrix() -> None:
    delta, x = LowRank(random(4096, 2), random(2, 4096, seed=1), 0.5), random(3, 4096, seed=2)
    wide = torch.empty(4096, 4096, device="meta")
    expected = 0.5 * (x.double() @ delta.down.double().T) @ delta.up.double().T
    torch.testing.assert_close(delta.branch(x, wide).double(), expected, rtol=1e-4, atol=1e-3)
    out = random(3, 4096, seed=3)
    added = delta.add_branch(out, x, wide, 2.0).double() - out.double()
    torch.testing.assert_close(added, 2 * expected, rtol=1e-4, atol=1e-3)


# --- while a model loads --------------------------------------------------------------------------


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """The tiny DiT as a folder, in fp32."""
    folder = tmp_path / "dit"
    folder.mkdir()
    model = tiny_dit()
    save_weights(folder / "model.safetensors", model.state_dict())
    (folder / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    return folder


def test_merged_while_loading(tmp_path: Path, snapshot: Path) -> None:
    uses = [use(tmp_path, "LoRA", 0.3), use(tmp_path, "others")]
    model = load_dit(snapshot, dtype=torch.float32, transform=MergeLoras(uses))
    assert_same_state(model, merged(uses).state_dict())
    _, state = dit_state(snapshot, dtype=torch.float32, transform=MergeLoras(uses))
    assert all(torch.equal(state[name], x) for name, x in model.state_dict().items())


def effect(model: FramePackDiT, made: LoraUse) -> dict[str, Tensor]:
    """What the LoRA adds to the output of every layer that it changes, for a fixed input."""
    found = {}
    for name in made.lora.modules:
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Linear):
            x = randn(5, layer.in_features)
            before = layer(x)
            applied = apply_loras(model, [made])
            found[name] = layer(x) - before
            applied.remove()
    return found


@pytest.mark.parametrize("precision", ["fp8_scaled", "fp8"])
@pytest.mark.parametrize("kind", ["LoRA", "LoKr", "fused"])
def test_fp8_keeps_the_whole_effect(tmp_path: Path, snapshot: Path, precision, kind: str) -> None:
    """Small as it is against fp8's rounding, the change is not rounded with the weight."""
    made = use(tmp_path, kind, 0.001)
    full = effect(load_dit(snapshot, dtype=torch.float32), made)
    low = effect(load_dit(snapshot, dtype=torch.float32, precision=precision), made)
    for name, expected in full.items():
        assert (low[name] - expected).norm() < 0.01 * expected.norm()
    # Merged before the cast, most of such a change is lost between the steps of fp8.
    quantised = load_dit(snapshot, dtype=torch.float32, precision=precision)
    lossy = load_dit(
        snapshot, dtype=torch.float32, precision=precision, transform=MergeLoras([made])
    )
    name = "transformer_blocks.0.attn.to_q"
    x = randn(5, DIM)
    change = lossy.get_submodule(name)(x) - quantised.get_submodule(name)(x)
    assert (change - full[name]).norm() > 0.3 * full[name].norm()


def test_the_whole_model_on_an_fp8_base(tmp_path: Path, snapshot: Path) -> None:
    made = use(tmp_path, "LoRA", 0.02)
    norms = {}
    for precision in ("full", "fp8_scaled"):
        model = load_dit(snapshot, dtype=torch.float32, precision=precision)
        plain = output(model)
        apply_loras(model, [made])
        norms[precision] = (output(model) - plain).norm()
    assert 0.9 < norms["fp8_scaled"] / norms["full"] < 1.1


def test_differences_of_a_frozen_model_stay_frozen(tmp_path: Path) -> None:
    model = tiny_dit()
    apply_loras(model, [use(tmp_path, "others")])
    assert not any(p.requires_grad for p in model.parameters())
    assert isinstance(use(tmp_path, "others").lora.deltas["proj_out.bias"], Difference)
