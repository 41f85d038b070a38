"""LoRA files of every golden format: what each changes and by how much, and files misread."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from framepack_core.lora.apply import LoraUse, MergeLoras, apply_loras, open_loras
from framepack_core.lora.delta import LowRank
from framepack_core.lora.files import Lora, load_lora
from framepack_core.lora.names import Shapes, part_table, underscored
from framepack_core.models.build import dit_shapes
from framepack_core.models.dit import DiTConfig, FramePackDiT
from framepack_core.runtime.errors import FramePackError
from framepack_core.training.adapters import (
    Adapter,
    Adapters,
    factorize,
    select_layers,
)
from framepack_core.training.config import AdapterConfig

from .dit_tiny import ATOL, RTOL, dit_inputs, inputs_of, load_model, noise_floor
from .result import Case, compare, compare_ours, digest, exact, exact_ours, refusal, refused

BF16_ATOL = 5e-2
PREFIX = "lora_unet_"
# HunyuanVideo's names of what lies outside of its blocks, and the DiT's.
OUTSIDE = {
    "img_in_proj": "x_embedder.proj",
    "txt_in_input_embedder": "context_embedder.proj_in",
    "txt_in_t_embedder_mlp_0": "context_embedder.time_text_embed.timestep_embedder.linear_1",
    "txt_in_t_embedder_mlp_2": "context_embedder.time_text_embed.timestep_embedder.linear_2",
    "txt_in_c_embedder_linear_1": "context_embedder.time_text_embed.text_embedder.linear_1",
    "txt_in_c_embedder_linear_2": "context_embedder.time_text_embed.text_embedder.linear_2",
    "time_in_mlp_0": "time_text_embed.timestep_embedder.linear_1",
    "time_in_mlp_2": "time_text_embed.timestep_embedder.linear_2",
    "vector_in_in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in_out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in_mlp_0": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in_mlp_2": "time_text_embed.guidance_embedder.linear_2",
    "final_layer_linear": "proj_out",
    "final_layer_adaLN_modulation_1": "norm_out.linear",
}
REFINER = re.compile(r"txt_in_individual_token_refiner_blocks_(\d+)_(\w+)")
OF_REFINER = {
    "self_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "self_attn_proj": ("attn.to_out.0",),
    "mlp_fc1": ("ff.net.0.proj",),
    "mlp_fc2": ("ff.net.2",),
    "adaLN_modulation_1": ("norm_out.linear",),
}


@dataclass(frozen=True)
class Goldens:
    """The golden file, its tensors, and the base model."""

    folder: Path
    spec: dict[str, Any]
    tensors: dict[str, Tensor]
    base: dict[str, Tensor]
    shapes: Shapes

    @classmethod
    def of(cls, folder: Path) -> Goldens:
        config = json.loads((folder / "dit_tiny_config.json").read_text())
        return cls(
            folder,
            json.loads((folder / "lora.json").read_text()),
            load_file(folder / "lora_merged.safetensors"),
            load_file(folder / "dit_tiny_weights.safetensors"),
            dit_shapes(DiTConfig.from_dict(config)),
        )

    def path(self, name: str) -> Path:
        return self.folder / self.spec["formats"][name]["file"]

    def load(self, name: str) -> Lora:
        return load_lora(self.path(name), self.shapes)

    def probed(self, name: str) -> Iterator[tuple[str, str, Tensor]]:
        """(key, side, expected) of a case of merged weights."""
        for entry, expected in self.tensors.items():
            case, _, rest = entry.rpartition("|")[0].rpartition("|")
            if case == name:
                yield rest, entry.rpartition("|")[2], expected

    def probes(
        self, name: str, merge: MergeLoras, dtype: torch.dtype, atol: float, label: str
    ) -> Iterator[Case]:
        """Every recorded product of a merged weight with a fixed vector."""
        for key, side, expected in self.probed(name):
            merged = merge(key, self.base[key].to(dtype)).float()
            if side == "right":
                merged = merged @ self.tensors[f"p{merged.shape[1]}"]
            elif side == "left":
                merged = self.tensors[f"p{merged.shape[0]}"] @ merged
            yield compare(f"{label}.{key}.{side}", merged, expected, RTOL, atol)


def check(folder: Path) -> Iterator[Case]:
    goldens = Goldens.of(folder)
    for name, case in goldens.spec["formats"].items():
        yield from _format(goldens, name, case)
    yield from _stacked(goldens)
    yield from _bf16_base(goldens)
    yield from _filter(goldens)
    yield from _options(goldens)
    yield from _fused_loha(goldens)
    yield from _odd_files(goldens)
    yield from _full_width(goldens.spec["full_width_conversion"])
    yield from _models(goldens)
    yield from _training_network(goldens)
    for case in goldens.spec["lokr_factorization"]:
        size, factor = case["dimension"], case["factor"]
        found = list(factorize(size, factor))
        yield exact(f"lokr_factorization.{size}.{factor}", found, case["result"])


def _changed(merge: MergeLoras) -> list[str]:
    return sorted(merge.names)


# --- formats --------------------------------------------------------------------------------------


def _format(goldens: Goldens, name: str, case: dict[str, Any]) -> Iterator[Case]:
    lora = goldens.load(name)
    yield exact(f"{name}.detected", [k.lower() for k in lora.report.kinds], [case["detected"]])
    if isinstance(case["converted_keys"], dict):
        expected = _factors(case["converted_keys"])
        found = {key: shape for key, shape in _converted(lora).items() if key in expected}
        yield exact(f"{name}.converted", found, expected)
    for strength, result in case["results"].items():
        merge = MergeLoras([LoraUse(lora, float(strength))])
        changed, expected = _changed(merge), sorted(result["changed"])
        if case["messages"]:  # of what the reference drops
            more = [key for key in changed if key not in expected]
            yield from _dropped(goldens, f"{name}.{strength}", case, more, merge)
            changed = [key for key in changed if key in expected]
        yield exact(f"{name}.{strength}.changed", changed, expected)
        dtypes = sorted({str(merge(k, goldens.base[k].float()).dtype)[6:] for k in merge.names})
        yield exact(f"{name}.{strength}.dtype", dtypes, result["dtype"])
        unused = re.findall(r"[\w.]+\.lora_down\.weight", " ".join(result["warnings"]))
        expected = sorted(key.removesuffix(".lora_down.weight") for key in unused)
        yield exact(f"{name}.{strength}.unused", sorted(lora.report.unmatched), expected)
        probe = f"{name}@{strength}"
        yield from goldens.probes(probe, merge, torch.float32, ATOL, probe)


def _dropped(
    goldens: Goldens, name: str, case: dict[str, Any], more: list[str], merge: MergeLoras
) -> Iterator[Case]:
    """What a HunyuanVideo LoRA changes outside of the blocks: which weights, and to what."""
    factors = load_file(goldens.folder / case["file"])
    named = set(re.findall(rf"{PREFIX}(\w+)\.lora_", " ".join(case["messages"])))
    rule = sorted(f"{module}.weight" for name_ in named for module in _outside(name_))
    tag, inputs = "dropped-modules", [name, sorted(named), sorted(factors)]
    yield exact_ours(f"{name}.more", tag, more, rule=rule, reference=[], inputs=inputs)
    strength = float(name.split(".", 1)[1])
    for name_ in sorted(named):
        factors_of = {k: x for k, x in factors.items() if name_ in k.replace(".", "_")}
        of_name = {k: x.float() for k, x in factors_of.items()}
        down, up, alpha = (
            next((x for k, x in of_name.items() if re.search(part, k)), None)
            for part in (r"lora_(A|down)", r"lora_(B|up)", r"alpha$")
        )
        scale = 1.0 if alpha is None else float(alpha) / len(down)
        change = strength * scale * (up.flatten(1) @ down.flatten(1))
        if name_.startswith("final_layer_adaLN"):  # HunyuanVideo's shift comes first, ours last
            change = torch.cat(change.chunk(2)[::-1])
        modules = [m for m in _outside(name_) if f"{m}.weight" in goldens.base]
        for module, part in zip(modules, change.chunk(max(len(modules), 1)), strict=False):
            key = f"{module}.weight"
            base = goldens.base[key].float()
            yield compare_ours(
                f"{name}.{key}",
                tag,
                merge(key, base),
                rule=base + part.view(base.shape),
                reference=base,
                inputs=[*inputs, key, digest(goldens.base[key], *factors_of.values())],
                rtol=RTOL,
                atol=ATOL,
            )


def _outside(name: str) -> tuple[str, ...]:
    """The modules of the DiT behind one of HunyuanVideo's outside of its blocks."""
    if match := REFINER.fullmatch(name):
        block = f"context_embedder.token_refiner.refiner_blocks.{match[1]}"
        return tuple(f"{block}.{part}" for part in OF_REFINER.get(match[2], (match[2],)))
    return (OUTSIDE.get(name, f"unknown {name}"),)


