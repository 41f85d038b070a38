"""fp8 weights: the arithmetic by hand, the files of musubi-tuner and ComfyUI, and models in fp8."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_files import KOHYA, NATIVE, SHAPES, LoraFile, output, underscored
from safetensors.torch import save_file
from tiny import CONFIG, generator, randn, tiny_dit
from torch import Tensor, nn

from framepack_core.lora.apply import LoraUse, MergeLoras, apply_loras
from framepack_core.lora.files import load_lora
from framepack_core.models.build import dit_state, load_dit, load_text_encoders
from framepack_core.runtime.errors import FramePackError
from framepack_core.toyworld import SNAPSHOT
from framepack_core.weights.files import open_weights
from framepack_core.weights.formats import is_block_linear
from framepack_core.weights.fp8 import E4M3, E5M2, FP8, cast, dequantize, quantize, scale_shape
from framepack_core.weights.quantised_files import QuantisedFiles
from framepack_core.weights.quantised_linear import QuantisedLinear, full_weight

TO_Q = "transformer_blocks.0.attn.to_q"
WIDE = "single_transformer_blocks.0.proj_out"  # 160 inputs: not a multiple of 64


# --- arithmetic -----------------------------------------------------------------------------------


def test_by_hand() -> None:
    """e4m3 has 448 as its largest number and 3 bits of mantissa: 8, 9, 10, ..., 15, 16, 18."""
    weight = torch.tensor([[448.0, 17.1, -9.4, 0.0], [4.48, 0.09, -0.2, 0.0]])
    q, scale = quantize(weight, (2, 1))
    assert scale.flatten().tolist() == pytest.approx([1.0, 0.01])
    assert q.float().tolist() == [[448.0, 18.0, -9.0, 0.0], [448.0, 9.0, -20.0, 0.0]]
    expected = torch.tensor([[448.0, 18.0, -9.0, 0.0], [4.48, 0.09, -0.2, 0.0]])
    torch.testing.assert_close(dequantize(q, scale, torch.float32), expected)


def test_a_plain_cast_clamps_instead_of_overflowing() -> None:
    weight = torch.tensor([1000.0, -1000.0, 1.0])
    assert cast(weight).float().tolist() == [448.0, -448.0, 1.0]
    assert cast(weight * 1000, E5M2).float().tolist() == [57344.0, -57344.0, 1024.0]


@pytest.mark.parametrize(
    ("shape", "scaling", "expected"),
    [
        ((6, 128), "block", (6, 2, 1)),
        ((6, 100), "block", (6, 1)),
        ((6, 128), "row", (6, 1)),
        ((6, 128), "tensor", ()),
        ((6, 3, 2, 2), "block", ()),
        ((6,), "row", ()),
    ],
)
def test_scale_shapes(shape: tuple, scaling: str, expected: tuple) -> None:
    assert scale_shape(shape, scaling) == expected


@given(
    rows=st.integers(1, 5),
    blocks=st.integers(1, 3),
    scaling=st.sampled_from(["block", "row", "tensor"]),
    fp8=st.sampled_from(FP8),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    exponent=st.integers(-12, 4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_error_bound(rows, blocks, scaling, fp8, dtype, exponent: int, seed: int) -> None:
    """Half a step of fp8 at the number's own size, or at the smallest under its scale."""
    weight = (randn(rows, 64 * blocks, seed=seed) * 2.0**exponent).to(dtype)
    wide = torch.float32 if dtype == torch.float16 else dtype
    q, scale = quantize(weight, scale_shape(tuple(weight.shape), scaling), fp8, wide)
    assert q.dtype == fp8 and scale.dtype == wide
    back = dequantize(q, scale, torch.float32)
    mantissa, smallest = {E4M3: (3, 2.0**-9), E5M2: (2, 2.0**-16)}[fp8]
    unit = scale.double()
    if scaling == "block":
        unit = unit.expand(-1, -1, 64).flatten(1)
    # The largest may be clamped by as much as the scale was rounded.
    slack = torch.finfo(dtype).eps * weight.double().abs()
    allowed = torch.maximum(weight.double().abs() * 2.0 ** -(mantissa + 1), unit * smallest / 2)
    assert ((back.double() - weight.double()).abs() <= 1.01 * allowed + slack).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_zeros_stay_zeros(dtype: torch.dtype) -> None:
    weight = torch.zeros(3, 128, dtype=dtype)
    weight[0, 0] = 1
    for shape in ((3, 2, 1), (3, 1), ()):
        q, scale = quantize(weight, shape)
        torch.testing.assert_close(dequantize(q, scale, dtype), weight)


