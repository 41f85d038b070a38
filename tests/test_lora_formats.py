"""Every trainer's LoRA files, built from known factors: the merged weights against fp64."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_files import (
    DIALECTS,
    DIM,
    FACTORED,
    HUNYUAN,
    KOHYA,
    NATIVE,
    PEFT,
    SHAPES,
    Factors,
    LoraFile,
    Pieces,
    base_weights,
    dotted,
    loha,
    lokr,
    lora,
    peft_metadata,
    random,
    underscored,
)
from torch import Tensor

from framepack_core.lora.apply import LoraUse, MergeLoras
from framepack_core.lora.files import Lora, load_lora
from framepack_core.runtime.errors import FramePackError


def assert_merges(found: Lora, expected: dict[str, Tensor], strength: float = 1.0) -> None:
    """The file changes exactly these parameters, to these values."""
    merge = MergeLoras([LoraUse(found, strength)])
    base = base_weights()
    assert set(merge.names) == set(expected)
    for name, weight in expected.items():
        torch.testing.assert_close(merge(name, base[name]).double(), weight, rtol=1e-5, atol=1e-5)


def assert_file(file: LoraFile, folder: Path, metadata: dict[str, str] | None = None) -> Lora:
    found = load_lora(file.save(folder, metadata), SHAPES)
    assert_merges(found, file.merged())
    assert_merges(found, file.merged(0.7), 0.7)
    assert not found.report.unmatched and not found.report.zero
    return found


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects(tmp_path: Path, dialect: str) -> None:
    modules, key, slots = DIALECTS[dialect]

    def factors(pieces: Pieces, seed: int) -> Factors:
        return lora(pieces, seed, rank=2 + seed % 3, alpha=1.5 if "alpha" in slots else None)

    report = assert_file(LoraFile.make(modules, key, slots, factors), tmp_path).report
    assert report.kinds == {"LoRA": len(modules)} and sorted(report.ranks) == [2, 3, 4]


@pytest.mark.parametrize("dialect", ["musubi-tuner", "diffusers", "ComfyUI, HunyuanVideo"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files(tmp_path: Path, dialect: str, dtype: torch.dtype) -> None:
    """The sum is still made in fp32: only the stored factors are rounded."""
    modules, key, slots = DIALECTS[dialect]
    file = LoraFile.make(modules, key, slots)
    found = load_lora(file.save(tmp_path), SHAPES)
    rounded = {k: x.to(dtype) for k, x in file.tensors.items()}
    other = tmp_path / "half"  # old safetensors write into a file that is still mapped
    other.mkdir()
    half = load_lora(LoraFile(rounded, {}, {}).save(other), SHAPES)
    base = base_weights()
    assert found.deltas and found.deltas.keys() == half.deltas.keys()
    for name in found.deltas:
        exact = MergeLoras([LoraUse(found)])(name, base[name])
        near = MergeLoras([LoraUse(half)])(name, base[name])
        assert near.dtype == torch.float32
        change = (exact - base[name]).norm()
        assert 0 < (near - exact).norm() < 0.01 * change


# --- LyCORIS --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["musubi-tuner", "musubi-tuner, HunyuanVideo", "LyCORIS"])
def test_loha(tmp_path: Path, dialect: str) -> None:
    modules, key, _ = DIALECTS[dialect]
    report = assert_file(LoraFile.make(modules, key, FACTORED, loha), tmp_path).report
    assert report.kinds == {"LoHa": len(modules)}


@pytest.mark.parametrize("form", ["full full", "full split", "split full", "split split"])
@pytest.mark.parametrize("dialect", ["musubi-tuner", "ComfyUI, HunyuanVideo"])
def test_lokr(tmp_path: Path, dialect: str, form: str) -> None:
    modules, key, _ = DIALECTS[dialect]

    def factors(pieces: Pieces, seed: int) -> Factors:
        return lokr(pieces, seed, form)

    report = assert_file(LoraFile.make(modules, key, FACTORED, factors), tmp_path).report
    assert report.kinds == {"LoKr": len(modules)}


@pytest.mark.parametrize("height", [1, 2, 7, 14, 28])
def test_fused_lokr_whose_blocks_do_not_end_with_the_parts(tmp_path: Path, height: int) -> None:
    """linear1 has 3 * 32 + 128 = 224 rows; w2 of 224 / height ends anywhere."""
    name = "single_blocks.1.linear1"
    file = LoraFile.make(
        {name: HUNYUAN[name]},
        dotted("diffusion_model."),
        FACTORED,
        lambda pieces, seed: lokr(pieces, seed, "full split", height),
    )
    assert_file(file, tmp_path)


def test_tucker_forms_of_a_convolution(tmp_path: Path) -> None:
    """LoRA, LoHa and LoKr of the patch embedder with a core (LyCORIS, rebuild_tucker)."""
    module, out, channels, kernel = "x_embedder.proj", DIM, 16, (1, 2, 2)
    core, up, down = random(3, 4, *kernel), random(out, 3, 1, 1, 1), random(4, channels, 1, 1, 1)
    shape = "pqxyz,op,qi->oixyz"
    by_hand = torch.einsum(shape, core.double(), up.flatten(1).double(), down.flatten(1).double())
    tensors = {"mid": core, "up": up, "down": down, "alpha": torch.tensor(2.0)}
    check_one(tmp_path, module, tensors, by_hand * 2 / 4, KOHYA | {"mid": ".lora_mid.weight"})

    halves, tensors = [], {"alpha": torch.tensor(2.0)}
    for i in (1, 2):
        t, a, b = random(2, 2, *kernel, seed=i), random(2, out, seed=i), random(2, 16, seed=i + 9)
        halves.append(torch.einsum("pqxyz,po,qi->oixyz", t.double(), a.double(), b.double()))
        tensors |= {f".hada_t{i}": t, f".hada_w{i}_a": a, f".hada_w{i}_b": b}
    check_one(tmp_path, module, tensors, halves[0] * halves[1] * 2 / 2, FACTORED)

    w1, t2 = random(4, 2, seed=3), random(2, 2, *kernel, seed=4)
    a, b = random(2, out // 4, seed=5), random(2, channels // 2, seed=6)
    w2 = torch.einsum("pqxyz,po,qi->oixyz", t2.double(), a.double(), b.double())
    delta = torch.einsum("ab,cdxyz->acbdxyz", w1.double(), w2).reshape(out, channels, *kernel)
    tensors = {".lokr_w1": w1, ".lokr_t2": t2, ".lokr_w2_a": a, ".lokr_w2_b": b}
    check_one(tmp_path, module, tensors, delta, FACTORED)


def check_one(
    folder: Path, module: str, tensors: dict[str, Tensor], delta: Tensor, slots: dict[str, str]
) -> Lora:
    modules = {module: NATIVE[module]}
    make = LoraFile.make(modules, dotted(""), slots, lambda *_: Factors(tensors, delta))
    return assert_file(make, folder)


# --- DoRA, differences, replacements, biases ------------------------------------------------------

QKV = "double_blocks.0.img_attn_qkv"


def dora(weight: Tensor, delta: Tensor, magnitude: Tensor) -> Tensor:
    """Each row, or each column, of weight + delta scaled to the norm given (arXiv 2402.09353)."""
    moved = weight.double() + delta
    axis = 1 if magnitude.shape[1] == 1 else 0
    return moved * (magnitude.double() / moved.square().sum(axis, keepdim=True).sqrt())


@pytest.mark.parametrize("form", ["rows", "columns", "vector"])
@pytest.mark.parametrize("kind", [lora, loha, lokr])
def test_dora(tmp_path: Path, form: str, kind: Callable[..., Factors]) -> None:
    module = "single_transformer_blocks.1.proj_mlp"
    made = kind(NATIVE[module], 0)
    size = {"rows": (4 * DIM, 1), "columns": (1, DIM), "vector": (4 * DIM,)}[form]
    magnitude = random(*size, seed=5).abs() + 0.5
    slot = ".lora_magnitude_vector.default.weight" if form == "vector" else ".dora_scale"
    made.tensors[slot] = magnitude
    file = LoraFile.make({module: NATIVE[module]}, dotted(""), KOHYA, lambda *_: made)
    base = base_weights()[f"{module}.weight"].double()
    expected = dora(base, made.delta, magnitude if form != "vector" else magnitude[:, None])
    found = load_lora(file.save(tmp_path), SHAPES)
    assert_merges(found, {f"{module}.weight": expected})
    half = base + 0.5 * (expected - base)
    assert_merges(found, {f"{module}.weight": half}, 0.5)
    assert list(found.report.kinds) == [
        f"{ {lora: 'LoRA', loha: 'LoHa', lokr: 'LoKr'}[kind] } with DoRA"
    ]


def test_dora_of_a_fused_layer(tmp_path: Path) -> None:
    made = lora(HUNYUAN[QKV], 0)
    magnitude = made.tensors[".dora_scale"] = random(3 * DIM, 1, seed=5).abs() + 0.5
    file = LoraFile.make({QKV: HUNYUAN[QKV]}, underscored("lora_unet_"), KOHYA, lambda *_: made)
    base = base_weights()
    expected = {
        f"{module}.weight": dora(base[f"{module}.weight"], made.delta[a:b], magnitude[a:b])
        for module, a, b in HUNYUAN[QKV]
    }
    assert_merges(load_lora(file.save(tmp_path), SHAPES), expected)


def test_dora_over_the_inputs_of_a_fused_layer_is_refused(tmp_path: Path) -> None:
    """Its norms run over rows that belong to several weights here."""
    made = lora(HUNYUAN[QKV], 0)
    made.tensors[".dora_scale"] = torch.ones(1, DIM)
    file = LoraFile.make({QKV: HUNYUAN[QKV]}, dotted(""), KOHYA, lambda *_: made)
    with pytest.raises(FramePackError, match="DoRA scale over the inputs of a layer that is split"):
        load_lora(file.save(tmp_path), SHAPES)


def test_differences_replacements_and_biases(tmp_path: Path) -> None:
    base = {name: x.double() for name, x in base_weights().items()}
    values = {
        "diffusion_model.double_blocks.0.img_attn.qkv.diff": random(3 * DIM, DIM),
        "diffusion_model.double_blocks.0.img_attn.qkv.diff_b": random(3 * DIM, seed=1),
        "diffusion_model.double_blocks.0.img_attn.norm.query_norm.diff": random(16, seed=2),
        "diffusion_model.txt_in.individual_token_refiner.blocks.0.norm1.w_norm": random(
            DIM, seed=3
        ),
        "diffusion_model.txt_in.individual_token_refiner.blocks.0.norm1.b_norm": random(
            DIM, seed=4
        ),
        "diffusion_model.single_blocks.0.linear2.set_weight": random(DIM, 5 * DIM, seed=5),
        "diffusion_model.final_layer.adaLN_modulation.1.diff_b": random(2 * DIM, seed=6),
    }
    v = [x.double() for x in values.values()]
    attn, refiner = "transformer_blocks.0.attn", "context_embedder.token_refiner.refiner_blocks.0"
    expected = {
        f"{refiner}.norm1.weight": base[f"{refiner}.norm1.weight"] + v[3],
        f"{refiner}.norm1.bias": base[f"{refiner}.norm1.bias"] + v[4],
        f"{attn}.norm_q.weight": base[f"{attn}.norm_q.weight"] + v[2],
        "single_transformer_blocks.0.proj_out.weight": v[5],
        "norm_out.linear.bias": base["norm_out.linear.bias"] + torch.cat([v[6][DIM:], v[6][:DIM]]),
    }
    for i, name in enumerate(("to_q", "to_k", "to_v")):
        rows = slice(i * DIM, (i + 1) * DIM)
        for kind, value in (("weight", v[0]), ("bias", v[1])):
            expected[f"{attn}.{name}.{kind}"] = base[f"{attn}.{name}.{kind}"] + value[rows]
    found = load_lora(LoraFile(values, {}, {}).save(tmp_path), SHAPES)
    assert_merges(found, expected)
    assert found.report.kinds == {"difference": 3, "bias": 1, "replacement": 1}
    half = {name: base[name] + 0.5 * (x - base[name]) for name, x in expected.items()}
    assert_merges(found, half, 0.5)


def test_bias_of_peft(tmp_path: Path) -> None:
    """lora_bias of PEFT is scaled like the factors that it stands beside."""
    module = "proj_out"
    made = lora(NATIVE[module], 0, rank=4)
    made.tensors[".lora_B.bias"] = bias = random(64, seed=3)
    file = LoraFile.make({module: NATIVE[module]}, dotted("transformer."), PEFT, lambda *_: made)
    expected = file.merged() | {"proj_out.bias": base_weights()["proj_out.bias"] + 2 / 4 * bias}
    expected["proj_out.bias"] = expected["proj_out.bias"].double()
    assert_merges(load_lora(file.save(tmp_path), SHAPES), expected)


# --- scaling --------------------------------------------------------------------------------------

SCALED = "transformer_blocks.0.attn.to_k"


def scaled_file(alpha: float | None) -> LoraFile:
    made = lora(NATIVE[SCALED], 0, rank=4, alpha=alpha)
    return LoraFile.make({SCALED: NATIVE[SCALED]}, dotted("transformer."), PEFT, lambda *_: made)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 1.0),
        ({"lora_alpha": 8}, 8 / 4),
        ({"lora_alpha": 8, "use_rslora": True}, 8 / math.sqrt(4)),
        ({"lora_alpha": 8, "alpha_pattern": {"attn.to_k": 3}}, 3 / 4),
        (
            {"lora_alpha": 8, "alpha_pattern": {r".*\.to_[kv]": 3}, "use_rslora": True},
            3 / math.sqrt(4),
        ),
        ({"lora_alpha": 8, "alpha_pattern": {"to_q": 3}}, 8 / 4),
        ({"lora_alpha": None, "alpha_pattern": None}, 1.0),
    ],
)
@pytest.mark.parametrize("beside", [False, True])
def test_peft_scales(tmp_path: Path, config: dict, scale: float, beside: bool) -> None:
    file = scaled_file(None)
    expected = file.merged(scale)
    path = file.save(tmp_path, None if beside else peft_metadata(**config))
    if beside:
        path = path.rename(tmp_path / "adapter_model.safetensors")
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert_merges(load_lora(path, SHAPES), expected)


def test_a_stored_alpha_wins(tmp_path: Path) -> None:
    """LyCORIS's rs-LoRA stores an alpha that already contains the root of the rank."""
    file = scaled_file(6.0)
    assert_merges(
        load_lora(file.save(tmp_path, peft_metadata(lora_alpha=1, use_rslora=True)), SHAPES),
        file.merged(),
    )


