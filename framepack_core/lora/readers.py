"""The tensors of one module in a LoRA file, checked against the model, as the change they mean.

Names, forms, ranks and shapes are judged by the file's header; nothing is read before they fit.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..runtime.errors import FramePackError
from ..runtime.files import is_file
from ..weights.files import WeightFiles
from .delta import (
    Decomposed,
    Delta,
    Difference,
    Hadamard,
    Kronecker,
    LowRank,
    Replacement,
    tucker,
)
from .names import Part

FACTORS = {
    "LoRA": ("down", "up", "mid"),
    "LoHa": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "LoKr": (
        *("lokr_w1", "lokr_w1_a", "lokr_w1_b"),
        *("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    ),
    "difference": ("diff",),
    "replacement": ("set_weight",),
}
PEFT_METADATA, PEFT_CONFIG, PEFT_STEM = (
    "lora_adapter_metadata",
    "adapter_config.json",
    "adapter_model",
)


@dataclass
class LoraModule:
    """The keys of a file that belong to one module, by what they are."""

    base: str
    parts: tuple[Part, ...]
    keys: dict[str, str] = field(default_factory=dict)
    repeated: str | None = None

    def add(self, slot: str, key: str) -> None:
        if slot in self.keys:
            self.repeated = f"is there twice, as {self.keys[slot]} and {key}"
        self.keys[slot] = key

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, slots in FACTORS.items() if any(s in self.keys for s in slots)]


class MalformedModule(Exception):
    """What is damaged about a module of a file."""


class ShapeMismatch(Exception):
    """How a module of a file differs in size from the model's."""


@dataclass(frozen=True)
class AlphaScaling:
    """How a file without stored alphas is scaled: PEFT keeps it in a config."""

    alpha: float | None = None
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    root: bool = False  # rs-LoRA (arXiv 2312.03732): divided by the root of the rank

    @classmethod
    def of(cls, path: Path, metadata: Mapping[str, str]) -> AlphaScaling:
        config = path.with_name(PEFT_CONFIG)
        try:
            if PEFT_METADATA in metadata:
                return cls._from_dict(json.loads(metadata[PEFT_METADATA]))
            if path.stem.startswith(PEFT_STEM) and is_file(config):
                return cls._from_dict(json.loads(config.read_text(encoding="utf-8")))
        except (ValueError, TypeError, AttributeError, OSError, re.error) as error:
            raise FramePackError(
                f"{path} comes with a damaged adapter config ({error}): download it again"
            ) from None
        return cls()

    @classmethod
    def _from_dict(cls, values: dict[str, Any]) -> AlphaScaling:
        values = {key.removeprefix("transformer."): value for key, value in values.items()}
        alpha = values.get("lora_alpha")
        patterns = values.get("alpha_pattern") or {}
        return cls(
            None if alpha is None else float(alpha),
            {re.compile(rf"(?:.*\.)?(?:{p})").pattern: float(a) for p, a in patterns.items()},
            bool(values.get("use_rslora", False)),
        )

    def scale(self, base: str, rank: int) -> float:
        """What up @ down of a module without stored alpha is multiplied with."""
        patterns = self.alpha_pattern.items()
        alpha = next((a for p, a in patterns if re.fullmatch(p, base)), self.alpha)
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.root else rank)