def test_linear_keeps_other_weights_as_they_are() -> None:
    layer, plain = QuantisedLinear(3, 2), nn.Linear(3, 2)
    layer.load_state_dict(plain.state_dict())
    x = randn(4, 3)
    assert torch.equal(layer(x), plain(x)) and list(layer.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_computes_in_the_type_of_its_input(dtype: torch.dtype) -> None:
    q, scale = quantize(randn(5, 64), (5, 1, 1))
    layer = QuantisedLinear(64, 5, bias=False, device="meta").requires_grad_(False)
    layer.load_state_dict({"weight": q, "scale_weight": scale}, assign=True)
    x = randn(2, 64, seed=1).to(dtype)
    expected = x.double() @ (q.double() * scale.double().reshape(5, 1)).T
    assert layer(x).dtype == dtype
    torch.testing.assert_close(layer(x).double(), expected, rtol=0.02, atol=0.02)


def test_which_weights_are_quantised() -> None:
    names = [name for name in SHAPES if is_block_linear(name)]
    assert TO_Q + ".weight" in names and "single_transformer_blocks.1.proj_mlp.weight" in names
    kinds = {name.split(".", 2)[2].removesuffix(".weight") for name in names}
    assert kinds == {
        *(f"attn.{kind}" for kind in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")),
        *(f"attn.add_{kind}_proj" for kind in "qkv"),
        *(f"{ff}.net.{layer}" for ff in ("ff", "ff_context") for layer in ("0.proj", "2")),
        "proj_mlp",
        "proj_out",
    }


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> dict[str, Tensor]:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    return {name: x.clone() for name, x in tiny_dit().state_dict().items()}


def write(folder: Path, tensors: dict[str, Tensor], metadata: dict | None = None) -> Path:
    save_file(tensors, folder / "model.safetensors", metadata)
    return folder / "model.safetensors"


def scaled(base: dict[str, Tensor], names: dict[str, str], scaling: str = "tensor") -> dict:
    """The blocks' weights in fp8 with scales under the names given for weight, scale, input."""
    tensors = {}
    for name, x in base.items():
        if not is_block_linear(name):
            tensors[name] = x
            continue
        q, scale = quantize(x, scale_shape(tuple(x.shape), scaling, 32))
        module = name.removesuffix("weight")
        tensors |= {name: q, module + names["scale"]: scale}
        if "input" in names:
            tensors[module + names["input"]] = torch.tensor(2.0)
    return tensors


def expected_weights(base: dict[str, Tensor], scaling: str = "tensor") -> dict[str, Tensor]:
    found = dict(base)
    for name in filter(is_block_linear, base):
        shape = scale_shape(SHAPES[name], scaling, 32)
        q, scale = quantize(base[name], shape)
        if len(shape) == 3:
            scale = scale.repeat_interleave(32, 1).flatten(1)
        found[name] = q.float() * scale
    return found


MUSUBI = {"scale": "scale_weight"}
OLD, NEW = {"scale": "scale_weight", "input": "scale_input"}, {"scale": "weight_scale"}
CONF = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)


def comfy_new(base: dict[str, Tensor]) -> tuple[dict[str, Tensor], None]:
    tensors = scaled(base, NEW | {"input": "input_scale"})
    layers = [name.removesuffix("weight") for name in base if is_block_linear(name)]
    return tensors | {f"{layer}comfy_quant": CONF.clone() for layer in layers}, None


def comfy_metadata(base: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The format is in the metadata, the weights are kept as bytes."""
    tensors = scaled(base, NEW)
    layers = [name.removesuffix(".weight") for name in base if is_block_linear(name)]
    for layer in layers:
        tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"].view(torch.uint8)
    stated = {"layers": {layer: {"format": "float8_e4m3fn"} for layer in layers}}
    return tensors, {"_quantization_metadata": json.dumps(stated)}


def one_axis(base: dict[str, Tensor]) -> tuple[dict[str, Tensor], None]:
    tensors = scaled(base, NEW)
    return {k: x.reshape(1) if k.endswith("weight_scale") else x for k, x in tensors.items()}, None


FILES = {
    "musubi-tuner, blocks": (lambda b: (scaled(b, MUSUBI, "block"), None), "block"),
    "musubi-tuner, rows": (lambda b: (scaled(b, MUSUBI, "row"), None), "row"),
    "ComfyUI, older": (
        lambda b: (scaled(b, OLD) | {"scaled_fp8": torch.zeros(0).to(E4M3)}, None),
        "tensor",
    ),
    "ComfyUI, older, full precision": (
        lambda b: (scaled(b, OLD) | {"scaled_fp8": torch.zeros(2)}, None),
        "tensor",
    ),
    "ComfyUI, newer": (comfy_new, "tensor"),
    "ComfyUI, newer, metadata": (comfy_metadata, "tensor"),
    "a scale of one axis": (one_axis, "tensor"),
}  # fmt: skip


PREFIXED = [("ComfyUI, older", "model.diffusion_model."), ("ComfyUI, newer", "diffusion_model.")]


@pytest.mark.parametrize(("case", "prefix"), [*((case, "") for case in FILES), *PREFIXED])
def test_scaled_files_load(tmp_path: Path, base: dict, case: str, prefix: str) -> None:
    make, scaling = FILES[case]
    tensors, metadata = make(base)
    path = write(tmp_path, {prefix + name: x for name, x in tensors.items()}, metadata)
    model = load_dit(path, dtype=torch.float32)
    expected = expected_weights(base, scaling)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            weight = full_weight(module, torch.float32)
            torch.testing.assert_close(weight, expected[f"{name}.weight"], rtol=1e-6, atol=1e-7)
    assert model.get_submodule(TO_Q).weight.dtype == E4M3
    _, state = dit_state(path, dtype=torch.float32)  # for a host that knows no fp8
    assert set(state) == set(base)
    for name, weight in expected.items():
        torch.testing.assert_close(state[name], weight, rtol=1e-6, atol=1e-7)
    plain = tiny_dit()
    plain.load_state_dict(state)
    torch.testing.assert_close(output(model), output(plain), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fp8", FP8)
def test_plain_fp8_file_of_everything(tmp_path: Path, base: dict, fp8: torch.dtype) -> None:
    path = write(tmp_path, {name: x.to(fp8) for name, x in base.items()})
    model = load_dit(path, dtype=torch.float32)
    assert model.get_submodule(TO_Q).weight.dtype == fp8
    assert model.get_submodule(TO_Q).scale_weight is None
    assert model.transformer_blocks[0].norm1.linear.weight.dtype == fp8
    assert model.proj_out.weight.dtype == torch.float32
    assert model.x_embedder.proj.weight.dtype == torch.float32
    full = load_dit(path, dtype=torch.float32, precision="full")
    assert not any(p.dtype in FP8 for p in full.parameters())
    assert torch.equal(full.proj_out.weight, base["proj_out.weight"].to(fp8).float())
    torch.testing.assert_close(output(model), output(full), rtol=1e-4, atol=1e-4)


BAD = {
    "scale": (
        {f"{TO_Q}.weight": torch.ones(32, 32).to(E4M3), f"{TO_Q}.scale_weight": torch.ones(7, 1)},
        None,
        f"the scale {TO_Q}.scale_weight is [7, 1], which does not fit a weight [32, 32]",
    ),
    "format": (
        {f"{TO_Q}.comfy_quant": torch.tensor(list(b'{"format": "int3"}'), dtype=torch.uint8)},
        None,
        f"is quantised as int3 ({TO_Q}), which is not supported: use a file in one of float8",
    ),
    "no JSON": (
        {f"{TO_Q}.comfy_quant": torch.tensor([1, 2, 3], dtype=torch.uint8)},
        None,
        "has damaged quantisation metadata",
    ),
    "metadata": ({}, {"_quantization_metadata": "[]"}, "has damaged quantisation metadata"),
    "unknown": ({f"{TO_Q}.pre_quant_scale": torch.ones(1)}, None, "1 left over"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_quantised_files(tmp_path: Path, base: dict, case: str) -> None:
    more, metadata, message = BAD[case]
    path = write(tmp_path, base | more, metadata)
    with pytest.raises(FramePackError) as error:
        load_dit(path)
    assert str(error.value).startswith(str(path)) and message in str(error.value)


def test_scales_of_every_form_are_told_apart(tmp_path: Path) -> None:
    blocks = (32, 2, 1)
    forms = {(1, 1): (), (32, 1): (32, 1), (32,): (32, 1), (32, 2): blocks, blocks: blocks}
    for stored, expected in forms.items():
        tensors = {"x.weight": torch.ones(32, 8).to(E4M3), "x.weight_scale": torch.ones(stored)}
        files = QuantisedFiles(open_weights(write(tmp_path, tensors)))
        assert list(files) == ["x.weight"]
        q, scale, *config = files.load_parts("x.weight").values()
        assert scale.shape == expected and bool(config) == (expected == ())
        assert torch.equal(dequantize(q, scale, torch.float32), torch.ones(32, 8))


# --- quantised while loading ----------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp8", "fp8_e5m2", "fp8_scaled"])
def test_quantised_while_loading(tmp_path: Path, base: dict, precision: str) -> None:
    fp8 = E5M2 if precision == "fp8_e5m2" else E4M3
    model = load_dit(write(tmp_path, base), dtype=torch.bfloat16, precision=precision)
    for name, x in base.items():
        found = model.get_parameter(name)
        module = model.get_submodule(name.rpartition(".")[0])
        wanted = torch.float32 if name.startswith("proj_out.") else torch.bfloat16
        if not is_block_linear(name):
            assert found.dtype == wanted and torch.equal(found, x.to(wanted))
            continue
        assert found.dtype == fp8
        if precision == "fp8_scaled":  # 32 inputs fall back to one scale a row
            rows, columns = SHAPES[name]
            shape = (rows, 1) if columns % 64 else (rows, columns // 64, 1)
            assert module.scale_weight.shape == shape
            error = (full_weight(module, torch.float32) - x).norm() / x.norm()
            assert error < 0.035
        else:
            assert torch.equal(found.view(torch.uint8), cast(x.bfloat16(), fp8).view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scales_of_small_weights(tmp_path: Path, base: dict, dtype: torch.dtype) -> None:
    """1e-5 / 448 is nothing in fp16, so scales are fp32 there."""
    name = f"{TO_Q}.weight"
    base[name] *= 1e-3 / base[name].abs().max()
    base[name][0] *= 1e-2
    layer = load_dit(write(tmp_path, base), dtype=dtype, precision="fp8_scaled").get_submodule(TO_Q)
    error = (full_weight(layer, torch.float32) - base[name])[0].norm() / base[name][0].norm()
    assert error < 0.04


def test_saved_state_loads_back_the_same(tmp_path: Path, base: dict) -> None:
    first = load_dit(write(tmp_path, base), precision="fp8_scaled").state_dict()
    # Copies, because some of it is mapped from the file, which is now overwritten in place.
    first = {name: x.clone() for name, x in first.items()}
    write(tmp_path, first)
    for precision in ("auto", "fp8_scaled", "fp8"):
        again = load_dit(tmp_path, precision=precision)
        for name, x in again.state_dict().items():
            assert torch.equal(x.float(), first[name].float()), name


def test_unknown_precision(tmp_path: Path, base: dict) -> None:
    with pytest.raises(FramePackError, match="precision 'int8' is unknown; use one of auto"):
        load_dit(write(tmp_path, base), precision="int8")


def test_a_host_s_layers_get_full_weights(tmp_path: Path, base: dict) -> None:
    """Unless the host asks for fp8, because only it knows whether its layers can hold it."""
    write(tmp_path, scaled(base, NEW))
    kinds = ("Linear", "LayerNorm", "RMSNorm", "Conv3d")
    host = type("Ops", (), {name: getattr(nn, name) for name in kinds})
    model = load_dit(tmp_path, dtype=torch.float32, ops=host)
    assert not any(isinstance(m, QuantisedLinear) for m in model.modules())
    name = f"{TO_Q}.weight"
    torch.testing.assert_close(model.get_parameter(name), expected_weights(base)[name])


# --- LoRA -----------------------------------------------------------------------------------------


def lora(folder: Path, strength: float) -> LoraUse:
    path = LoraFile.make(NATIVE, underscored("lora_unet_"), KOHYA).save(folder)
    return LoraUse(load_lora(path, SHAPES), strength)


@pytest.mark.parametrize("form", ["full", "block", "row", "tensor", "plain"])
def test_merged_into_an_fp8_file(tmp_path: Path, base: dict, form: str) -> None:
    """Merged in fp32 before it is quantised, in the form that the file has."""
    tensors = dict(base)
    if form == "plain":
        tensors = {n: cast(x) if is_block_linear(n) else x for n, x in base.items()}
    elif form != "full":
        tensors = scaled(base, MUSUBI, form)
    path = write(tmp_path, tensors)
    made = lora(tmp_path, 0.3)
    _, plain = dit_state(path, dtype=torch.float32)
    precision = "fp8_scaled" if form == "full" else "auto"
    model = load_dit(path, dtype=torch.float32, precision=precision, transform=MergeLoras([made]))
    layer = model.get_submodule(WIDE)
    merged = MergeLoras([made])(f"{WIDE}.weight", plain[f"{WIDE}.weight"])
    if form == "plain":
        assert layer.scale_weight is None
        assert torch.equal(full_weight(layer, torch.float32), cast(merged).float())
        return
    shape = {"block": (32, 5, 1), "row": (32, 1), "full": (32, 1), "tensor": ()}[form]
    q, scale = quantize(merged, shape)
    stored = layer.weight_scale if form == "tensor" else layer.scale_weight
    assert torch.equal(layer.weight.view(torch.uint8), q.view(torch.uint8))
    assert stored.shape == shape and torch.equal(stored, scale)


def test_dora_beside_an_fp8_layer(tmp_path: Path, base: dict) -> None:
    """Its norms are those of the dequantised weight."""
    model = load_dit(write(tmp_path, base), dtype=torch.float32, precision="fp8_scaled")
    layer, x = model.get_submodule(TO_Q), randn(4, 32)
    weight = full_weight(layer, torch.float32)
    up, down = randn(32, 2, seed=1), randn(2, 32, seed=2)
    magnitude = randn(32, 1, seed=3).abs() + 1
    tensors = {"lora_A.weight": down, "lora_B.weight": up, "dora_scale": magnitude}
    tensors = {f"{TO_Q}.{slot}": x for slot, x in tensors.items()}
    save_file(tensors, tmp_path / "lora.safetensors")
    apply_loras(model, [LoraUse(load_lora(tmp_path / "lora.safetensors", SHAPES))])
    moved = weight + up @ down
    expected = x @ (moved * magnitude / moved.norm(dim=1, keepdim=True)).T + base[f"{TO_Q}.bias"]
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


# --- LLaMA ----------------------------------------------------------------------------------------


def test_llama_in_fp8_computes_in_fp16() -> None:
    paths = (SNAPSHOT / "text_encoder", SNAPSHOT / "text_encoder_2")
    plain = load_text_encoders(*paths, dtype=torch.float16)
    fp8 = load_text_encoders(*paths, dtype=torch.float16, llama_precision="fp8")
    kinds = {type(m).__name__: m.weight.dtype for m in fp8.llama.modules() if hasattr(m, "weight")}
    assert kinds["QuantisedLinear"] == E4M3 and kinds["Embedding"] == torch.float16
    assert {dtype for name, dtype in kinds.items() if "Norm" in name} == {torch.float16}
    assert not any(isinstance(m, QuantisedLinear) for m in fp8.clip.modules())
    a, b = (encoders.encode("a red circle moves left") for encoders in (plain, fp8))
    assert b.text.dtype == torch.float16 and b.text.shape == a.text.shape
    error = (b.text.float() - a.text.float()).norm() / a.text.float().norm()
    assert 0 < error < 0.2
    assert torch.equal(a.pooled, b.pooled)


def test_random_weights_lose_a_fortieth() -> None:
    """The error on Gaussian weights by theory: uniform within a step, about 2.6 %."""
    weight = torch.randn(512, 512, generator=generator())
    q, scale = quantize(weight, scale_shape((512, 512)))
    error = (dequantize(q, scale, torch.float32) - weight).norm() / weight.norm()
    assert math.isclose(error, 0.026, rel_tol=0.06)
