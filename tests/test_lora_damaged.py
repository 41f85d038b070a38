"""A thousand damaged and foreign LoRA files: one clear error each, or a correct partial report.

Every file is a good one with one thing done to it that a download, a disk, a training gone wrong or
a wrong choice of file does. None may crash, and none may be applied without its report saying so.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lora_files import (
    FACTORED,
    FOREIGN,
    HUNYUAN,
    KOHYA,
    NATIVE,
    PEFT,
    SHAPES,
    LoraFile,
    base_weights,
    dotted,
    loha,
    lokr,
    underscored,
)
from safetensors.torch import save
from torch import Tensor

from framepack_core.lora.apply import LoraUse, MergeLoras
from framepack_core.lora.files import Lora, inspect_lora, load_lora
from framepack_core.lora.names import split_key
from framepack_core.runtime.errors import FramePackError

FILES = 1000
MODULES = {name: NATIVE[name] for name in list(NATIVE)[::7]}
FUSED = {name: HUNYUAN[name] for name in list(HUNYUAN)[1:14:4]}
GOOD = [
    LoraFile.make(MODULES, underscored("lora_unet_"), KOHYA).tensors,
    LoraFile.make(MODULES, dotted("transformer."), PEFT).tensors,
    LoraFile.make(FUSED, dotted("diffusion_model."), PEFT).tensors,
    LoraFile.make(FUSED, underscored("lora_unet_"), FACTORED, loha).tensors,
    LoraFile.make(
        MODULES, underscored("lora_unet_"), FACTORED, lambda p, seed: lokr(p, seed, "full split")
    ).tensors,
]
Tensors = dict[str, Tensor]
Rng = random.Random


# --- damage to tensors: each must be refused ------------------------------------------------------


def factor(rng: Rng, tensors: Tensors) -> str:
    return rng.choice([key for key, x in tensors.items() if x.dim() > 1])


def one_number(value: float) -> Callable[[Rng, Tensors], None]:
    def spoil(rng: Rng, tensors: Tensors) -> None:
        key = rng.choice(list(tensors))
        tensors[key] = tensors[key].clone()
        tensors[key].view(-1)[rng.randrange(tensors[key].numel())] = value

    return spoil


def without_a_factor(rng: Rng, tensors: Tensors) -> None:
    del tensors[factor(rng, tensors)]


def another_rank(rng: Rng, tensors: Tensors) -> None:
    """A factor whose inner size is not that of its partner."""
    key = rng.choice([k for k in tensors if k.endswith(("_b", "lora_A.weight", "down.weight"))])
    tensors[key] = tensors[key].repeat_interleave(2, 0)


def integers(rng: Rng, tensors: Tensors) -> None:
    key = factor(rng, tensors)
    tensors[key] = tensors[key].to(rng.choice([torch.int8, torch.int64, torch.uint8, torch.bool]))


def no_axes(rng: Rng, tensors: Tensors) -> None:
    key = factor(rng, tensors)
    tensors[key] = torch.ones(rng.choice([(), (3,), (0, 4), (4, 0)]))


def alphas(rng: Rng, tensors: Tensors) -> None:
    key = rng.choice([key for key in tensors if key.endswith(".alpha")])
    tensors[key] = rng.choice([torch.ones(2), torch.ones(0), torch.tensor(torch.nan)])


def twice(rng: Rng, tensors: Tensors) -> None:
    """A module under a second name as well."""
    base, _ = split_key(factor(rng, tensors))
    again = {key: x for key, x in tensors.items() if key.startswith(f"{base}.")}
    tensors |= {f"base_model.model.{key}": x.clone() for key, x in again.items()}


def two_kinds(rng: Rng, tensors: Tensors) -> None:
    base, _ = split_key(factor(rng, tensors))
    tensors[f"{base}.diff"] = torch.ones(2, 2)


DAMAGE = {
    "NaN": one_number(torch.nan),
    "infinite": one_number(torch.inf),
    "factor missing": without_a_factor,
    "ranks": another_rank,
    "integers": integers,
    "no matrix": no_axes,
    "alpha": alphas,
    "twice": twice,
    "two kinds": two_kinds,
}


# --- damage to bytes ------------------------------------------------------------------------------


def truncated(rng: Rng, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def continued(rng: Rng, data: bytes) -> bytes:
    return data + bytes(rng.randrange(1, 99))


def header(rng: Rng, data: bytes) -> bytes:
    """One byte of the header replaced by another; some results are still a valid file."""
    at = rng.randrange(8 + int.from_bytes(data[:8], "little"))
    return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]


def edited(change: Callable[[Rng, dict], None]) -> Callable[[Rng, bytes], bytes]:
    """Change the entries of the header."""

    def edit(rng: Rng, data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        entries = json.loads(data[8 : 8 + length])
        change(rng, entries)
        text = json.dumps(entries).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return edit


def huge(rng: Rng, entries: dict) -> None:
    entries[rng.choice(list(entries))]["shape"] = [10**9, rng.randrange(1, 10**12)]


def odd_entry(rng: Rng, entries: dict) -> None:
    field = rng.choice(["dtype", "shape", "data_offsets"])
    odd = [None, "x", -1, [], {}, [1.5], ["1", "2"], [None, None], [0, 10**18], True]
    entries[rng.choice(list(entries))][field] = rng.choice(odd)


def odd_metadata(rng: Rng, entries: dict) -> None:
    keys = ["ss_datasets", "ss_base_model_version", "lora_adapter_metadata", "framepack_mode", "x"]
    values = [None, 1, "{", "[]", {"a": []}, "x" * 1000, "[1, {}]"]
    odd = {rng.choice(keys): rng.choice(values) for _ in range(3)}
    entries["__metadata__"] = rng.choice([odd, odd, odd, [], 3, "x"])


def empty(_rng: Rng, _data: bytes) -> bytes:
    return b""


def same_key(rng: Rng, data: bytes) -> bytes:
    """One name for two tensors."""
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    first, second = rng.sample(list(entries), 2)
    renamed = json.dumps({first: entries.pop(first)})[1:-1]
    text = f"{{{renamed.replace(first, second, 1)}, {json.dumps(entries)[1:]}".encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


BYTES = {
    "empty": empty,
    "same key": same_key,
    "truncated": truncated,
    "continued": continued,
    "header byte": header,
    "huge": edited(huge),
    "entry": edited(odd_entry),
    "metadata": edited(odd_metadata),
}
REFUSED = {"empty", "same key", "truncated", "continued", "huge", *DAMAGE}


# --- files of something else ----------------------------------------------------------------------


def foreign(rng: Rng) -> Tensors:
    base = rng.choice(list(FOREIGN.values()))
    up, down = rng.choice([("lora_up", "lora_down"), ("lora_B", "lora_A")])
    width, tensors = rng.choice([32, 64, 320]), {}
    for i in range(rng.randrange(1, 5)):
        name = base.replace("0", str(i), 1)
        tensors[f"{name}.{up}.weight"] = torch.ones(width, 2)
        tensors[f"{name}.{down}.weight"] = torch.ones(2, width)
    return tensors


def another_width(rng: Rng) -> Tensors:
    return {key: x.repeat([2] * x.dim()) for key, x in rng.choice(GOOD[:3]).items()}


def no_lora(rng: Rng) -> Tensors:
    names = ["", "a", "x.weight", "transformer_blocks.0.attn.to_q.weight", "lora", ".lora_A.weight"]
    return {name: torch.ones(2, 2) for name in rng.sample(names, rng.randrange(len(names)))}


def zero(rng: Rng) -> Tensors:
    return {key: 0 * x for key, x in rng.choice(GOOD).items()}


OTHERS = {"foreign": foreign, "another width": another_width, "no LoRA": no_lora, "zero": zero}


# --- partly good files ----------------------------------------------------------------------------


def renamed(rng: Rng, tensors: Tensors) -> None:
    """Some modules under names that the model does not have."""
    bases = sorted({split_key(key)[0] for key in tensors})
    for base in rng.sample(bases, rng.randrange(1, len(bases))):
        for key in [key for key in tensors if key.startswith(f"{base}.")]:
            tensors[f"{base}_no_such{key[len(base) :]}"] = tensors.pop(key)


def wider(rng: Rng, tensors: Tensors) -> None:
    """One module of another size."""
    base, _ = split_key(factor(rng, tensors))
    for key in [key for key in tensors if key.startswith(f"{base}.")]:
        tensors[key] = tensors[key].repeat([2] * tensors[key].dim())


PARTIAL = {"renamed": renamed, "wider": wider}


def broken_file(rng: Rng) -> tuple[str, bytes]:
    """What was done, and the bytes of the file."""
    kind = rng.choice([*DAMAGE, *BYTES, *OTHERS, *PARTIAL])
    if kind in OTHERS:
        return kind, save(OTHERS[kind](rng))
    tensors = dict(rng.choice(GOOD))
    if kind == "alpha" and not any(key.endswith(".alpha") for key in tensors):
        tensors = dict(GOOD[0])
    if change := {**DAMAGE, **PARTIAL}.get(kind):
        change(rng, tensors)
    data = save({key: x.contiguous() for key, x in tensors.items()})
    return kind, BYTES[kind](rng, data) if kind in BYTES else data


def assert_partial(lora: Lora, base: dict[str, Tensor]) -> None:
    """Everything in the file is accounted for, and what is applied is sound."""
    report = lora.report
    assert report.problem is None and not report.broken and report.matched == lora.modules
    bases = {found[0] if (found := split_key(key)) else key for key in report.keys}
    applied = bases - set(report.unmatched) - set(report.misfit)
    assert applied and set(report.unmatched) | set(report.misfit) <= bases
    merge = MergeLoras([LoraUse(lora)])
    for name in merge.names:
        merged = merge(name, base[name])
        assert merged.isfinite().all() and merged.shape == base[name].shape
    assert any(not torch.equal(merge(name, base[name]), base[name]) for name in merge.names)


def test_a_thousand_broken_files(tmp_path: Path) -> None:
    rng, base, seen = random.Random(5), base_weights(), Counter()
    for number in range(FILES):
        kind, data = broken_file(rng)
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(data)
        try:
            lora = load_lora(path, SHAPES)
        except FramePackError as error:
            message = str(error)
            assert path.name in message and "\n" not in message and len(message) < 500, message
            seen[kind, "refused"] += 1
        else:
            assert kind not in REFUSED, f"{kind}: {lora.report.describe()}"
            assert_partial(lora, base)
            seen[kind, "partial"] += 1
    kinds = {kind for kind, _ in seen}
    assert kinds == {*DAMAGE, *BYTES, *OTHERS, *PARTIAL} and seen.total() == FILES
    assert seen["renamed", "partial"] > 20 and seen["wider", "partial"] > 20
    assert seen["header byte", "refused"] > 20


def test_the_report_of_a_partly_fitting_file(tmp_path: Path) -> None:
    rng = random.Random(0)
    tensors = dict(GOOD[0])
    renamed(rng, tensors)
    (tmp_path / "l.safetensors").write_bytes(save(tensors))
    report = inspect_lora(tmp_path / "l.safetensors", SHAPES)
    lost = {split_key(key)[0] for key in tensors if "_no_such." in key}
    assert set(report.unmatched) == lost
    assert len(report.matched) == len(MODULES) - len(lost)
    assert f"{len(lost)} with no place in the model: {min(lost)}" in report.describe()


@pytest.mark.parametrize("name", ["x.ckpt", "x.bin", "x.pt"])
def test_torch_files(tmp_path: Path, name: str) -> None:
    torch.save(GOOD[1], tmp_path / name)
    assert load_lora(tmp_path / name, SHAPES).modules == sorted(MODULES)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-100])
    with pytest.raises(FramePackError, match="cannot be read"):
        load_lora(tmp_path / name, SHAPES)
