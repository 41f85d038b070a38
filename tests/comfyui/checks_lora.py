"""LoRAs, fp8 and merged models in ComfyUI, on the tiny DiT of the tests and on Toy World."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import lora_files
import node_helpers
import torch
from checks_guidance import guide, section
from inside import (
    BASE,
    SETTINGS,
    core,
    core_sampler,
    difference,
    error_of,
    pack,
    plan,
    run,
    sample,
    scene,
    slow,
    toy,
    unscaled,
)
from safetensors.torch import load_file, save_file
from tiny import CONFIG, context, guided, randn, tiny_dit

LORAS, MODELS = BASE / "models" / "loras", BASE / "models" / "diffusion_models"
OPPOSITE = "Toy World: opposite (built in)"
WEAK = 0.05  # a strength at which the random LoRAs of the tests change much, but not all


# The tiny model and its LoRAs


def save_tiny() -> Path:
    path = MODELS / "tiny.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tiny_dit().state_dict(), path, {"config": json.dumps(CONFIG.to_dict())})
    return path


@cache
def load(name: str, precision: str = "fp32") -> Any:
    save_tiny()
    (model,) = run("FPReelLoadModel", model=name, precision=precision)
    return model


def answer(model: Any) -> torch.Tensor:
    """What two steps with fixed inputs make, which reach every parameter."""
    given = guided()
    values = pack("nodes.comfyui.model").section_conditions(
        context(), torch.tensor([[1, 2]]), given.image_embeds
    )
    positive = [[given.text.text, {"pooled_output": given.text.pooled}]]
    (latent,) = run(
        "KSampler",
        model=model,
        seed=1,
        steps=2,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
        positive=node_helpers.conditioning_set_values(positive, values),
        negative=positive,
        latent_image={"samples": torch.zeros(1, 16, 2, 4, 4)},
        denoise=1.0,
    )
    return latent["samples"]


def formats() -> dict[str, Any]:
    """A LoRA file of every trainer's spelling and of every kind."""
    found = lora_files.every_kind()
    for name, (modules, key, slots) in lora_files.DIALECTS.items():
        factors = partial(lora_files.lora, alpha=1.5 if "alpha" in slots else None)
        found[name] = lora_files.LoraFile.make(modules, key, slots, factors)
    return found


def save_lora(file: Any, name: str) -> str:
    LORAS.mkdir(exist_ok=True)
    name = name.replace(",", "").replace(" ", "_").replace("'", "") + ".safetensors"
    file.save(LORAS).rename(LORAS / name)
    return name


def apply(model: Any, lora: str, strength: float = WEAK, **more: Any) -> Any:
    return run("FPReelApplyLora", model=model, lora=lora, strength=strength, **more)[0]


def merged(lora: str, dtype: torch.dtype) -> Any:
    """The tiny model with a LoRA merged by the core, as a file that ComfyUI loads."""
    core = pack("framepack_core.lora.apply")
    build = pack("framepack_core.models.build")
    uses = core.open_loras([LORAS / lora], build.dit_shapes(build.dit_config(save_tiny())), [WEAK])
    path = MODELS / f"merged_{dtype}_{lora}"
    pack("framepack_core.models.merge").save_dit(save_tiny(), path, uses, dtype=dtype)
    precision = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    return run("FPReelLoadModel", model=path.name, precision=precision)[0]


@slow
def check_lora_of_every_format_answers_as_the_merged_model() -> Any:
    """In fp32 closely; in bf16 no further from the exact answer than the merged bf16 model is."""
    plain, measured = answer(load("tiny.safetensors")), {}
    for name, file in formats().items():
        lora = save_lora(file, name)
        exact = answer(merged(lora, torch.float32))
        beside = answer(apply(load("tiny.safetensors"), lora))
        assert (beside - exact).norm() < 1e-3 * (exact - plain).norm(), name
        rounded = answer(merged(lora, torch.bfloat16))
        beside = answer(apply(load("tiny.safetensors", "bf16"), lora))
        measured[name] = float((beside - exact).norm() / (rounded - exact).norm())
    assert max(measured.values()) < 1.25, measured
    return measured


