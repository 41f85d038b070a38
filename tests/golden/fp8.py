"""Scaled fp8: single weights in every mode, the tiny DiT quantised, and LoRA on an fp8 weight."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from framepack_core.lora.apply import LoraUse, MergeLoras, add_deltas
from framepack_core.lora.files import Lora, load_lora
from framepack_core.models.build import dit_shapes, dit_state, load_dit
from framepack_core.models.dit import DiTConfig
from framepack_core.runtime.errors import FramePackError
from framepack_core.weights.formats import is_block_linear
from framepack_core.weights.fp8 import FP8, cast, dequantize, quantize, scale_shape
from framepack_core.weights.quantised_linear import QuantisedLinear

from .dit_tiny import ATOL, RTOL, dit_inputs, inputs_of, noise_floor
from .result import Case, compare, compare_ours, digest, exact, exact_ours

MODES = {"block": "block", "channel": "row", "tensor": "tensor"}
STEP = 2**-3  # between neighbours in e4m3, relative


def check(folder: Path) -> Iterator[Case]:
    spec = json.loads((folder / "fp8.json").read_text())
    tensors = load_file(folder / "fp8.safetensors")
    for case in spec["cases"]:
        prefix = f"{case['case']}."
        given = {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}
        yield from _weight(case, given)
    with _dit_folder(folder) as dit:
        yield from _model(folder, dit, spec["model"], tensors)
        yield from _errors(dit, spec["errors"])
    yield from _fp8_base(folder, spec, tensors)


def _bits(x: Tensor) -> Tensor:
    return x.view(torch.uint8)


def _weight(case: dict[str, Any], given: dict[str, Tensor]) -> Iterator[Case]:
    name, weight = case["case"], given["weight"]
    about = [list(weight.shape), str(weight.dtype)[6:]]
    yield exact(f"{name}.weight", about, [case["shape"], case["weight_dtype"]])
    shape = scale_shape(tuple(weight.shape), MODES[case["mode_asked"]], case["block_size"])
    dtype = getattr(torch, case["fp8"])
    q, scale = quantize(weight, shape, dtype)
    yield exact(f"{name}.scale_shape", list(shape), case["scale_shape"])
    yield exact(f"{name}.scale", scale, given["scale_weight"])
    yield exact(f"{name}.scale_dtype", str(scale.dtype)[6:], case["scale_dtype_stored"])
    yield exact(f"{name}.q", _bits(q), _bits(given["q"]))
    yield exact(f"{name}.max", torch.finfo(dtype).max, case["max_value"])
    if "dequant" not in given:
        return
    tolerance = (RTOL, ATOL) if weight.dtype == torch.float32 else (1e-2, 1e-2)
    full = dequantize(q, scale, weight.dtype)
    yield compare(f"{name}.dequant", full, given["dequant"], *tolerance)
    error = (full.float() - weight.float()).abs().max()
    expected = torch.tensor(case["max_abs_dequant_error"])
    yield compare(f"{name}.error", error, expected, *tolerance)
    yield compare(f"{name}.linear", _linear(q, scale, given), given["y"], *tolerance)


def _linear(q: Tensor, scale: Tensor, given: dict[str, Tensor]) -> Tensor:
    """The output of our layer with that weight."""
    layer = QuantisedLinear(q.shape[1], q.shape[0], device="meta").requires_grad_(False)
    state = {"weight": q, "scale_weight": scale, "bias": given["bias"]}
    layer.load_state_dict(state, strict=True, assign=True)
    return layer(given["x"])


@contextmanager
def _dit_folder(folder: Path) -> Iterator[Path]:
    """The tiny DiT as a folder with its config."""
    with tempfile.TemporaryDirectory() as name:
        dit = Path(name)
        shutil.copy(folder / "dit_tiny_config.json", dit / "config.json")
        shutil.copy(folder / "dit_tiny_weights.safetensors", dit / "model.safetensors")
        yield dit


def _model(
    folder: Path, dit: Path, spec: dict[str, Any], tensors: dict[str, Tensor]
) -> Iterator[Case]:
    states = {
        "model_fp32": dit_state(dit, dtype=torch.float32, precision="fp8_scaled")[1],
        "model_bf16": dit_state(dit, dtype=torch.bfloat16, precision="fp8_scaled")[1],
    }
    state = states["model_fp32"]
    quantised = {
        name: {"scale_shape": list(state[name.replace(".weight", ".scale_weight")].shape)}
        for name, x in state.items()
        if x.dtype in FP8
    }
    yield exact("model.quantised", quantised, spec["quantised"])
    blocks = [n for n in state if "transformer_blocks" in n and n.endswith(".weight")]
    plain = sorted(name for name in blocks if not is_block_linear(name))
    yield exact("model.not_quantised", plain, sorted(spec["not_quantised_in_blocks"]))
    for entry, expected in tensors.items():
        case, _, name = entry.partition("|")
        if case in states and expected.dtype in FP8:
            yield exact(entry, _bits(states[case][name]), _bits(expected))
        elif case in states:
            yield exact(entry, states[case][name], expected)
    given = inputs_of(load_file(folder / f"dit_tiny_{spec['case']}.safetensors"))
    load = partial(load_dit, dit, dtype=torch.float32)
    lora, strength = _lora(folder, spec)
    merge = MergeLoras([LoraUse(lora, strength)])
    for name, transform in (("model_fp32", None), (f"model_fp32_lora{strength}", merge)):
        model = load(precision="fp8_scaled", transform=transform)
        run = partial(model, dit_inputs(given))
        yield compare(f"{name}.out", run(), tensors[f"{name}.out"], RTOL, ATOL + noise_floor(run))
    plain, scaled = (load(precision=p)(dit_inputs(given)) for p in ("full", "fp8_scaled"))
    expected = torch.tensor(spec["max_abs_change_of_output"])
    yield compare("model.change", (scaled - plain).abs().max(), expected, RTOL, 1e-3)


def _errors(dit: Path, errors: dict[str, str]) -> Iterator[Case]:
    """What fails in the reference and works here: the weights that come of it."""
    full, plain = (dit_state(dit, precision=precision)[1] for precision in ("full", "fp8"))
    linears = sorted(name for name in full if _is_quantised(name, full[name]))
    outcomes = {"plain_fp8_flag": _cast_like(plain, full, torch.float8_e4m3fn)}
    with tempfile.TemporaryDirectory() as name:
        save_file(plain, Path(name) / "model.safetensors")
        shutil.copy(dit / "config.json", name)
        try:
            again = dit_state(Path(name), precision="fp8_scaled")[1]
            outcomes["quantising_an_fp8_checkpoint"] = _cast_like(again, full, torch.float8_e4m3fn)
        except FramePackError as error:
            outcomes["quantising_an_fp8_checkpoint"] = [str(error)]
    for name, expected in errors.items():
        found = outcomes.get(name, "not covered here")
        name, tag, inputs = f"errors.{name}", "fp8-works", [name, sorted(full)]
        yield exact_ours(name, tag, found, rule=linears, reference=expected, inputs=inputs)


def _is_quantised(name: str, weight: Tensor) -> bool:
    """Whether our rule puts a weight in fp8: matrices of the blocks, but for the modulations."""
    return "transformer_blocks" in name and weight.ndim == 2 and "norm" not in name


def _cast_like(state: dict[str, Tensor], full: dict[str, Tensor], dtype: torch.dtype) -> list[str]:
    """The weights that are a plain cast of the full ones; what else is not as it was is marked."""
    cast_ = [n for n, x in state.items() if x.dtype == dtype]
    wrong = [n for n in cast_ if not torch.equal(_bits(state[n]), _bits(full[n].to(dtype)))]
    rest = state.keys() ^ full.keys()
    rest |= {n for n in full.keys() - cast_ if not torch.equal(full[n], state.get(n, full[n]))}
    return sorted([*cast_, *(f"wrong {n}" for n in wrong), *(f"changed {n}" for n in rest)])


def _lora(folder: Path, model: dict[str, str]) -> tuple[Lora, float]:
    """The LoRA that was merged before quantising, read for the tiny DiT, and its strength."""
    source, strength = re.search(r": (\w+) merged at ([\d.]+)", model["lora"]).groups()
    config = DiTConfig.from_dict(json.loads((folder / "dit_tiny_config.json").read_text()))
    return load_lora(folder / f"{source}.safetensors", dit_shapes(config)), float(strength)


def _fp8_base(folder: Path, spec: dict[str, Any], tensors: dict[str, Tensor]) -> Iterator[Case]:
    before, after = (tensors[f"fp8base_merge.key_{when}"] for when in ("before", "after"))
    delta = _lora(folder, spec["model"])[0].deltas[spec["fp8base_merge"]["key"]]
    merged = cast(add_deltas(before.float(), [(1.0, delta)]), before.dtype)
    near = (merged.float(), after.float(), STEP, 2**-9)
    yield compare("fp8base_merge.within-a-step", *near)
    change = delta.scale * (delta.up.double() @ delta.down.double())
    by_hand = (before.double() + change).float().to(before.dtype)
    yield compare_ours(
        "fp8base_merge",
        "fp16-merge",
        merged.float(),
        rule=by_hand.float(),
        reference=after.float(),
        inputs=[spec["fp8base_merge"]["key"], digest(before, delta.up, delta.down)],
        rtol=0,
        atol=0,
    )