def test_an_adapter_config_beside_a_file_of_another_name(tmp_path: Path) -> None:
    file = scaled_file(None)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8}))
    assert_merges(load_lora(file.save(tmp_path), SHAPES), file.merged())


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"lora_alpha": "x"}', '{"alpha_pattern": 3}', '{"alpha_pattern": {"(": 1}}'],
)
def test_a_damaged_adapter_config(tmp_path: Path, text: str) -> None:
    path = scaled_file(None).save(tmp_path, {"lora_adapter_metadata": text})
    with pytest.raises(FramePackError, match="comes with a damaged adapter config"):
        load_lora(path, SHAPES)


# --- mixed files ----------------------------------------------------------------------------------


def mixed() -> LoraFile:
    """Four dialects and three kinds in one file, each on modules of its own."""
    single = "single_transformer_blocks.0"
    parts = [
        LoraFile.make({QKV: HUNYUAN[QKV]}, underscored("lora_unet_"), KOHYA),
        LoraFile.make(
            {f"{single}.proj_mlp": _own(f"{single}.proj_mlp")}, dotted("transformer."), PEFT
        ),
        LoraFile.make({"proj_out": NATIVE["proj_out"]}, dotted("diffusion_model."), FACTORED, loha),
        LoraFile.make(
            {f"{single}.attn.to_q": _own(f"{single}.attn.to_q")}, dotted(""), FACTORED, lokr
        ),
    ]
    join = {name: {} for name in ("tensors", "deltas", "modules")}
    for part, (name, values) in itertools.product(parts, join.items()):
        values |= getattr(part, name)
    return LoraFile(**join)


