"""Files in every format of quantised weights, loaded by this pack into ComfyUI's own layers."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import SkipTest
from unittest.mock import patch

import comfy.model_management
import comfy.ops
import torch
from checks_lora import MODELS, OPPOSITE, apply
from inside import difference, error_of, pack, run, sample, slow
from safetensors.torch import load_file, save_file

TO_Q, PROJ_OUT = "transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_out"
# Whole-video distances of Toy World from bf16 (norms), each with room for other machines.
NATIVE = {
    "float8_e4m3fn": 0.35,
    "float8_e5m2": 0.5,
    "int8_tensorwise": 0.12,
    "int8_convrot": 0.12,
    "convrot_w4a4": 1.0,
    "asym_w4a8_int8": 0.5,
    "nvfp4": 0.6,
    "mxfp8": 0.35,
}
# Versions of ComfyUI from before it knew MXFP8 have no layers for these formats: ours emulate them.
OWN_LAYERS = hasattr(comfy.model_management, "supports_mxfp8_compute")
BLOCKS = {"gguf_q8_0": 0.1, "gguf_q6_k": 0.15, "gguf_q5_k": 0.25, "gguf_q4_k": 0.4}


@cache
def made(precision: str) -> str:
    """Toy World's DiT as a file in a format, and its name in models/diffusion_models."""
    if precision.startswith("gguf") and find_spec("gguf") is None:
        raise SkipTest("ComfyUI's Python has no package gguf")
    suffix = "gguf" if precision.startswith("gguf") else "safetensors"
    path = MODELS / f"toy_{precision}.{suffix}"
    source = pack("framepack_core.toyworld").SNAPSHOT / "transformer"
    MODELS.mkdir(parents=True, exist_ok=True)
    pack("framepack_core.models.merge").save_dit(source, path, precision=precision)
    return path.name


def load(precision: str) -> Any:
    return run("FPReelLoadModel", model=made(precision), precision="auto")[0]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def check_files_load_into_comfyui_s_own_layers_where_it_has_them() -> Any:
    return own_layers("float8_e4m3fn", "int8_convrot", "nvfp4")


@slow
def check_files_of_every_format_load_into_comfyui_s_own_layers_where_it_has_them() -> Any:
    return own_layers(*NATIVE)


def own_layers(*precisions: str) -> dict[str, float]:
    """How far a whole video is from that of bf16."""
    plain, measured = sample(), {}
    for precision in precisions:
        model = load(precision)
        layer = model.model.diffusion_model.get_submodule(TO_Q)
        if OWN_LAYERS:
            assert isinstance(layer.weight, comfy.ops.QuantizedTensor), precision
        else:
            stored = load_file(MODELS / made(precision))[f"{TO_Q}.weight"]
            assert isinstance(layer, pack("nodes.comfyui.quantised").EmulatingLinear)
            assert layer.weight.dtype == stored.dtype, precision
            assert torch.equal(layer.weight.view(torch.uint8), stored.view(torch.uint8)), precision
        assert model.model.diffusion_model.proj_out.weight.dtype == torch.float32
        measured[precision] = relative(sample(model), plain)
        assert 0 < measured[precision] < NATIVE[precision], measured
    return measured


