"""What a LoRA file is: who made it, for which model, and what of it fits."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..weights.files import WeightFiles
from ..weights.names import UNKNOWN_KIND, guess_kind, mode_by_name
from .names import (
    FRAMEPACK,
    HUNYUAN,
    Shapes,
    foreign_family,
    is_text_encoder,
    naming,
    other_method,
    split_key,
    stated_family,
)

# Metadata of our own trainer: framepack, f1 or one_frame; of F1, whether it has seen end frames.
LORA_MODE, LORA_END = "framepack_mode", "framepack_end_target"
MODES = {"framepack": FRAMEPACK, "f1": f"{FRAMEPACK} F1", "one_frame": f"{FRAMEPACK} one-frame"}
_ONLY_FRAMEPACK = ("clean_x_embedder", "image_projection")
_SHOWN = 5


@dataclass(frozen=True)
class Provenance:
    """Where a file comes from, by its metadata and its names."""

    trainer: str
    dialect: str
    base: str
    bases: tuple[str, ...]
    metadata: Mapping[str, str]

    @classmethod
    def of(cls, files: WeightFiles, names: Iterable[str], bases: Sequence[str]) -> Provenance:
        """From the file, the table's names for its modules and the file's own names for them."""
        names, keys = list(names), list(files)
        return cls(
            trainer=_trainer(keys, files.metadata),
            dialect=_dialect(keys, names, set(bases)),
            base=_base(names, files.metadata),
            bases=tuple(bases),
            metadata=files.metadata,
        )

    def foreign(self, shapes: Shapes, unmatched: Sequence[str]) -> str | None:
        """The other model that it was made for, if it was."""
        return foreign_family(self.bases, unmatched, self.metadata, shapes)


@dataclass(frozen=True)
class LoraReport:
    """What was found in a LoRA file, against one model."""

    path: Path
    provenance: Provenance
    kinds: Mapping[str, int]  # modules by kind: LoRA, LoHa, LoKr, difference, ...
    ranks: Mapping[int, int]  # modules by rank
    matched: Sequence[str]  # modules of the model
    unmatched: Sequence[str]  # names in the file that the model has no module for
    zero: Sequence[str]  # modules of the model whose change is zero
    misfit: Mapping[str, str]  # names in the file that have another size than the model's module
    broken: Mapping[str, str]  # names in the file and what is damaged about them
    keys: Sequence[str]
    foreign: str | None
    ignored: Sequence[str] = ()  # what stands before the names of modules and says nothing

    @property
    def sees_end(self) -> bool:
        """Whether it taught F1 to see an end image."""
        return LORA_END in self.provenance.metadata

    @property
    def text_encoder(self) -> list[str]:
        """The unmatched names that belong to a text encoder."""
        return [name for name in self.unmatched if is_text_encoder(name)]

    @property
    def problem(self) -> str | None:
        """Why the file cannot be applied, to be put after its name; None if it can."""
        if not self.keys:
            return "holds no tensors: download it again"
        if self.foreign and not self._is_model():
            return f"is a LoRA for {self.foreign}, not for FramePack: use it with that model"
        if self.broken:
            return self._broken_problem()
        if not self.matched:
            return self._unmatched_problem()
        if set(self.zero) >= set(self.matched):
            return (
                f"changes nothing: all its {len(self.matched)} modules are zero; "
                "it was saved before training or its training failed"
            )
        return None

    def describe(self) -> str:
        """The report as lines of text."""
        source, encoder = self.provenance, self.text_encoder
        others = sorted(set(self.unmatched) - set(encoder))
        lines = [
            f"LoRA {self.path.name}",
            f"  made by {source.trainer}",
            f"  {source.dialect}",
            f"  trained on {source.base}",
            f"  {_counts(self.kinds) or 'nothing usable'}",
            *([f"  rank {_ranks(self.ranks)}"] if self.ranks else []),
            f"  fits {len(self.matched)} modules of the model",
            *_listed("ignored before its names", self.ignored),
            *_listed("with no place in the model", others),
            *_listed("of a text encoder, ignored", encoder),
            *_listed("without effect (zero)", self.zero),
        ]
        for what, found in (("of another size", self.misfit), ("damaged", self.broken)):
            lines += _listed(what, [f"{name} ({why})" for name, why in found.items()])
        if self.problem:
            lines.append(f"  cannot be applied: it {self.problem}")
        return "\n".join(lines)

    def _is_model(self) -> bool:
        return all(split_key(key) is None for key in self.keys)

    def _broken_problem(self) -> str:
        name, reason = next(iter(self.broken.items()))
        more = f" (and {len(self.broken) - 1} more)" if len(self.broken) > 1 else ""
        return f"is damaged: {name} {reason}{more}; get the file again"

    def _unmatched_problem(self) -> str:
        if method := other_method(self.keys):
            return f"is an adapter of the kind {method}, which is not supported: use a LoRA"
        if self._is_model():
            kind = guess_kind(self.keys)
            kind = "of an unknown kind" if kind == UNKNOWN_KIND else f"a {kind}"
            return f"is no LoRA but {kind}: give a LoRA file"
        if self.misfit:
            name, reason = next(iter(self.misfit.items()))
            return f"is a LoRA for another model: {name} {reason}; use it with that model"
        if len(self.text_encoder) == len(self.unmatched):
            return "changes only a text encoder, nothing of the FramePack model"
        first = ", ".join(self.unmatched[:3])
        return (
            f"is not for FramePack: none of its {len(self.unmatched)} modules is in the model "
            f"({first}{', ...' if len(self.unmatched) > 3 else ''})"
        )


def _counts(kinds: Mapping[str, int]) -> str:
    """{"LoRA": 440} as "440 LoRA"."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