def _own(module: str) -> Pieces:
    return [(module, 0, SHAPES[f"{module}.weight"][0])]


MIXED = mixed()
MIXED_MERGED = MIXED.merged()


@given(order=st.permutations(sorted(MIXED.tensors)))
@settings(max_examples=30, deadline=None)
def test_mixed_files_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, order: list[str]
) -> None:
    path = tmp_path_factory.mktemp("lora") / "lora.pt"
    torch.save({key: MIXED.tensors[key] for key in order}, path)
    found = load_lora(path, SHAPES)
    assert_merges(found, MIXED_MERGED)
    assert found.report.kinds == {"LoRA": 2, "LoHa": 1, "LoKr": 1}


@given(
    rank=st.integers(1, 40),
    alpha=st.floats(-100, 100),
    strength=st.floats(-2, 2),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_any_rank_alpha_and_strength(
    tmp_path_factory: pytest.TempPathFactory, rank: int, alpha: float, strength: float, seed: int
) -> None:
    alpha = float(torch.tensor(alpha))
    made = lora(NATIVE[SCALED], seed, rank, alpha)
    if not made.delta.any():
        return
    file = LoraFile.make({SCALED: NATIVE[SCALED]}, dotted(""), PEFT, lambda *_: made)
    found = load_lora(file.save(tmp_path_factory.mktemp("lora")), SHAPES)
    name = f"{SCALED}.weight"
    merged = MergeLoras([LoraUse(found, strength)])(name, base_weights()[name])
    scale = 1 + made.delta.abs().max().item() * abs(strength)
    torch.testing.assert_close(
        merged.double(), file.merged(strength)[name], rtol=0, atol=1e-5 * scale
    )
