"""`framepack quantize`: every format, the errors it tells, LoRAs that go in, files that fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import randn

from framepack_core.cli import main
from framepack_core.lora.apply import apply_loras, open_loras
from framepack_core.models.build import dit_config, dit_shapes, load_dit, open_dit
from framepack_core.models.quantise import precision_of, trial_inputs
from framepack_core.sampling import probe
from framepack_core.toyworld import OPPOSITE_LORA, SNAPSHOT
from framepack_core.weights.formats import MADE, is_block_linear
from framepack_core.weights.precisions import STATED
from framepack_core.weights.quantised_linear import QuantisedLinear, full_weight

SOURCE = SNAPSHOT / "transformer"


def quantize(path: Path, format: str, *options: str) -> int:
    return main(["quantize", "--format", format, "--output", str(path), *options])


def test_every_format_that_files_state_can_be_asked_for() -> None:
    assert set(STATED) == {name for name, format in MADE.items() if format.stated}


@pytest.mark.parametrize("format", ["float8_e4m3fn", "int8_convrot", "nvfp4"])
def test_the_errors_are_those_of_the_file(tmp_path: Path, capsys, format: str) -> None:
    path, errors = tmp_path / "made.safetensors", tmp_path / "errors.json"
    assert quantize(path, format, "--errors", str(errors)) == 0
    made, plain = (load_dit(p, dtype=torch.bfloat16) for p in (path, SOURCE))
    told, printed = json.loads(errors.read_text()), capsys.readouterr().out
    assert {f"{name}.weight" for name in told} == set(filter(is_block_linear, plain.state_dict()))
    for name, error in told.items():
        layer = made.get_submodule(name)
        assert isinstance(layer, QuantisedLinear) and layer.encoding is not None
        weight = full_weight(plain.get_submodule(name), torch.float32)
        found = (full_weight(layer, torch.float32) - weight).norm() / weight.norm()
        assert error == pytest.approx(float(found), rel=1e-4)
    worst = max(told, key=lambda name: told[name] if name.endswith("proj_mlp") else 0)
    line = next(line for line in printed.splitlines() if line.startswith("proj_mlp: "))
    assert f"at most {told[worst]:.4f} ({worst.removesuffix('.proj_mlp')})" in line
    with torch.no_grad():
        inputs = trial_inputs(plain.config, torch.device("cpu"), torch.bfloat16)
        a, b = made(inputs), plain(inputs)
    whole = float((a - b).norm() / b.norm())
    assert f"a pass on random inputs: {whole:.4f} of the norm" in printed


@torch.no_grad()
def test_loras_go_in_before(tmp_path: Path) -> None:
    path = tmp_path / "made.safetensors"
    assert quantize(path, "int8_tensorwise", "--lora_weight", str(OPPOSITE_LORA), "--no_pass") == 0
    made, plain = (load_dit(p, dtype=torch.float32) for p in (path, SOURCE))
    inputs = trial_inputs(plain.config, torch.device("cpu"), torch.float32)
    before = plain(inputs)
    apply_loras(plain, open_loras([OPPOSITE_LORA], dit_shapes(dit_config(SOURCE))))
    expected = plain(inputs)
    assert (made(inputs) - expected).norm() < 0.2 * (expected - before).norm()


def test_what_cannot_be(tmp_path: Path, capsys) -> None:
    there = tmp_path / "there.safetensors"
    there.write_bytes(b"x")
    for path, format, message in (
        (there, "mxfp8", "is there already: choose another name"),
        (tmp_path / "a.gguf", "mxfp8", "must be named .safetensors"),
        (tmp_path / "a.safetensors", "gguf_q4_k", "must be named .gguf and be one file"),
    ):
        assert quantize(path, format) == 2
        *_, error = capsys.readouterr().err.splitlines()
        assert error.startswith("error: ") and message in error
    assert there.read_bytes() == b"x" and list(tmp_path.iterdir()) == [there]


@torch.no_grad()
@pytest.mark.parametrize("format", MADE)
def test_loras_beside_the_weights_lose_nothing_to_the_format(format: str) -> None:
    """What a LoRA adds to each layer is what it adds to the layer in fp32, and comes off again."""
    made, plain = (load_dit(SOURCE, dtype=torch.float32, precision=p) for p in (format, "full"))
    uses = open_loras([OPPOSITE_LORA], dit_shapes(plain.config))
    name = "single_transformer_blocks.0.proj_out"
    x = randn(40, plain.get_submodule(name).in_features)
    before, added = made.get_submodule(name)(x), []
    for model in (made, plain):
        layer = model.get_submodule(name)
        without = layer(x)
        applied = apply_loras(model, uses)
        added.append(layer(x) - without)
        applied.set_strength(0, 0.5)
        torch.testing.assert_close(layer(x) - without, added[-1] / 2, rtol=1e-3, atol=1e-5)
        applied.remove()
    torch.testing.assert_close(*added, rtol=1e-3, atol=1e-5)
    assert torch.equal(made.get_submodule(name)(x), before)


@pytest.mark.parametrize("format", ["int8_convrot", "fp8_scaled", "nvfp4"])
def test_a_trial_is_of_layers_in_the_format(monkeypatch, format: str) -> None:
    """What `framepack check` times has the layers that a run will have."""
    _, state = open_dit(SOURCE, precision=format)
    assert precision_of(state.encodings().values()) == format
    seen = []
    monkeypatch.setattr(probe, "choose_products", lambda model, *_: seen.append(model))
    start, config = torch.zeros(1, 16, 1, 8, 8), dit_config(SOURCE)
    tokens = {"text_tokens": 4, "image_tokens": 3}
    trial = probe.TrialPass(
        config, "framepack", 1, start, torch.float32, precision=format, **tokens
    )
    cost = probe.probe_transformer(trial)
    assert cost.seconds > 0 and len(seen) == 3
    kept = {n for n, x in seen[0].named_modules() if isinstance(x, QuantisedLinear) and x.encoding}
    assert {f"{n}.weight" for n in kept} == set(filter(is_block_linear, seen[0].state_dict()))


def test_the_precision_of_a_model_that_is_not_quantised() -> None:
    assert precision_of([]) == "full"