def _converted(lora: Lora) -> dict[str, list[int]]:
    """The factors as musubi-tuner names them, with their shapes."""
    found: dict[str, list[int]] = {}
    for name, delta in lora.deltas.items():
        if isinstance(delta, LowRank):
            module = PREFIX + underscored(name.removesuffix(".weight"))
            found[f"{module}.lora_down.weight"] = list(delta.down.shape)
            found[f"{module}.lora_up.weight"] = list(delta.up.shape)
    return found


def _factors(keys: Mapping[str, list[int]]) -> dict[str, list[int]]:
    return {key: shape for key, shape in keys.items() if not key.endswith(".alpha")}


def _stacked(goldens: Goldens) -> Iterator[Case]:
    case = goldens.spec["stacked"]
    paths = [goldens.path(name) for name in case["files"]]
    uses = open_loras(paths, goldens.shapes, case["multipliers_given"])
    yield exact("stacked.strengths", [u.strength for u in uses], case["multipliers_used"])
    merge = MergeLoras(uses)
    yield exact("stacked.changed", _changed(merge), sorted(case["changed"]))
    yield from goldens.probes("stacked", merge, torch.float32, ATOL, "stacked")


def _bf16_base(goldens: Goldens) -> Iterator[Case]:
    spec = goldens.spec["bf16_base"]
    source, strength = re.search(r"(\w+) cast to .* multiplier ([\d.]+)", spec["note"]).groups()
    for case in spec["cases"]:
        lora = _cast(goldens, source, case["lora_dtype"], case["alpha_dtype"])
        merge = MergeLoras([LoraUse(lora, float(strength))])
        found = {k: str(merge(k, goldens.base[k]).dtype)[6:] for k in merge.names}
        tag, of_base = case["tag"], dict.fromkeys(found, "bfloat16")
        promoted = torch.promote_types(torch.bfloat16, getattr(torch, case["lora_dtype"]))
        as_promoted = dict.fromkeys(found, str(promoted)[6:])
        yield exact(f"{tag}.promoted", as_promoted, case["merged_dtypes"])
        yield exact_ours(
            f"{tag}.dtypes",
            "merged-dtype",
            found,
            rule=of_base,
            reference=case["merged_dtypes"],
            inputs=[case["lora_dtype"], case["alpha_dtype"], sorted(found)],
        )
        yield from goldens.probes(tag, merge, torch.bfloat16, BF16_ATOL, tag)