@slow
def check_lora_at_zero_and_taken_off_is_the_base_to_the_bit() -> None:
    for precision in ("fp32", "bf16", "fp8", "fp8_scaled"):
        base = load("tiny.safetensors", precision)
        state = {name: x.clone() for name, x in base.model.state_dict().items()}
        plain = answer(base)
        for name, file in lora_files.every_kind().items():
            lora = save_lora(file, name)
            assert not torch.equal(answer(apply(base, lora)), plain), name
            assert torch.equal(answer(apply(base, lora, 0.0)), plain), name
            assert torch.equal(answer(base), plain), name
        after = base.model.state_dict()
        assert all(torch.equal(after[name], x) for name, x in state.items())


def check_loras_in_a_chain_and_in_a_list_add_up() -> Any:
    base = load("tiny.safetensors")
    one, two = (save_lora(lora_files.every_kind()[kind], kind) for kind in ("LoRA", "DoRA"))
    chained = answer(apply(apply(base, one), two, -0.02))
    listed = answer(apply(base, one, more_loras=f"\n{two}: -0.02\n"))
    assert torch.equal(chained, listed)
    measured = difference(chained, answer(apply(apply(base, two, -0.02), one)))
    assert measured < 1e-4 and difference(chained, answer(apply(base, one))) > 1e-3
    return measured


def check_lora_patterns_and_what_is_refused() -> None:
    base = load("tiny.safetensors")
    lora = save_lora(lora_files.every_kind()["LoRA"], "LoRA")
    _, report = run("FPReelApplyLora", model=base, lora=lora, strength=0.5)
    count = len(lora_files.NATIVE)
    assert f"fits {count} modules" in report and f"applied to {count} modules" in report
    _, report = run(
        "FPReelApplyLora",
        model=base,
        lora=lora,
        strength=0.5,
        include="single_transformer_blocks",
        exclude="proj_mlp",
    )
    assert "applied to 5 modules at strength 0.5" in report, report

    def refused(lora: str = lora, **more: Any) -> str:
        return error_of(lambda: apply(base, lora, **more))

    assert "include pattern 'nothing' matches none" in refused(include="nothing")
    assert "is not a regular expression" in refused(exclude="(")
    assert "gone.safetensors is not in models/loras" in refused("gone.safetensors")
    assert "is not in models/loras" in refused("../../secret.safetensors")
    assert "more_loras: 'x' in 'a: x' is not a number" in refused(more_loras="a: x")
    key = "diffusion_model.blocks.0.self_attn.q"
    wan = {f"{key}.lora_A.weight": torch.ones(2, 8), f"{key}.lora_B.weight": torch.ones(8, 2)}
    save_file(wan, LORAS / "wan.safetensors")
    assert "is a LoRA for Wan, not for FramePack" in refused("wan.safetensors")
    (LORAS / "cut.safetensors").write_bytes((LORAS / lora).read_bytes()[:500])
    assert "cut.safetensors" in refused("cut.safetensors")


# Memory


@contextmanager
def loads_counted() -> Iterator[list[str]]:
    """The names of models whose weights ComfyUI places, patches or takes back meanwhile."""
    seen: list[str] = []
    kept = {
        name: getattr(comfy.model_patcher.ModelPatcher, name) for name in ("load", "unpatch_model")
    }

    def counted(name: str) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if name == "load" or kwargs.get("unpatch_weights", True):
                seen.append(type(self.model).__name__)
            return kept[name](self, *args, **kwargs)

        return call

    for name in kept:
        setattr(comfy.model_patcher.ModelPatcher, name, counted(name))
    try:
        yield seen
    finally:
        for name, method in kept.items():
            setattr(comfy.model_patcher.ModelPatcher, name, method)


