"""The tensors of a model, made one at a time: read, changed, quantised.

So a model of 26 GB can be merged, converted and written, or loaded merged, with room for one
tensor besides the result.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, get_args

import torch
from torch import Tensor

from ..runtime.errors import FramePackError
from .files import TensorInfo
from .formats import MADE, WEIGHT, Encoding
from .fp8 import FP8
from .precisions import Precision


class Transform(Protocol):
    """A change of some parameters, such as merged LoRAs."""

    @property
    def names(self) -> Collection[str]:
        """The parameters that it changes."""
        ...

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """The changed parameter, of the type and shape of the one given."""
        ...


class Source(Protocol):
    """Where the tensors of a model come from: `QuantisedFiles`, or a host's own patched weights."""

    def encoding(self, name: str) -> Encoding | None: ...

    def part_infos(self, name: str) -> dict[str, TensorInfo]: ...

    def load(
        self, name: str, dtype: torch.dtype | None, device: torch.device | str, *, copy: bool
    ) -> Tensor: ...

    def load_parts(
        self, name: str, device: torch.device | str, *, copy: bool
    ) -> dict[str, Tensor]: ...


OnEncoded = Callable[[str, Tensor, Encoding, Mapping[str, Tensor]], None]
"""Called with name, weight, encoding and parts."""


@dataclass(frozen=True)
class Storage:
    """In what types the tensors of a model are kept.

    dtype: of everything that is not quantised. precision: "auto" keeps quantised weights of a file
    as they are, "full" dequantises them, the others also quantise what is `quantizable`. linears:
    the weights that a layer can hold quantised. fp32: beginnings of names that stay in fp32
    whatever else.
    """

    dtype: torch.dtype
    precision: Precision = "full"
    linears: Collection[str] = frozenset()
    quantizable: Collection[str] = frozenset()
    fp32: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            known = ", ".join(get_args(Precision))
            raise FramePackError(f"precision {self.precision!r} is unknown; use one of {known}")

    def encoding(
        self, name: str, shape: tuple[int, ...], stored: Encoding | None
    ) -> Encoding | None:
        """How a weight of this shape is to be kept, which its file has as `stored`."""
        if self.precision == "full" or name not in self.linears:
            return None
        wanted = MADE.get(self.precision)
        if stored is not None:
            both_fp8 = wanted is not None and not wanted.stated and stored.format.dtype in FP8
            if wanted is None or both_fp8:
                return stored
        if wanted is None or name not in self.quantizable:
            return None
        options = wanted.options(shape)
        if options is not None and "scale_dtype" in options:
            # That of the model, but small weights have scales that are too small for fp16.
            dtype = torch.float32 if self.dtype == torch.float16 else self.dtype
            options = {**options, "scale_dtype": dtype}
        return None if options is None else Encoding(wanted, options)


@dataclass(frozen=True)
class _Plan:
    """What becomes of one parameter: a type, or an encoding."""

    dtype: torch.dtype
    encoding: Encoding | None = None
    as_stored: bool = False


@dataclass(frozen=True)
class ModelState:
    """Iterates over (name, tensor) of a model whose tensors lie in files under other names.

    sources (the names in the files) and shapes go by the model's own names. A quantised weight
    `x.weight` is followed by its other parts, such as `x.weight_scale`. `copy` gives tensors of
    their own instead of views of the files. `on_encoded` hears of each weight that is quantised.
    """

    files: Source
    sources: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    storage: Storage
    device: torch.device | str = "cpu"
    transform: Transform | None = None
    copy: bool = False
    on_encoded: OnEncoded | None = None

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name in self.sources:
            yield from self._tensors(name, self._plan(name))

    def infos(self) -> dict[str, TensorInfo]:
        """Type and shape of everything it will yield, known before anything is read."""
        found: dict[str, TensorInfo] = {}
        for name in self.sources:
            plan, shape = self._plan(name), self.shapes[name]
            if plan.encoding is None:
                found[name] = TensorInfo(plan.dtype, shape)
            else:
                stored = plan.as_stored
                source = self.sources[name]
                infos = self.files.part_infos(source) if stored else plan.encoding.infos(shape)
                found |= {part_name(name, part): info for part, info in infos.items()}
        return found

    def encodings(self) -> dict[str, Encoding]:
        """How each quantised weight will be kept."""
        plans = {name: self._plan(name).encoding for name in self.sources}
        return {name: encoding for name, encoding in plans.items() if encoding is not None}

    def _plan(self, name: str) -> _Plan:
        storage, key = self.storage, self.sources[name]
        if name.startswith(storage.fp32):
            return _Plan(torch.float32)
        stored = self.files.encoding(key)
        encoding = storage.encoding(name, self.shapes[name], stored)
        kept = encoding is not None and encoding == stored and not self._changes(name)
        return _Plan(storage.dtype, encoding, kept)

    def _changes(self, name: str) -> bool:
        return self.transform is not None and name in self.transform.names

    def _tensors(self, name: str, plan: _Plan) -> Iterator[tuple[str, Tensor]]:
        if plan.as_stored:
            parts = self.files.load_parts(self.sources[name], self.device, copy=self.copy)
        elif plan.encoding is None:
            parts = {WEIGHT: self._full(name, plan.dtype)}
        else:
            exact = plan.encoding.format.exact or self._changes(name)
            full = self._full(name, torch.float32 if exact else plan.dtype)
            parts = plan.encoding.encode(full)
            if self.on_encoded is not None:
                self.on_encoded(name, full, plan.encoding, parts)
        for part, tensor in parts.items():
            yield (name if part == WEIGHT else part_name(name, part)), tensor

    def _full(self, name: str, dtype: torch.dtype) -> Tensor:
        """The parameter, changed, not quantised."""
        tensor = self.files.load(self.sources[name], dtype, self.device, copy=self.copy)
        tensor = tensor.reshape(self.shapes[name])
        return self.transform(name, tensor) if self.transform is not None else tensor


def part_name(name: str, part: str) -> str:
    """The name of a part of a weight."""
    return name.removesuffix(WEIGHT) + part