def _cast(goldens: Goldens, name: str, dtype: str, alpha_dtype: str) -> Lora:
    def cast(key: str, x: Tensor) -> Tensor:
        return x.to(getattr(torch, alpha_dtype if key.endswith(".alpha") else dtype))

    tensors = {key: cast(key, x) for key, x in load_file(goldens.path(name)).items()}
    return _from_tensors(tensors, goldens.shapes)


def _from_tensors(tensors: dict[str, Tensor], shapes: Shapes) -> Lora:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lora.safetensors"
        save_file(tensors, path)
        return load_lora(path, shapes)


def _models(goldens: Goldens) -> Iterator[Case]:
    """The whole model: merged as recorded, and with the LoRA beside its layers."""
    case = goldens.spec["model_out"]["case"]
    given = inputs_of(load_file(goldens.folder / f"dit_tiny_{case}.safetensors"))
    for entry, expected in goldens.tensors.items():
        if not entry.startswith("model_out."):
            continue
        name = entry.removeprefix("model_out.")
        lora, model = goldens.load(name), load_model(goldens.folder)
        plain = model(dit_inputs(given))
        applied = apply_loras(model, [LoraUse(lora)])
        run = partial(model, dit_inputs(given))
        atol = ATOL + noise_floor(run)
        beside = run()
        yield compare(f"{entry}.beside", beside, expected, RTOL, atol)
        applied.remove()
        merged = _merged(model, lora)(dit_inputs(given))
        yield compare(f"{entry}.merged", merged, expected, RTOL, atol)
        yield compare(f"{entry}.beside-merged", beside, merged, RTOL, ATOL)
        effect = goldens.spec["formats"][name]["max_abs_effect_on_model"]
        actual = (merged - plain).abs().max()
        yield compare(f"{entry}.effect", actual, torch.tensor(effect), RTOL, atol)