def check_another_strength_reloads_no_weights() -> Any:
    model = apply(toy().model, OPPOSITE, 1.0)
    first = sample(model)
    with loads_counted() as seen:
        start = time.monotonic()
        again = apply(toy().model, OPPOSITE, 0.5)
        seconds = time.monotonic() - start
        second = sample(again)
    assert difference(first, second) > 1e-3
    assert "FramePackModel" not in seen, seen
    assert "LoraFactors" in seen, seen
    return {"seconds to apply": seconds}


def check_comfyui_counts_and_moves_the_factors() -> None:
    model = apply(toy().model, OPPOSITE, 1.0)
    sample(model)
    patchers = [entry.model for entry in mm.current_loaded_models]  # None where one has ended
    factors = next(p for p in patchers if p and type(p.model).__name__ == "LoraFactors")
    stored = load_file(pack("framepack_core.toyworld").OPPOSITE_LORA)
    numbers = sum(x.numel() for name, x in stored.items() if not name.endswith(".alpha"))
    assert factors.model_size() == 4 * numbers
    assert not any(p.is_inference() for p in factors.model.parameters())
    make, arguments = factors.cached_patcher_init
    assert make(*arguments, disable_dynamic=True).model_size() == factors.model_size()


# Strengths of sections


def own_strengths(strengths: dict[str, float], mode: str = "framepack") -> Any:
    """A plan of three sections with LoRA strengths of their own."""
    made = plan(mode, sections=3)
    for sections, strength in strengths.items():
        made = guide(made, sections, lora_strength=strength)
    return made


def with_lora(strengths: dict[str, float], mode: str = "framepack", **more: Any) -> torch.Tensor:
    """Latents of Toy World with the built-in LoRA, at such strengths in its sections."""
    model = apply(toy(mode).model, OPPOSITE, 1.0)
    return sample(model, plan=own_strengths(strengths, mode), **more)


@slow
def check_lora_strengths_of_all_sections_are_those_of_the_run() -> None:
    for mode in ("framepack", "f1"):
        plain = sample(toy(mode).model, plan=plan(mode, sections=3))
        whole = with_lora({}, mode)
        assert difference(plain, whole) > 1e-2
        assert torch.equal(with_lora({"0-2": 1.0}, mode), whole)
        assert torch.equal(with_lora({"0-2": 0.0}, mode), plain)
        half = apply(toy(mode).model, OPPOSITE, 0.5)
        assert torch.equal(with_lora({"0-2": 0.5}, mode), sample(half, plan=plan(mode, sections=3)))
        assert torch.equal(sample(toy(mode).model, plan=plan(mode, sections=3)), plain)


def check_only_the_chosen_section_gets_the_lora() -> None:
    """Sections are made from the last to the first, so the last one sees the same in all runs."""
    plain, whole = sample(plan=plan(sections=3)), with_lora({})
    first = with_lora({"0-1": 0.0})
    assert torch.equal(section(first, 2), section(whole, 2))
    assert not torch.equal(section(first, 1), section(whole, 1))
    last = with_lora({"1": 0.0, "-1": 0.0})
    assert all(torch.equal(section(last, index), section(plain, index)) for index in (1, 2))
    assert difference(section(last, 0), section(plain, 0)) > 1e-3
    middle = with_lora({"0": 0.0, "2": 0.0})
    assert torch.equal(section(middle, 2), section(plain, 2))
    assert difference(section(middle, 1), section(plain, 1)) > 1e-3


def check_lora_strengths_of_sections_are_those_of_the_core() -> float:
    weights = pack("framepack_core.lora.apply")
    # With the mode, as core_sampler asks for it: another call makes another model.
    dit, toyworld = core("framepack").dit, pack("framepack_core.toyworld")
    shapes = {name: x.shape for name, x in dit.state_dict().items()}
    applied = weights.apply_loras(dit, weights.open_loras([toyworld.OPPOSITE_LORA], shapes))
    strengths = own_strengths({"2": 0.25, "1": 0.0, "0": 2.0})
    generate = pack("framepack_core.sampling.generate").generate
    try:
        sampler = core_sampler(loras=applied)
        expected = generate(strengths, sampler, core().start, SETTINGS["seed"])
    finally:
        applied.remove()
    measured = difference(with_lora({"2": 0.25, "1": 0.0, "0": 2.0}), unscaled(expected))
    assert measured < 1e-3, measured
    return measured