def check_fp8_is_multiplied_by_rows_where_that_is_faster() -> Any:
    """As on a GPU, whose clock says which is; layers of ours that emulate fp8 have no choice."""
    quantised = pack("nodes.comfyui.quantised")
    fastest = pack("framepack_core.models.fastest")
    layer = load("float8_e4m3fn").model.diffusion_model.get_submodule(TO_Q)
    if not OWN_LAYERS:
        fastest.chosen.clear()
        x, stored = torch.randn(1, 40, 128), load_file(MODELS / made("float8_e4m3fn"))
        weight = stored[f"{TO_Q}.weight"].float() * stored[f"{TO_Q}.weight_scale"]
        whole = torch.nn.functional.linear(x, weight, layer.bias.float())
        with patch.object(quantised, "LONG", 1):
            assert relative(layer(x), whole) < 1e-6
        assert not fastest.chosen
        return None
    x = torch.randn(1, 40, 128, dtype=layer.weight.dtype)
    assert not quantised._fp8_by_rows(layer, x)  # on a CPU
    layer._full_precision_mm = False
    weight = quantised.layer_weight(layer, x.device)
    whole = torch.nn.functional.linear(x.float(), weight, layer.bias.float())
    for times, ours in (((2.0, 1.0), True), ((1.0, 2.0), False)):
        fastest.chosen.clear()
        ticks = iter(times)
        clock = patch.object(fastest, "milliseconds", lambda _run, ticks=ticks: next(ticks))
        unnoted = patch.object(fastest, "_file", None)
        with clock, unnoted, patch.object(quantised, "LONG", 1):
            out = layer(x)
            assert torch.equal(out, quantised.multiplied_by_rows(layer, x)) == ours
            assert 0.001 < relative(out.float(), whole) < 0.06
    return relative(quantised.multiplied_by_rows(layer, x).float(), whole)


def check_gguf_files_are_listed_and_dequantised_as_in_the_core() -> Any:
    listed = made("gguf_q8_0")
    inputs = pack("nodes.load").LoadModel.GET_SCHEMA().inputs
    assert listed in next(i.options for i in inputs if i.id == "model")
    build = pack("framepack_core.models.build")
    full = pack("framepack_core.weights.quantised_linear").full_weight
    ours = pack("nodes.comfyui.quantised").layer_weight
    plain, measured = sample(), {}
    for precision, bound in BLOCKS.items():
        name, model = made(precision), load(precision)
        core = build.load_dit(MODELS / name, dtype=torch.float32)
        for path in (TO_Q, PROJ_OUT):
            layer = model.model.diffusion_model.get_submodule(path)
            fits = path == PROJ_OUT or precision == "gguf_q8_0"  # rows of 512 and of 128 numbers
            assert (layer.weight.dtype == torch.uint8) == fits, precision
            expected = full(core.get_submodule(path), torch.float32)
            assert torch.equal(ours(layer, torch.device("cpu")), expected)
        measured[precision] = relative(sample(model), plain)
        assert 0 < measured[precision] < bound, measured
    return measured


@slow
def check_loras_on_every_format_keep_their_effect() -> Any:
    """The change of the latents by a LoRA beside the weights, over that in bf16."""
    expected, kept = (sample(apply(load_plain(), OPPOSITE, 1.0)) - sample()).norm(), {}
    for precision in ("float8_e4m3fn", "int8_convrot", "gguf_q8_0"):
        model = load(precision)
        kept[precision] = float((sample(apply(model, OPPOSITE, 1.0)) - sample(model)).norm())
        kept[precision] /= float(expected)
        assert 0.95 < kept[precision] < 1.05, kept
    return kept


def load_plain() -> Any:
    source = pack("framepack_core.toyworld").SNAPSHOT / "transformer"
    return pack("nodes.comfyui.model").load_model(source)


def check_saving_keeps_quantised_weights_and_merges_loras() -> None:
    model = apply(load("int8_convrot"), OPPOSITE, 1.0, include="^transformer_blocks.0.attn.to_q$")
    options = {"filename": "int8", "folder": "output", "precision": "int8_convrot"}
    path, _ = run("FPReelSaveMerged", model=model, **options)
    saved, before = load_file(path), load_file(MODELS / made("int8_convrot"))
    changed = {name for name, x in before.items() if not torch.equal(saved[name], x)}
    assert set(saved) == set(before)
    assert changed == {f"{TO_Q}.weight", f"{TO_Q}.weight_scale"}, changed