def _merged(model: FramePackDiT, lora: Lora) -> FramePackDiT:
    merge = MergeLoras([LoraUse(lora)])
    model.load_state_dict({name: merge(name, x) for name, x in model.state_dict().items()})
    return model


# --- adapters to be trained -----------------------------------------------------------------------


def _training_network(goldens: Goldens) -> Iterator[Case]:
    """Which layers get an adapter, of what shapes and scale."""
    spec = goldens.spec["training_network"]
    settings = {"rank": spec["network_dim"], "alpha": spec["network_alpha"]}
    lora = _adapters(goldens, AdapterConfig(kind="lora", **settings))
    loha = _adapters(goldens, AdapterConfig(kind="loha", **settings))
    first = spec["lora"][0]
    yield exact("training_network.modules", sorted(lora), sorted(spec["lora"]))
    yield exact("training_network.lora", lora[first], spec["lora_shapes_of_first"])
    yield exact(
        "training_network.loha.modules", sorted(loha) == sorted(lora), spec["loha_same_names"]
    )
    yield exact("training_network.loha", loha[first], spec["loha_shapes_of_first"])
    for name, factor in (("lokr_shapes", -1), ("lokr_factor4_shapes", 4)):
        found = _adapters(goldens, AdapterConfig(kind="lokr", **settings, factor=factor))
        expected = spec[name]
        yield exact(f"training_network.{name}", {key: found[key] for key in expected}, expected)
    adapter = Adapter(first, 64, 64, AdapterConfig(kind="lora", **settings))
    yield exact("training_network.scale", adapter.scale, spec["scale"])
    yield exact("training_network.alpha", adapter.alpha, spec["alpha_buffer"])
    dit = _skeleton(goldens)
    without = spec["exclude_attn_no_dim"]
    small = {"rank": without["dim"], "alpha": without["alpha"], "exclude": ("attn",)}
    found = sorted(_adapters(goldens, AdapterConfig(kind="lora", **small)))
    yield exact("training_network.exclude_attn_no_dim", found, sorted(without["names"]))
    chosen = {
        # The reference's include adds to what it takes without; here it is all that is taken.
        "exclude_single_include_norm1": {
            **select_layers(dit, exclude=["single"]),
            **select_layers(dit, include=[r"norm1\.linear"]),
        },
    }
    for name, layers in chosen.items():
        found = sorted(PREFIX + underscored(layer) for layer in layers)
        yield exact(f"training_network.{name}", found, sorted(spec[name]))


def _skeleton(goldens: Goldens) -> FramePackDiT:
    config = json.loads((goldens.folder / "dit_tiny_config.json").read_text())
    return FramePackDiT(DiTConfig.from_dict(config), device="meta")


def _adapters(goldens: Goldens, config: AdapterConfig) -> dict[str, dict[str, list[int]]]:
    """Shapes of the factors by their keys, by module."""
    found: dict[str, dict[str, list[int]]] = {}
    for name, factor in Adapters.create(_skeleton(goldens), config).named_tensors().items():
        module, _, key = name.partition(".")
        found.setdefault(module, {})[key] = list(factor.shape)
    return found


# --- choosing modules -----------------------------------------------------------------------------