def check_lora_strengths_of_sections_with_cfg_a_cache_and_a_native_sampler() -> None:
    (negative,) = run("FPReelTextEncode", clip=toy().clip, text="")
    (euler,) = run("KSamplerSelect", sampler_name="euler")
    for more in (
        {"cfg": 2.0, "negative": negative},
        {"step_cache": "TeaCache", "cache_threshold": 0.3},
        {"sampler": euler},
    ):
        plain = sample(plan=plan(sections=3), **more)
        made = with_lora({"1-2": 0.0}, **more)
        assert torch.equal(section(made, 2), section(plain, 2)), more
        assert not torch.equal(section(made, 0), section(plain, 0)), more


def check_lora_strengths_of_sections_reload_no_weights() -> None:
    model = apply(toy().model, OPPOSITE, 1.0)
    whole = sample(model, plan=plan(sections=3))
    strengths = own_strengths({"2": 0.0, "1": 0.5, "0": 1.0})
    with loads_counted() as seen:
        made = sample(model, plan=strengths)
    assert "FramePackModel" not in seen, seen
    assert difference(made, whole) > 1e-3
    assert torch.equal(sample(model, plan=plan(sections=3)), whole)  # nothing is left of it


def native_lora() -> Any:
    """Toy World with the built-in LoRA through ComfyUI's own loader."""
    LORAS.mkdir(exist_ok=True)
    shutil.copy(pack("framepack_core.toyworld").OPPOSITE_LORA, LORAS / "opposite.safetensors")
    lora = {"lora_name": "opposite.safetensors", "strength_model": 1.0}
    return run("LoraLoaderModelOnly", model=toy().model, **lora)[0]


def check_lora_strengths_of_sections_need_the_node() -> str:
    strengths = own_strengths({"1": 0.5})
    native = native_lora()
    assert difference(sample(native), sample()) > 1e-3
    checked = {"plan": strengths, "start_latent": scene().start, "steps": 2}
    for model in (toy().model, native):
        message = error_of(lambda model=model: sample(model, plan=strengths))
        assert message == error_of(lambda model=model: run("FPReelCheck", model=model, **checked))
        assert message.startswith("lora_strength: section 1 has one of its own, but"), message
        assert "FramePack Apply LoRA" in message and "LoraLoaderModelOnly" in message, message
        assert "\n" not in message
    off = apply(toy().model, OPPOSITE, 0.0)  # to compare with, say
    assert torch.equal(sample(off, plan=strengths), sample(plan=plan(sections=3)))
    return message


def check_weights_patched_by_others_are_told_to_stay() -> None:
    native, said = native_lora(), []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = pack("framepack_core.runtime.display").logger
    logger.addHandler(handler)
    try:
        with_both = sample(apply(native, OPPOSITE, 1.0), plan=own_strengths({"0-2": 0.0}))
        assert [line.split(",")[0] for line in said] == ["model: its weights are patched"], said
        assert torch.equal(with_both, sample(native, plan=plan(sections=3)))
        with_lora({"0-2": 0.0})
        sample(apply(native, OPPOSITE, 1.0))
        assert len(said) == 1, said
    finally:
        logger.removeHandler(handler)


# fp8