def check_a_merged_model_can_be_a_gguf_file() -> Any:
    made("gguf_q8_0")  # or the package is not there
    model = apply(load_plain(), OPPOSITE, 1.0)
    options = {"model": model, "filename": "merged", "precision": "gguf_q8_0"}
    refused = error_of(lambda: run("FPReelSaveMerged", **options, folder="output", shard_gb=1.0))
    assert refused == "shard_gb: gguf_q8_0 is written as one file; set it to 0", refused
    path, errors = run("FPReelSaveMerged", **options, folder="models/diffusion_models")
    name = Path(path).name
    assert name == "merged_00001_.gguf" and "of the weight in" in errors
    (again,) = run("FPReelLoadModel", model=name, precision="auto")
    distance = relative(sample(again), sample(model))
    assert 0 < distance < BLOCKS["gguf_q8_0"], distance
    return distance


@slow
def check_comfyui_s_lora_loader_patches_quantised_weights() -> Any:
    """Where our layers emulate int8, it is refused in one sentence, and the model is as before."""
    measured: dict[str, Any] = {}
    (lora,) = [pack("nodes.comfyui.paths").lora_path(OPPOSITE)]
    (MODELS.parent / "loras").mkdir(exist_ok=True)
    (MODELS.parent / "loras" / "opposite.safetensors").write_bytes(lora.read_bytes())
    for precision in ("float8_e4m3fn", "int8_convrot", "gguf_q8_0"):
        base = load(precision)
        plain = sample(base)
        (patched,) = run(
            "LoraLoaderModelOnly", model=base, lora_name="opposite.safetensors", strength_model=1.0
        )
        if precision == "int8_convrot" and not OWN_LAYERS:
            measured[precision] = error_of(lambda patched=patched: sample(patched))
            assert measured[precision] == (
                "model: nothing can be patched into int8_tensorwise weights in this version of "
                "ComfyUI; apply LoRAs with FramePack Apply LoRA, or update ComfyUI"
            )
        else:
            effect = sample(apply(base, OPPOSITE, 1.0)) - plain
            measured[precision] = relative(sample(patched) - plain, effect)
            assert measured[precision] < 0.6, measured
        assert difference(sample(base), plain) < 1e-5
    return measured


def check_a_quantised_llama_stays_so_and_encodes_alike() -> Any:
    """Of a file that states its formats; the words are those of the whole weights, nearly."""
    snapshot = pack("framepack_core.toyworld").SNAPSHOT
    formats = pack("framepack_core.weights.formats")
    layers = MODELS.parent / "text_encoders" / "llama"
    layers.mkdir(parents=True, exist_ok=True)
    (layers / "config.json").write_bytes((snapshot / "text_encoder" / "config.json").read_bytes())
    load_clip = pack("nodes.comfyui.encoders").load_clip
    clip = snapshot / "text_encoder_2"
    plain = load_clip(snapshot / "text_encoder", clip)
    state = {}
    for name, x in plain.cond_stage_model.llama.state_dict().items():
        kept = formats.MADE["int8_tensorwise" if "mlp" in name else "float8_e4m3fn"]
        if name.endswith("_proj.weight"):
            parts = formats.Encoding(kept, kept.options(tuple(x.shape))).encode(x.float())
            state |= {name.removesuffix("weight") + part: t for part, t in parts.items()}
        else:
            state[name] = x
    save_file(state, layers / "model.safetensors")
    (layers / "tokenizer").mkdir(exist_ok=True)
    for file in (snapshot / "tokenizer").iterdir():
        (layers / "tokenizer" / file.name).write_bytes(file.read_bytes())
    quantised = load_clip(layers, clip)
    llama = quantised.cond_stage_model.llama
    kinds = {x.weight.dtype for x in llama.modules() if isinstance(x, torch.nn.Linear)}
    assert kinds == {torch.int8, torch.float8_e4m3fn}, kinds
    words = [
        run("FPReelTextEncode", clip=c, text="a red circle")[0][0][0] for c in (plain, quantised)
    ]
    distance = relative(words[1], words[0])
    assert 0 < distance < 0.2, distance
    return distance