class ModuleReader:
    """The tensors of one module of a file, checked against a weight of `shape`, as deltas."""

    def __init__(
        self, module: LoraModule, files: WeightFiles, shape: tuple[int, ...], scaling: AlphaScaling
    ) -> None:
        self.module, self.files, self.shape, self.scaling = module, files, shape, scaling
        self.rows, self.columns = shape[0], math.prod(shape[1:])
        self.rank: int | None = None
        self.alpha = self._stored_alpha()

    def weight(self) -> Delta | None:
        """The delta of the weight, if there is one."""
        if not self.module.kinds:
            return None
        kind = self.module.kinds[0]
        if len(self.shape) < 2 and kind not in ("difference", "replacement"):
            raise MalformedModule(f"is a {kind} of a vector")
        make = {
            "LoRA": self._low_rank,
            "LoHa": self._hadamard,
            "LoKr": self._kronecker,
            "difference": lambda: Difference(self._of_shape("diff", self.shape)),
            "replacement": lambda: Replacement(self._of_shape("set_weight", self.shape)),
        }
        delta: Delta = make[kind]()
        return self._decomposed(delta) if self._has("magnitude") else delta

    def bias(self) -> Delta | None:
        """The delta of the bias, if there is one."""
        if self._has("diff_b"):
            return Difference(self._of_shape("diff_b", (self.rows,)))
        if self._has("up_bias"):
            scale = self._scale(self._shape("down")[0])
            return Difference(self._of_shape("up_bias", (self.rows,)), scale)
        return None

    def _low_rank(self) -> Delta:
        if self._has("mid"):
            core = self._core("mid", self._matrix("up").T, self._matrix("down"))
            return Difference(core, self._scale(self._shape("down")[0]))
        up, down = self._product("up", "down")
        self._fit(up.shape[0], down.shape[1])
        return LowRank(up, down, self._scale(self._known_rank))

    def _hadamard(self) -> Delta:
        if self._has("hada_t1") or self._has("hada_t2"):
            first, second = (self._tucker(f"hada_t{i}", f"hada_w{i}") for i in (1, 2))
            return Difference(first * second, self._scale(self._known_rank))
        w2_a, w2_b = self._product("hada_w2_a", "hada_w2_b")
        self._fit(w2_a.shape[0], w2_b.shape[1])
        w1_a, w1_b = self._product("hada_w1_a", "hada_w1_b")
        self._fit(w1_a.shape[0], w1_b.shape[1])
        return Hadamard(w1_a, w1_b, w2_a, w2_b, self._scale(self._known_rank))

    def _kronecker(self) -> Delta:
        w1, w1_b = self._kron_factor("lokr_w1")
        if self._has("lokr_t2"):
            w2, w2_b = self._tucker("lokr_t2", "lokr_w2", kron=True).flatten(1), None
        else:
            w2, w2_b = self._kron_factor("lokr_w2")
        columns = [(w if b is None else b).shape[1] for w, b in ((w1, w1_b), (w2, w2_b))]
        self._fit(w1.shape[0] * w2.shape[0], columns[0] * columns[1])
        # An alpha counts only where there is a rank to divide it by (LyCORIS, ComfyUI).
        scale = 1.0 if self.rank is None else self._scale(self.rank)
        return Kronecker(w1, w2, w1_b, w2_b, scale)

    def _kron_factor(self, slot: str) -> tuple[Tensor, Tensor | None]:
        """A factor of a Kronecker product: whole, or as a product of two."""
        if self._has(slot):
            return self._matrix(slot), None
        return self._product(f"{slot}_a", f"{slot}_b")

    def _product(self, left: str, right: str) -> tuple[Tensor, Tensor]:
        """Two factors [n, rank] and [rank, m]; the rank is kept for the scale."""
        a, b = self._matrix(left), self._matrix(right)
        if a.shape[1] != b.shape[0]:
            raise MalformedModule(
                f"has ranks that differ: {left} is {list(a.shape)}, {right} is {list(b.shape)}"
            )
        self.rank = b.shape[0]
        return a, b

    def _tucker(self, core: str, factor: str, kron: bool = False) -> Tensor:
        """core x a x b for factors in Tucker form, the first of which is [rank, out]."""
        self.rank = self._shape(f"{factor}_b")[0]
        return self._core(core, self._matrix(f"{factor}_a"), self._matrix(f"{factor}_b"), kron)

    def _core(self, slot: str, left: Tensor, right: Tensor, kron: bool = False) -> Tensor:
        shape = self._shape(slot)
        if shape[:2] != (left.shape[0], right.shape[0]):
            raise MalformedModule(f"has ranks that differ from those of its core {list(shape)}")
        whole = (left.shape[1], right.shape[1], *shape[2:])
        if whole[2:] != self.shape[2:] or not (kron or whole == self.shape):
            raise ShapeMismatch(f"is {list(whole)} where the model has {list(self.shape)}")
        core = self._read(self.module.keys[slot])
        return tucker(core.float(), left.float(), right.float())

    def _decomposed(self, delta: Delta) -> Delta:
        if self._has("wd_for_diff"):
            raise MalformedModule("has a DoRA scale for the change alone, which is not supported")
        key, shape = self.module.keys["magnitude"], self._shape("magnitude")
        if math.prod(shape) == shape[0] == self.rows:
            return Decomposed(delta, self._read(key).reshape(-1, 1))
        if shape != (1, self.columns) or len(self.shape) != 2:
            raise MalformedModule(f"has a DoRA scale {list(shape)} for a weight {list(self.shape)}")
        if len(self.module.parts) > 1:
            raise MalformedModule("has a DoRA scale over the inputs of a layer that is split here")
        return Decomposed(delta, self._read(key))

    @property
    def _known_rank(self) -> int:
        assert self.rank is not None  # set by what read the factors
        return self.rank

    def _scale(self, rank: int) -> float:
        # A LyCORIS rs-LoRA stores an alpha that already holds the root of the rank.
        if self.alpha is None:
            return self.scaling.scale(self.module.base, rank)
        return self.alpha / rank

    def _stored_alpha(self) -> float | None:
        if not self._has("alpha"):
            return None
        key = self.module.keys["alpha"]
        info = self.files.info(key)
        if math.prod(info.shape) != 1 or info.dtype.is_complex:
            raise MalformedModule(
                f"has an alpha {list(info.shape)} of {info.dtype}, not one number"
            )
        alpha = float(self.files[key].item())
        if not math.isfinite(alpha):
            raise MalformedModule(f"has the alpha {alpha}")
        return alpha

    def _has(self, slot: str) -> bool:
        return slot in self.module.keys

    def _shape(self, slot: str) -> tuple[int, ...]:
        """The shape of a tensor that must be there and not be empty."""
        if not self._has(slot):
            raise MalformedModule(f"has {', '.join(sorted(self.module.keys))} but no {slot}")
        key = self.module.keys[slot]
        shape = self.files.info(key).shape
        if len(shape) == 0 or 0 in shape:
            raise MalformedModule(f"has {self._part(key)} {list(shape)}, not a matrix")
        return shape

    def _matrix(self, slot: str) -> Tensor:
        """A factor as a matrix; the kernel of a convolution counts as columns."""
        shape = self._shape(slot)
        if len(shape) < 2:
            raise MalformedModule(
                f"has {self._part(self.module.keys[slot])} {list(shape)}, not a matrix"
            )
        return self._read(self.module.keys[slot]).flatten(1)

    def _fit(self, rows: int, columns: int) -> None:
        if (rows, columns) != (self.rows, self.columns):
            raise ShapeMismatch(
                f"changes {rows} x {columns} numbers where the model has "
                f"{self.rows} x {self.columns}"
            )

    def _of_shape(self, slot: str, wanted: tuple[int, ...]) -> Tensor:
        shape = self._shape(slot)
        if shape != wanted:
            raise ShapeMismatch(f"is {list(shape)} where the model has {list(wanted)}")
        return self._read(self.module.keys[slot])

    def _read(self, key: str) -> Tensor:
        dtype = self.files.info(key).dtype
        if not dtype.is_floating_point:
            raise MalformedModule(f"has {self._part(key)} of {dtype}, not of floating point")
        return self.files[key]

    def _part(self, key: str) -> str:
        """A key without the name of the module."""
        return key.removeprefix(f"{self.module.base}.")