def _ranks(ranks: Mapping[int, int]) -> str:
    """{16: 2, 32: 1} as "16 (2), 32 (1)"."""
    if len(ranks) == 1:
        return str(next(iter(ranks)))
    return ", ".join(f"{rank} ({count})" for rank, count in sorted(ranks.items()))


def _listed(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    first = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return [f"  {len(names)} {what}: {first}"]


def _trainer(keys: Sequence[str], metadata: Mapping[str, str]) -> str:
    module = metadata.get("ss_network_module", "")
    if "lycoris" in module:
        return "LyCORIS in kohya's scripts"
    if module.startswith("networks."):
        video = "framepack" in module or stated_family(metadata) in (FRAMEPACK, HUNYUAN)
        return "musubi-tuner" if video else "kohya's scripts"
    if any(key.startswith("ot_") for key in metadata):
        return "OneTrainer"
    if "ai-toolkit" in metadata.get("software", ""):
        return "ai-toolkit"
    return _trainer_by_names(keys)


_TRAINERS = (
    (r"lora_unet_.*\.(lora_|hada_|lokr_)", "musubi-tuner or kohya's scripts"),
    (r"lora_transformer_", "OneTrainer"),
    (r"lycoris_", "LyCORIS"),
    (
        r"diffusion_model\..*\.(lora_up|lora_down)\.|diffusion_model\..*\.(diff|hada_|lokr_)",
        "ComfyUI",
    ),
    (r"diffusion_model\..*\.lora_[AB]\.", "diffusion-pipe, ai-toolkit or ComfyUI"),
    (r"transformer\..*\.lora_(up|down)\.", "OneTrainer"),
    (r"transformer\.", "diffusers"),
    (r"base_model\.model\.|.*\.lora_[AB]\.", "PEFT"),
)


def _trainer_by_names(keys: Sequence[str]) -> str:
    for pattern, trainer in _TRAINERS:
        if any(re.match(pattern, key) for key in keys):
            return trainer
    return "an unknown trainer"


def _dialect(keys: Sequence[str], names: Sequence[str], bases: set[str]) -> str:
    if not names:
        return "names of no model known here"
    key = next(key for key in keys if (found := split_key(key)) and found[0] in bases)
    return f"names of {naming(names)}, such as {key}"


def _base(names: Sequence[str], metadata: Mapping[str, str]) -> str:
    mode = metadata.get(LORA_MODE)
    if mode in MODES:
        ends = " with end frames" if LORA_END in metadata else ""
        return f"{MODES[mode]}{ends} (says the file)"
    stated = stated_family(metadata)
    if stated == FRAMEPACK:
        return f"{FRAMEPACK}{_variant(metadata)} (says the file)"
    if stated is not None:
        return f"{stated} (says the file)"
    if any(name.startswith(_ONLY_FRAMEPACK) for name in names):
        return f"{FRAMEPACK} (by its modules)"
    if not names:
        return "something else"
    if naming(names) == HUNYUAN:
        return f"{HUNYUAN} (by its names; Flux has the same in part)"
    return f"{FRAMEPACK} or {HUNYUAN} (their names are the same; nothing else is stated)"


def _variant(metadata: Mapping[str, str]) -> str:
    """What musubi-tuner's metadata gives away: the name of the model file and of the datasets."""
    model = metadata.get("ss_sd_model_name", "")
    if mode_by_name(model) == "f1":
        return " F1"
    try:
        datasets = json.loads(metadata.get("ss_datasets", "[]"))
    except ValueError:
        return ""
    images = [isinstance(d, dict) and bool(d.get("has_control")) for d in _dicts(datasets)]
    return " one-frame" if images and all(images) else ""


def _dicts(value: object) -> list[object]:
    return value if isinstance(value, list) else []