def _filter(goldens: Goldens) -> Iterator[Case]:
    spec = goldens.spec["filter"]
    source = spec["on"].split()[0]
    lora = goldens.load(source)
    keys = sorted(load_file(goldens.path(source)))
    for case in spec["cases"]:
        include, exclude = case["include"], case["exclude"]
        name = f"filter:{include}/{exclude}"
        left = [
            key
            for key in keys
            if (include is None or re.search(include, key))
            and (exclude is None or not re.search(exclude, key))
        ]
        yield exact(f"{name}.remaining", left, sorted(case["remaining_keys"]))
        names, kept = _selected(keys, goldens.shapes, include, exclude)
        try:
            chosen = lora.select([include] if include else [], [exclude] if exclude else [])
        except FramePackError as error:
            yield exact_ours(
                name,
                "pattern-of-no-module",
                refusal(error, *names),
                rule=refused(*names) if names else kept,
                reference=sorted(case["changed"]),
                inputs=[include, exclude, keys],
            )
            continue
        merge = MergeLoras([LoraUse(chosen)])
        yield exact(f"{name}.modules", chosen.modules, kept)
        yield exact(f"{name}.changed", _changed(merge), sorted(case["changed"]))
        yield from goldens.probes(name, merge, torch.float32, ATOL, name)


def _selected(
    keys: list[str], shapes: Shapes, include: str | None, exclude: str | None
) -> tuple[tuple[str, ...], list[str]]:
    """What our error names if it must, and the modules that our rule leaves."""
    named = {key.split(".")[0] for key in keys}
    modules = {n.removesuffix(".weight") for n in shapes if n.endswith(".weight")}
    modules = {m for m in modules if PREFIX + underscored(m) in named}

    def found(pattern: str) -> set[str]:
        either = re.compile(pattern)
        return {m for m in modules if either.search(m) or either.search(PREFIX + underscored(m))}

    for pattern in filter(None, (include, exclude)):
        if not found(pattern):
            return (repr(pattern), "none of the"), []
    kept = (found(include) if include else modules) - (found(exclude) if exclude else set())
    return (() if kept else ("leave nothing",)), sorted(kept)


def _options(goldens: Goldens) -> Iterator[Case]:
    """What the reference's command line does with lists of patterns and without multipliers."""
    source = goldens.spec["filter"]["on"].split()[0]
    path, keys = goldens.path(source), sorted(load_file(goldens.path(source)))
    patterns = {
        "include_patterns_as_list": "attn",
        "lora_multiplier_default_float": None,
        "lora_multiplier_none": None,
    }
    for name, expected in goldens.spec["filter"]["cli_quirks"].items():
        pattern = patterns[name]
        [use] = open_loras([path], goldens.shapes, include=[pattern] if pattern else [])
        actual = {"modules": use.lora.modules, "strength": use.strength}
        rule = {"modules": _selected(keys, goldens.shapes, pattern, None)[1], "strength": 1.0}
        reference = rule if expected == "no error" else expected
        yield exact_ours(
            f"options.{name}",
            "lora-options",
            actual,
            rule=rule,
            reference=reference,
            inputs=[name, keys],
        )


# --- files that the reference misreads ------------------------------------------------------------


def _fused_loha(goldens: Goldens) -> Iterator[Case]:
    spec = goldens.spec["hunyuan_loha_conversion"]
    tensors = _invent(spec["input_keys"], goldens.shapes)
    lora = _from_tensors(tensors, goldens.shapes)
    output = spec["output_keys"]
    # Its alphas have the names of all the split layers, of which it loses the factors.
    rule, reference = (
        sorted({key.split(".")[0] for key in output if part in key})
        for part in (".alpha", ".hada_")
    )
    yield exact_ours(
        "hunyuan_loha",
        "fused-loha",
        _modules(lora),
        rule=rule,
        reference=reference,
        inputs=sorted(spec["input_keys"]),
    )


