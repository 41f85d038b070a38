"""The tensors of a model, made one at a time: read, changed, quantised.

So a model of 26 GB can be merged, converted and written, or loaded merged, with room for one
tensor besides the result.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, get_args

import torch
from torch import Tensor

from ..runtime.errors import FramePackError
from .files import TensorInfo
from .fp8 import E4M3, E5M2, FP8, SCALE, Precision, cast, quantize, scale_shape


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
    """Where the tensors of a model come from: `ScaledFiles`, or a host's own patched weights."""

    def info(self, name: str) -> TensorInfo: ...

    def scale_info(self, name: str) -> TensorInfo | None: ...

    def load(
        self, name: str, dtype: torch.dtype | None, device: torch.device | str, *, copy: bool
    ) -> Tensor: ...

    def load_scaled(
        self, name: str, device: torch.device | str, *, copy: bool
    ) -> tuple[Tensor, Tensor | None]: ...


@dataclass(frozen=True)
class Storage:
    """In what types the tensors of a model are kept.

    dtype: of everything that is not in fp8. precision: "auto" keeps fp8 weights of a file as they
    are, "full" dequantises them, the others also cast what is `quantizable`. linears: the weights
    that a layer can hold in fp8. fp32: beginnings of names that stay in fp32 whatever else.
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

    @property
    def scale_dtype(self) -> torch.dtype:
        """The type of new scales; those of small weights are too small for fp16."""
        return torch.float32 if self.dtype == torch.float16 else self.dtype


@dataclass(frozen=True)
class _Plan:
    """What becomes of one parameter; scale None in fp8 is a plain cast."""

    dtype: torch.dtype
    scale: TensorInfo | None = None
    as_stored: bool = False


@dataclass(frozen=True)
class ModelState:
    """Iterates over (name, tensor) of a model whose tensors lie in files under other names.

    sources (the names in the files) and shapes go by the model's own names. A scaled weight
    `x.weight` is followed by its scale, `x.scale_weight`. `copy` gives tensors of their own instead
    of views of the files.
    """

    files: Source
    sources: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    storage: Storage
    device: torch.device | str = "cpu"
    transform: Transform | None = None
    copy: bool = False

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name in self.sources:
            yield from self._tensors(name, self._plan(name))

    def infos(self) -> dict[str, TensorInfo]:
        """Type and shape of everything it will yield, known before anything is read."""
        found: dict[str, TensorInfo] = {}
        for name in self.sources:
            plan = self._plan(name)
            found[name] = TensorInfo(plan.dtype, self.shapes[name])
            if plan.scale is not None:
                found[scale_name(name)] = plan.scale
        return found

    def holds_fp8(self) -> bool:
        return any(info.dtype in FP8 for info in self.infos().values())

    def _plan(self, name: str) -> _Plan:
        storage, key = self.storage, self.sources[name]
        if name.startswith(storage.fp32):
            return _Plan(torch.float32)
        stored = self.files.info(key)
        if name in storage.linears and stored.dtype in FP8 and storage.precision != "full":
            return _Plan(stored.dtype, self.files.scale_info(key), not self._changes(name))
        if name not in storage.quantizable or storage.precision in ("auto", "full"):
            return _Plan(storage.dtype)
        if storage.precision == "fp8_scaled":
            return _Plan(E4M3, TensorInfo(storage.scale_dtype, scale_shape(self.shapes[name])))
        return _Plan(E5M2 if storage.precision == "fp8_e5m2" else E4M3)

    def _changes(self, name: str) -> bool:
        return self.transform is not None and name in self.transform.names

    def _tensors(self, name: str, plan: _Plan) -> Iterator[tuple[str, Tensor]]:
        key, shape = self.sources[name], self.shapes[name]
        if plan.as_stored:
            tensor, scale = self.files.load_scaled(key, self.device, copy=self.copy)
        else:
            tensor, scale = self._encoded(self._full(name, plan), plan)
        yield name, tensor.reshape(shape)
        if scale is not None:
            yield scale_name(name), scale

    def _full(self, name: str, plan: _Plan) -> Tensor:
        """The parameter before it is quantised, changed; in fp32 if it is both."""
        dtype = self.storage.dtype if plan.dtype in FP8 else plan.dtype
        if self._changes(name) and plan.dtype in FP8:
            dtype = torch.float32
        tensor = self.files.load(self.sources[name], dtype, self.device, copy=self.copy)
        tensor = tensor.reshape(self.shapes[name])
        return self.transform(name, tensor) if self.transform is not None else tensor

    def _encoded(self, tensor: Tensor, plan: _Plan) -> tuple[Tensor, Tensor | None]:
        if plan.dtype not in FP8:
            return tensor, None
        if plan.scale is None:
            return cast(tensor, plan.dtype), None
        return quantize(tensor, plan.scale.shape, plan.dtype, plan.scale.dtype)


def scale_name(name: str) -> str:
    """The name of the scale of a weight."""
    return f"{name.removesuffix('weight')}{SCALE}"
