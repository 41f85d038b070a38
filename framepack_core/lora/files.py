"""LoRA files of every trainer, read into one form: what changes in which weight of the DiT.

What a file holds, what of it fits and what does not is in its report; `load_lora` refuses a file
that cannot be applied as it was trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..runtime.errors import FramePackError
from ..runtime.files import is_file, is_folder
from ..weights.files import WeightFiles, open_weights
from .delta import Decomposed, Delta, Replacement
from .names import Part, Shapes, part_table, resolve, split_key, underscored
from .patterns import select_names
from .readers import AlphaScaling, LoraModule, MalformedModule, ModuleReader, ShapeMismatch
from .report import LoraReport, Provenance

# Of a folder as PEFT's and diffusers' save_pretrained() write it.
ADAPTER_FILES = (
    *("adapter_model.safetensors", "pytorch_lora_weights.safetensors"),
    *("adapter_model.bin", "pytorch_lora_weights.bin"),
)


@dataclass(frozen=True)
class Lora:
    """What a file changes, by the name of the parameter, and the report of reading it.

    sources: what the file itself calls each module.
    """

    report: LoraReport
    deltas: Mapping[str, Delta]
    sources: Mapping[str, str]

    @property
    def path(self) -> Path:
        return self.report.path

    @property
    def modules(self) -> list[str]:
        """The modules that it changes."""
        return sorted({name.rpartition(".")[0] for name in self.deltas})

    def select(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Lora:
        """Only the modules that some `include` expression is found in, and no `exclude` one.

        Regular expressions are searched in a module's name with dots, in musubi-tuner's spelling of
        it and in the file's own name: `transformer_blocks.0.attn.to_q`,
        `lora_unet_transformer_blocks_0_attn_to_q`, `lora_unet_double_blocks_0_img_attn_qkv`. No
        include expression keeps all. Raises FramePackError for one that is invalid or in no name.
        """
        names = {
            module: (module, f"lora_unet_{underscored(module)}", self.sources[module])
            for module in self.modules
        }
        kept = select_names(names, include, exclude, f"modules of {self.path}", self.modules)
        if not kept:
            raise FramePackError(
                f"{self.path}: the patterns leave nothing of its {len(self.modules)} modules; "
                "loosen them, or leave the LoRA out"
            )
        deltas = {n: d for n, d in self.deltas.items() if n.rpartition(".")[0] in kept}
        return replace(self, deltas=deltas)


def load_lora(path: Path | str, shapes: Shapes) -> Lora:
    """Read a LoRA file for a DiT whose parameters have these shapes.

    Raises FramePackError for a file that is damaged, made for another model, or without effect.
    """
    lora = _read(Path(path), shapes)
    if lora.report.problem:
        raise FramePackError(f"{path} {lora.report.problem}")
    return lora


def inspect_lora(path: Path | str, shapes: Shapes) -> LoraReport:
    """What a LoRA file is and what of it fits; raises FramePackError only if it cannot be read."""
    return _read(Path(path), shapes).report


def _read(path: Path, shapes: Shapes) -> Lora:
    path = _adapter_file(path)
    files = open_weights(path)
    table = part_table(shapes)
    scaling = AlphaScaling.of(path, files.metadata)
    modules: dict[str, LoraModule] = {}
    unmatched: dict[str, None] = {}
    keys = {key: split_key(key) or (key, None) for key in files}
    ignored = {resolve(base, table)[1] for base, slot in keys.values() if slot} - {""}
    for key, (base, slot) in keys.items():
        name = resolve(base, table, ignored)[0] if slot else None
        if slot is None or name is None or not _has_target(slot, table[name], shapes):
            unmatched[base] = None
        else:
            modules.setdefault(name, LoraModule(base, table[name])).add(slot, key)
    reading = _Reading(files, shapes, scaling)
    for module in modules.values():
        reading.add(module)
    provenance = Provenance.of(files, modules, [m.base for m in modules.values()])
    report = reading.report(path, provenance, list(unmatched), sorted(ignored))
    return Lora(report, reading.deltas, reading.sources)


def lora_metadata(path: Path | str) -> Mapping[str, str]:
    """What a LoRA file says of itself."""
    return open_weights(_adapter_file(Path(path))).metadata


def _adapter_file(path: Path) -> Path:
    """The file of a path; of a folder as PEFT and diffusers write them, the one inside."""
    if not is_folder(path):
        return path
    found = [file for name in ADAPTER_FILES if is_file(file := path / name)]
    if not found:
        raise FramePackError(
            f"{path} is a folder without {' or '.join(ADAPTER_FILES)}: give a LoRA file"
        )
    return found[0]


def _has_target(slot: str | None, parts: tuple[Part, ...], shapes: Shapes) -> bool:
    return slot not in ("diff_b", "up_bias") or all(f"{p.module}.bias" in shapes for p in parts)


@dataclass
class _Reading:
    """Turns modules of a file into deltas, and keeps what was found on the way."""

    files: WeightFiles
    shapes: Shapes
    scaling: AlphaScaling
    deltas: dict[str, Delta] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    ranks: dict[int, int] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    misfit: dict[str, str] = field(default_factory=dict)
    zero: list[str] = field(default_factory=list)

    def add(self, module: LoraModule) -> None:
        try:
            deltas = self._deltas(module)
        except MalformedModule as reason:
            self.broken[module.base] = str(reason)
            return
        except ShapeMismatch as reason:
            self.misfit[module.base] = str(reason)
            return
        twice = next((name for name in deltas if name in self.deltas), None)
        if twice is not None:
            self.broken[module.base] = f"changes {twice} a second time"
            return
        self.deltas |= deltas
        self.sources |= {part.module: module.base for part in module.parts}

    def report(
        self, path: Path, provenance: Provenance, unmatched: list[str], ignored: list[str]
    ) -> LoraReport:
        return LoraReport(
            path=path,
            provenance=provenance,
            kinds=self.kinds,
            ranks=self.ranks,
            matched=sorted({name.rpartition(".")[0] for name in self.deltas}),
            unmatched=unmatched,
            zero=self.zero,
            broken=self.broken,
            misfit=self.misfit,
            keys=list(self.files),
            foreign=provenance.foreign(self.shapes, unmatched),
            ignored=ignored,
        )

    def _deltas(self, module: LoraModule) -> dict[str, Delta]:
        """The deltas of the module's weight and bias, split where the file has them fused."""
        if module.repeated:
            raise MalformedModule(module.repeated)
        if len(module.kinds) > 1:
            raise MalformedModule(f"is changed in two ways ({' and '.join(module.kinds)})")
        reader = ModuleReader(module, self.files, self._weight_shape(module.parts), self.scaling)
        whole = {"weight": reader.weight(), "bias": reader.bias()}
        found = {kind: delta for kind, delta in whole.items() if delta is not None}
        if not found:
            raise MalformedModule(f"has only {', '.join(sorted(module.keys))}, nothing to apply")
        flat = [x for delta in found.values() for x in delta.tensors.values()]
        if not _all_finite(flat):
            raise MalformedModule("holds NaN or infinite numbers")
        self._count(module, found, reader)
        return {
            f"{part.module}.{kind}": delta.take(part.rows)
            for kind, delta in found.items()
            for part in module.parts
        }

    def _weight_shape(self, parts: tuple[Part, ...]) -> tuple[int, ...]:
        """The shape of the weight as the file has it: fused where it names a fused layer."""
        rows = sum(stop - start for part in parts for start, stop in part.rows)
        return (rows, *self.shapes[f"{parts[0].module}.weight"][1:])

    def _count(self, module: LoraModule, found: Mapping[str, Delta], reader: ModuleReader) -> None:
        for kind in module.kinds or ["bias"]:
            kind = f"{kind} with DoRA" if "magnitude" in module.keys else kind
            self.kinds[kind] = self.kinds.get(kind, 0) + 1
        if reader.rank is not None:
            self.ranks[reader.rank] = self.ranks.get(reader.rank, 0) + 1
        if all(_is_zero(delta) for delta in found.values()):
            self.zero += sorted(part.module for part in module.parts)


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    return all(math.isfinite(_largest(x)) for x in tensors)


def _is_zero(delta: Delta) -> bool:
    """Whether it changes nothing, seen from its factors."""
    if isinstance(delta, (Decomposed, Replacement)):
        return False
    scale = getattr(delta, "scale", 1.0)
    return scale == 0 or any(_largest(x) == 0 for x in delta.tensors.values())


def _largest(x: Tensor) -> float:
    """The largest magnitude; NaN if there is one."""
    low, high = torch.aminmax(x.bfloat16() if x.dtype.itemsize == 1 else x)
    return torch.maximum(-low, high).item()