def check_fp8_models_are_smaller_and_alike() -> Any:
    """The DiT's answer moves by a few percent, as fp8's rounding does; scaled by less."""
    plain = answer(load("tiny.safetensors"))
    measured = {}
    for precision in ("fp8", "fp8_e5m2", "fp8_scaled"):
        model = load("tiny.safetensors", precision)
        dtypes = {p.dtype for p in model.model.parameters()}
        assert any(dtype.itemsize == 1 for dtype in dtypes)
        measured[precision] = float((answer(model) - plain).norm() / plain.norm())
    assert measured["fp8_scaled"] < measured["fp8_e5m2"] < 0.5, measured
    sizes = {p: size_of_blocks(load("tiny.safetensors", p)) for p in ("bf16", "fp8_scaled")}
    assert sizes["fp8_scaled"] < 0.6 * sizes["bf16"], sizes
    return measured


def size_of_blocks(model: Any) -> int:
    """Bytes of the block's linear weights, with their scales."""
    state = model.model.diffusion_model.state_dict()
    linear = pack("framepack_core.weights.formats").is_block_linear
    layers = {name.removesuffix("weight") for name in state if linear(name)}
    return sum(x.nbytes for name, x in state.items() if name.rpartition(".")[0] + "." in layers)


def check_scaled_files_of_others_load_directly() -> Any:
    """ComfyUI's older and newer scaled files and ours keep their fp8 numbers and mean the same."""
    core = pack("framepack_core.weights.fp8")
    state, plain = tiny_dit().state_dict(), answer(load("tiny.safetensors"))
    measured = {}
    for style, scale_key in (("older", "scale_weight"), ("newer", "weight_scale")):
        tensors = {}
        for name, x in state.items():
            if not pack("framepack_core.weights.formats").is_block_linear(name):
                tensors[name] = x
                continue
            q, scale = core.quantize(x, ())
            base = name.removesuffix(".weight")
            tensors |= {name: q, f"{base}.{scale_key}": scale.reshape(1)}
            if style == "newer":
                stated = json.dumps({"format": "float8_e4m3fn"}).encode()
                tensors[f"{base}.comfy_quant"] = torch.frombuffer(
                    bytearray(stated), dtype=torch.uint8
                )
        if style == "older":
            tensors["scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
        path = MODELS / f"comfy_{style}.safetensors"
        save_file(tensors, path, {"config": json.dumps(CONFIG.to_dict())})
        (model,) = run("FPReelLoadModel", model=path.name, precision="auto")
        weight = "transformer_blocks.0.attn.to_q.weight"
        loaded = model.model.diffusion_model.state_dict()[weight]
        assert loaded.dtype == torch.float8_e4m3fn
        assert torch.equal(loaded.view(torch.uint8), tensors[weight].view(torch.uint8))
        (wide,) = run("FPReelLoadModel", model=path.name, precision="fp32")
        measured[style] = difference(answer(model), answer(wide))
        assert measured[style] < 1e-4
        assert (answer(model) - plain).norm() < 0.2 * plain.norm()
    return measured


def layer_effects(model: Any, use: Any) -> dict[str, torch.Tensor]:
    """What a LoRA adds to the output of each of its linear layers, for a fixed input."""
    dit, found = model.model.diffusion_model, {}
    for name in use.lora.modules:
        layer = dit.get_submodule(name)
        x = randn(500, layer.in_features).to(dit.dtype)
        before = layer(x)
        applied = pack("framepack_core.lora.apply").apply_loras(
            dit, [use], pack("nodes.comfyui.quantised").layer_weight
        )
        found[name] = (layer(x) - before).float()
        applied.remove()
    return found


@slow
def check_lora_on_scaled_fp8_keeps_its_effect() -> Any:
    """At least 99 % of its norm in bf16, layer by layer; and in the latents of Toy World."""
    snapshot = pack("framepack_core.toyworld").SNAPSHOT / "transformer"
    loader = pack("nodes.comfyui.model").load_model
    models = {p: loader(snapshot, torch.bfloat16, None, p) for p in ("full", "fp8_scaled")}
    file = pack("nodes.comfyui.paths").lora_path(OPPOSITE)
    use, *_ = pack("nodes.comfyui.lora").read_loras(models["full"], [(file, 1.0)], "", "")
    effects = {p: layer_effects(model, use) for p, model in models.items()}
    kept = {
        name: float((effects["fp8_scaled"][name] * x).sum() / x.square().sum())
        for name, x in effects["full"].items()
    }
    assert min(kept.values()) > 0.99, kept
    norms = {p: (sample(apply(m, OPPOSITE, 1.0)) - sample(m)).norm() for p, m in models.items()}
    whole = float(norms["fp8_scaled"] / norms["full"])
    assert 0.97 < whole < 1.03, whole
    return {"least of a layer": min(kept.values()), "latents": whole}


def check_native_lora_loader_on_fp8() -> Any:
    """ComfyUI rounds the merged weights to fp8, under their old scales: near, and reversible."""
    modules = {n: lora_files.NATIVE[n] for n in lora_files.NATIVE if "transformer_blocks" in n}
    make = lora_files.LoraFile.make
    lora = save_lora(make(modules, lora_files.dotted("transformer."), lora_files.PEFT), "native")
    measured = {}
    for precision in ("fp8", "fp8_scaled"):
        base = load("tiny.safetensors", precision)
        plain = answer(base)
        (patched,) = run("LoraLoaderModelOnly", model=base, lora_name=lora, strength_model=0.1)
        effect = answer(apply(base, lora, 0.1)) - plain
        measured[precision] = float((answer(patched) - plain - effect).norm() / effect.norm())
        assert measured[precision] < 0.5, measured
        assert torch.equal(answer(base), plain)
    return measured


def check_patches_applied_while_streaming_mean_the_whole_weight() -> Any:
    """Where memory is short ComfyUI patches a layer's weight at each use."""
    base = load("tiny.safetensors", "fp8_scaled")
    name = "transformer_blocks.0.attn.to_q"
    layer, key = base.model.diffusion_model.get_submodule(name), f"diffusion_model.{name}.weight"
    x, change = randn(3, layer.in_features), 0.1 * randn(*layer.weight.shape, seed=5)
    whole = pack("nodes.comfyui.quantised").layer_weight(layer, torch.device("cpu"))
    patched = base.clone()
    patched.add_patches({key: ("diff", (change,))}, 0.5)
    function = comfy.model_patcher.LowVramPatch(
        key, patched.patches, layer.convert_weight, layer.set_weight
    )
    layer.weight_function = [function]
    try:
        out = layer(x)
    finally:
        layer.weight_function = []
    expected = torch.nn.functional.linear(x, whole + 0.5 * change, layer.bias)
    assert difference(out, expected) < 1e-4
    return difference(out, expected)


# Merged models


def check_saved_model_holds_every_lora() -> Any:
    """Ours and ComfyUI's own, rounded once; and it loads to the same video."""
    lora = save_lora(lora_files.every_kind()["LoRA"], "LoRA")
    native = LORAS / "norm.safetensors"
    key = "diffusion_model.single_transformer_blocks.0.proj_out"
    rows, columns = lora_files.SHAPES["single_transformer_blocks.0.proj_out.weight"]
    factors = {"A": 0.1 * randn(2, columns), "B": 0.1 * randn(rows, 2, seed=1)}
    save_file({f"{key}.lora_{n}.weight": x for n, x in factors.items()}, native)
    base = load("tiny.safetensors")
    (model,) = run("LoraLoaderModelOnly", model=base, lora_name=native.name, strength_model=0.5)
    model = apply(model, lora)
    expected, measured = answer(model), {}
    options = {"filename": "merged/all", "folder": "models/diffusion_models"}
    for precision, shard_gb, bound in (
        ("bf16", 0.0, 0.02),
        ("fp16", 1e-4, 0.01),
        ("fp8_scaled", 0.0, 0.3),
    ):
        path, _ = run(
            "FPReelSaveMerged", model=model, precision=precision, shard_gb=shard_gb, **options
        )
        name = str(Path(path).relative_to(MODELS))
        (again,) = run("FPReelLoadModel", model=name, precision="fp32")
        measured[precision] = float((answer(again) - expected).norm() / expected.norm())
        assert measured[precision] < bound, measured
    shards = sorted((MODELS / "merged").glob("*/*.safetensors"))
    assert len(shards) > 1 and "-00001-of-" in shards[0].name
    files = pack("framepack_core.weights.files")
    saved = json.loads(
        files.read_header(MODELS / "merged" / "all_00001_.safetensors").metadata["framepack_merged"]
    )
    assert saved["base"] == "tiny.safetensors" and saved["host_patches"] == 1
    [entry] = saved["loras"]
    assert entry["file"] == lora and entry["strength"] == WEAK
    return measured


def check_saving_keeps_what_is_in_fp8_and_unchanged() -> None:
    lora = save_lora(lora_files.every_kind()["LoRA"], "LoRA")
    base = load.__wrapped__("tiny.safetensors", "fp8_scaled")
    model = apply(base, lora, include="^transformer_blocks.0.attn.to_q$")
    path, _ = run(
        "FPReelSaveMerged", model=model, filename="kept", folder="output", precision="fp8_scaled"
    )
    saved, stored = load_file(path), base.model.diffusion_model.state_dict()
    changed = {
        name
        for name, x in stored.items()
        if x.dtype.itemsize == 1
        and not torch.equal(x.view(torch.uint8), saved[name].view(torch.uint8))
    }
    assert changed == {"transformer_blocks.0.attn.to_q.weight"}, changed
    escape = partial(
        run, "FPReelSaveMerged", model=base, filename="../../x", folder="output", precision="bf16"
    )
    try:
        escape()
    except Exception as error:
        assert "outside" in str(error).lower(), error
    else:
        raise AssertionError("a path outside of the folder was taken")


# Attention


def check_attention_choices() -> Any:
    snapshot = pack("framepack_core.toyworld").SNAPSHOT / "transformer"
    loader = pack("nodes.comfyui.model").load_model
    base, measured = sample(), {}
    for name in ("pytorch", "split", "sub_quad"):
        measured[name] = difference(sample(loader(snapshot, attention=name)), base)
    assert max(measured.values()) < 1e-3, measured
    message = error_of(lambda: loader(snapshot, attention="flash"))
    assert "attention: flash is not available in this ComfyUI" in message
    return measured


# Ledger


def check_ledger_knows_a_lora_by_its_file_and_strength() -> None:
    """The same LoRA finds its sections again, another strength none of them; 0 is no LoRA."""
    models = [apply(toy().model, OPPOSITE, strength) for strength in (1.0, 1.0, 0.5, 1.0, 0.0)]
    counts = [steps_of(model, plan()) for model in [*models, toy().model]]
    assert counts[1] == counts[3] == counts[5] == 0 < counts[0] == counts[2] == counts[4], counts


def check_ledger_makes_what_depends_on_the_lora_strength_of_a_section() -> None:
    model, made = apply(toy().model, OPPOSITE, 1.0), {}
    for sections in ("", "0", "1", "2", "0-2", ""):
        strengths = own_strengths({sections: 0.7} if sections else {})
        made.setdefault(sections, []).append(steps_of(model, strengths) // SETTINGS["steps"])
    # made in the order 2, 1, 0; the run of "2" has made section 2 as that of "0-2" wants it
    assert made == {"": [3, 0], "0": [1], "1": [2], "2": [3], "0-2": [2]}, made


def steps_of(model: Any, made: Any) -> int:
    """How many times a run with the ledger on calls the DiT."""
    steps: list[str] = []
    with steps_counted(steps):
        sample(model, plan=made, ledger=True)
    return len(steps)


@contextmanager
def steps_counted(seen: list[str]) -> Iterator[None]:
    """Adds "step" for each call of the DiT."""
    kind = type(toy().model.model.diffusion_model)
    forward = kind._forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append("step")
        return forward(self, *args, **kwargs)

    kind._forward = counted
    try:
        yield
    finally:
        kind._forward = forward