def _odd_files(goldens: Goldens) -> Iterator[Case]:
    for i, case in enumerate(goldens.spec["odd_files"]):
        tensors = _invent(case["input_keys"], goldens.shapes)
        output = case["output"]
        down, up = (
            {k.split(".")[0] for k in output if f".lora_{w}.weight" in k} for w in ("down", "up")
        )
        applied = sorted(m for m in down & up if m.startswith(PREFIX))
        rule = _whole_modules(case["input_keys"], goldens.shapes)
        try:
            lora: Lora | None = _from_tensors(tensors, goldens.shapes)
        except FramePackError:
            lora = None
        yield exact_ours(
            f"odd.{i}",
            "odd-names",
            [] if lora is None else _modules(lora),
            rule=rule,
            reference=applied,
            inputs=case["input_keys"],
        )
        for key in (key for key in case["input_keys"] if key.endswith(".alpha")):
            module = PREFIX + underscored(_bare(key.removesuffix(".alpha")))
            deltas = {} if lora is None else lora.deltas
            name_of = {PREFIX + underscored(n.removesuffix(".weight")): n for n in deltas}
            scale = deltas[name_of[module]].scale if module in name_of else None
            lost = f"{module}.alpha" not in case["input_keys"] and f"{module}_alpha" in output
            rank = next(len(tensors[k]) for k in tensors if re.search(r"lora_(A|down)", k))
            of_file = float(tensors[key]) / rank
            yield exact_ours(
                f"odd.{i}.{key}",
                "stored-alpha",
                scale,
                rule=of_file,
                reference=1.0 if lost else of_file,
                inputs=[key, case["input_keys"]],
            )


def _whole_modules(keys: list[str], shapes: Shapes) -> list[str]:
    """The modules of the DiT that a file has both factors of, whatever its keys begin with."""
    sides: dict[str, set[str]] = {}
    for key in keys:
        if match := re.fullmatch(r"(.+)\.lora_(A|B|down|up)(?:\.default)?\.weight", key):
            side = {"A": "down", "B": "up"}.get(match[2], match[2])
            sides.setdefault(PREFIX + underscored(_bare(match[1])), set()).add(side)
    known = {PREFIX + underscored(name.removesuffix(".weight")) for name in shapes}
    return sorted(m for m, found in sides.items() if found == {"down", "up"} and m in known)


def _bare(module: str) -> str:
    return re.sub(rf"^(?:diffusion_model\.|transformer\.|{PREFIX})", "", module)


def _modules(lora: Lora) -> list[str]:
    return sorted(PREFIX + underscored(module) for module in lora.modules)


def _invent(keys: list[str], shapes: Shapes) -> dict[str, Tensor]:
    """Tensors for keys given without any, of rank 2 and the sizes of the model."""
    table = part_table(shapes)

    def size(key: str) -> tuple[int, int]:
        base = underscored(re.sub(r"\.(lora|hada|alpha).*", "", key))
        name = next((n for n in table if base.endswith(n)), None)
        if name is None:
            return 8, 8
        parts = table[max((n for n in table if base.endswith(n)), key=len)]
        rows = sum(stop - start for part in parts for start, stop in part.rows)
        return rows, shapes[f"{parts[0].module}.weight"][1]

    def tensor(key: str) -> Tensor:
        if key.endswith(".alpha"):
            return torch.tensor(1.0)
        rows, columns = size(key)
        first = re.search(r"lora_(up|B)|hada_w\d_a", key)
        return torch.ones((rows, 2) if first else (2, columns))

    return {key: tensor(key) for key in keys}


def _full_width(spec: dict[str, Any]) -> Iterator[Case]:
    """Which rows of HunyuanVideo's fused layers go where in the model of released size."""
    shapes = dit_shapes(DiTConfig())
    table = part_table(shapes)
    fused = {n: parts for n, parts in table.items() if n.startswith(("double_", "single_blocks_"))}
    rows: dict[str, list[int]] = {}
    for parts in sorted(fused.values(), key=len):  # the fused names last, over their parts' own
        rows |= {PREFIX + underscored(p.module): list(p.rows[0]) for p in parts}
    for key, expected in spec["map"].items():
        module = key.split(".")[0]
        if "rows" in expected:
            yield exact(f"full_width.{key}", rows[module], expected["rows"])
        elif key.endswith(".lora_down.weight"):
            name = next(n for n in shapes if underscored(n) == f"{module[len(PREFIX) :]}_weight")
            yield exact(f"full_width.{key}", [1, shapes[name][1]], expected["shape"])
    narrow = {
        f"{PREFIX}double_blocks_0_img_attn_qkv.lora_down.weight": torch.ones(2, 64),
        f"{PREFIX}double_blocks_0_img_attn_qkv.lora_up.weight": torch.ones(192, 2),
    }
    try:
        _from_tensors(narrow, shapes)
        outcome = "no error"
    except FramePackError:
        outcome = "error"
    yield exact("full_width.wrong_width", outcome, "error" if spec["wrong_width"] else "no error")
