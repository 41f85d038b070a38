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

from .dit_tiny import ATOL, RTOL, arguments_of, inputs_of, load_model, noise_floor
from .result import Case, compare, exact

BF16_ATOL = 5e-2
PREFIX = "lora_unet_"


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
            yield exact(f"{name}.{strength}.more[dropped-modules]", more, [])
            changed = [key for key in changed if key in expected]
        yield exact(f"{name}.{strength}.changed", changed, expected)
        dtypes = sorted({str(merge(k, goldens.base[k].float()).dtype)[6:] for k in merge.names})
        yield exact(f"{name}.{strength}.dtype", dtypes, result["dtype"])
        unused = re.findall(r"[\w.]+\.lora_down\.weight", " ".join(result["warnings"]))
        expected = sorted(key.removesuffix(".lora_down.weight") for key in unused)
        yield exact(f"{name}.{strength}.unused", sorted(lora.report.unmatched), expected)
        probe = f"{name}@{strength}"
        yield from goldens.probes(probe, merge, torch.float32, ATOL, probe)


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
        yield exact(f"{tag}.base-dtype", found, of_base)
        yield exact(f"{tag}.dtypes[merged-dtype]", found, case["merged_dtypes"])
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
        plain = model(**arguments_of(given))
        applied = apply_loras(model, [LoraUse(lora)])
        run = partial(model, **arguments_of(given))
        atol = ATOL + noise_floor(run)
        beside = run()
        yield compare(f"{entry}.beside", beside, expected, RTOL, atol)
        applied.remove()
        merged = _merged(model, lora)(**arguments_of(given))
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
    chosen = {
        "exclude_attn_no_dim": select_layers(dit, exclude=["attn"]),
        # The reference's include adds to what it takes without; here it is all that is taken.
        "exclude_single_include_norm1": {
            **select_layers(dit, exclude=["single"]),
            **select_layers(dit, include=[r"norm1\.linear"]),
        },
    }
    for name, layers in chosen.items():
        expected = spec[name]["names"] if isinstance(spec[name], dict) else spec[name]
        found = sorted(PREFIX + underscored(layer) for layer in layers)
        yield exact(f"training_network.{name}", found, sorted(expected))


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
    lora = goldens.load(spec["on"].split()[0])
    for case in spec["cases"]:
        include, exclude = case["include"], case["exclude"]
        name = f"filter:{include}/{exclude}"
        try:
            chosen = lora.select([include] if include else [], [exclude] if exclude else [])
        except FramePackError as error:
            tag = "[pattern-of-no-module]"
            yield exact(f"{name}{tag}", f"error: {error}", case["changed"])
            continue
        merge = MergeLoras([LoraUse(chosen)])
        yield exact(f"{name}.changed", _changed(merge), sorted(case["changed"]))
        yield from goldens.probes(name, merge, torch.float32, ATOL, name)


def _options(goldens: Goldens) -> Iterator[Case]:
    """What the reference's command line does with lists of patterns and without multipliers."""
    path = goldens.path(goldens.spec["filter"]["on"].split()[0])
    calls = {
        "include_patterns_as_list": {"include": ["attn"]},
        "lora_multiplier_default_float": {},
        "lora_multiplier_none": {},
    }
    for name, expected in goldens.spec["filter"]["cli_quirks"].items():
        open_loras([path], goldens.shapes, **calls[name])
        yield exact(f"options.{name}[lora-options]", "no error", expected)


# --- files that the reference misreads ------------------------------------------------------------


def _fused_loha(goldens: Goldens) -> Iterator[Case]:
    spec = goldens.spec["hunyuan_loha_conversion"]
    tensors = _invent(spec["input_keys"], goldens.shapes)
    lora = _from_tensors(tensors, goldens.shapes)
    expected = {key.split(".")[0] for key in spec["output_keys"] if ".hada_" in key}
    yield exact("hunyuan_loha[fused-loha]", _modules(lora), sorted(expected))


def _odd_files(goldens: Goldens) -> Iterator[Case]:
    for i, case in enumerate(goldens.spec["odd_files"]):
        tensors = _invent(case["input_keys"], goldens.shapes)
        output = case["output"]
        down, up = (
            {k.split(".")[0] for k in output if f".lora_{w}.weight" in k} for w in ("down", "up")
        )
        applied = sorted(m for m in down & up if m.startswith(PREFIX))
        try:
            lora = _from_tensors(tensors, goldens.shapes)
        except FramePackError:
            yield exact(f"odd.{i}", [], applied)
            continue
        yield exact(f"odd.{i}[odd-names]", _modules(lora), applied)
        for key in (key for key in case["input_keys"] if key.endswith(".alpha")):
            delta = next(iter(lora.deltas.values()))
            of_rank_only = 1.0 if any(k.endswith("_alpha") for k in output) else None
            yield exact(f"odd.{i}.{key}[stored-alpha]", delta.scale, of_rank_only)


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
