"""The reference's weights: read by the safetensors library, on the device only while they work.

And the comparison of a loaded model with them, which names what is wrong with a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..runtime.errors import FramePackError
from ..weights.files import SAFETENSORS, WeightFiles, open_weights
from ..weights.formats import Encoding
from ..weights.fp8 import SCALE
from ..weights.layouts import Component, find_component
from ..weights.names import explain_mismatch, to_internal
from ..weights.quantised_files import QuantisedFiles
from ..weights.quantised_linear import QuantisedWeight, full_weight
from .verify_stages import FACTOR, relative_error

NAMED = 8  # wrong tensors that are looked into
SAME = 5e-3  # relative, between tensors that are taken for one; bf16 rounds by half of it
TINY = torch.finfo(torch.float64).tiny


class _LibraryFiles(WeightFiles):
    """The same files with every tensor read by the safetensors library instead of our reader."""

    def __init__(self, files: WeightFiles) -> None:
        self.paths, self.metadata, self._owner = files.paths, files.metadata, files._owner
        self._open = {p: safe_open(p, "pt") for p in files.paths if p.suffix.lower() in SAFETENSORS}

    def __getitem__(self, name: str) -> Tensor:
        file = self._open.get(self._owner[name].path)
        return super().__getitem__(name) if file is None else file.get_tensor(name)

    def load(
        self,
        name: str,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        *,
        copy: bool = False,
    ) -> Tensor:
        tensor = self[name].to(device)
        return tensor.to(dtype or tensor.dtype, copy=copy)


@dataclass(frozen=True)
class Held:
    """How a model holds a weight: the type that it was loaded in, and how it is quantised if so."""

    dtype: torch.dtype
    encoding: Encoding | None = None

    def __str__(self) -> str:
        return (
            str(self.dtype).removeprefix("torch.")
            if self.encoding is None
            else self.encoding.format.name
        )


@dataclass(frozen=True)
class Loaded:
    """The parameters of one of our models by internal names. dtype: of what is not quantised."""

    component: Component
    model: nn.Module
    dtype: torch.dtype

    @property
    def names(self) -> dict[str, str]:
        """The model's own name of each."""
        return to_internal(self.component, (name for name, _ in self.model.named_parameters()))

    def held(self) -> dict[str, Held]:
        """How each is held."""
        return {name: self._held(own) for name, own in self.names.items()}

    def load(self, own: str, device: torch.device) -> Tensor:
        """One as the model computes with it, in fp32."""
        layer, kind = self._layer(own)
        tensor = full_weight(layer, torch.float32) if kind == "weight" else getattr(layer, kind)
        return tensor.to(device).float()

    def _held(self, own: str) -> Held:
        layer, kind = self._layer(own)
        if kind == "weight" and isinstance(layer, QuantisedWeight) and layer.encoding is not None:
            return Held(self.dtype, _with_scale(layer.encoding, layer.parts()))
        return Held(getattr(layer, kind).dtype)

    def _layer(self, own: str) -> tuple[nn.Module, str]:
        path, _, kind = own.rpartition(".")
        return self.model.get_submodule(path), kind


def _with_scale(encoding: Encoding, parts: Mapping[str, Tensor]) -> Encoding:
    """With the form of a scale that the parts show and no options say."""
    if SCALE not in parts:
        return encoding
    scale = {"scale": tuple(parts[SCALE].shape), "scale_dtype": parts[SCALE].dtype}
    return replace(encoding, options={**encoding.options, **scale})


class ReferenceWeights:
    """What a component's files hold, by internal names.

    held: how our model holds each parameter, by which the reference's rounding follows ours.
    change: what LoRAs make of a parameter, in fp32.
    """

    def __init__(
        self,
        component: Component,
        path: Path,
        held: Mapping[str, Held],
        change: Callable[[str, Tensor], Tensor] | None = None,
    ) -> None:
        paths = find_component(path, component).weights
        self._files = QuantisedFiles(_LibraryFiles(open_weights(paths)))
        if problem := explain_mismatch(component, self._files, held):
            raise FramePackError(f"{paths[0]} {problem}")
        self.keys = to_internal(component, self._files)
        self._held, self._change = held, change

    def stored(self, name: str) -> Held:
        """How the file has it."""
        key = self.keys[name]
        return Held(self._files.info(key).dtype, self._files.encoding(key))

    def full(self, name: str, device: torch.device) -> Tensor:
        """What the file says, in fp32, with LoRAs."""
        tensor = self._files.load(self.keys[name], torch.float32, device)
        return self._change(name, tensor) if self._change is not None else tensor

    def rounded(self, name: str, full: Tensor) -> Tensor:
        """What `full` gave, after the rounding of how our model holds it."""
        held = self._held[name]
        if held.encoding is None:
            return full.to(held.dtype).float()
        if held.encoding == self.stored(name).encoding:
            return full
        given = full if held.encoding.format.exact else full.to(held.dtype)
        return held.encoding.decode(held.encoding.encode(given))


class ReferenceModel:
    """A reference network on the meta device, whose units get their weights while they run."""

    def __init__(
        self,
        component: Component,
        model: nn.Module,
        units: Sequence[nn.Module],
        fp32: tuple[str, ...] = (),
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self._units, self._fp32 = units, fp32
        names = to_internal(component, model.state_dict())
        self._internal = {own: name for name, own in names.items()}

    @contextmanager
    def loaded(
        self, weights: ReferenceWeights, dtype: torch.dtype, exact: bool, device: torch.device
    ) -> Iterator[None]:
        """In this type meanwhile. exact: with the weights of the file, else as ours are held."""
        meta = {own: x.detach() for own, x in self.model.state_dict().items()}
        prefixes = {unit: f"{name}." for name, unit in self.model.named_modules()}

        def load(own: str) -> Tensor:
            wanted = torch.float32 if own.startswith(self._fp32) else dtype
            name = self._internal[own]
            tensor = weights.full(name, device)
            tensor = tensor if exact else weights.rounded(name, tensor)
            return tensor.to(wanted).reshape(meta[own].shape)

        def fill(unit: nn.Module, _inputs: Any) -> None:
            names = unit.state_dict()
            unit.load_state_dict({n: load(prefixes[unit] + n) for n in names}, assign=True)

        def empty(unit: nn.Module, _inputs: Any, _out: Any) -> None:
            unit.load_state_dict(
                {n: meta[prefixes[unit] + n] for n in unit.state_dict()}, assign=True
            )

        handles = []
        for unit in self._units:
            handles.append(unit.register_forward_pre_hook(fill))
            handles.append(unit.register_forward_hook(empty))
        streamed = tuple(prefixes[unit] for unit in self._units)
        rest = {own: load(own) for own in self._internal if not own.startswith(streamed)}
        self.model.load_state_dict({**meta, **rest}, assign=True)
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(device)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.model.load_state_dict(meta, assign=True)


def wrong_weights(
    loaded: Loaded, own: ReferenceWeights, reference: ReferenceWeights, device: torch.device
) -> list[str]:
    """A line for each parameter that is not what the reference has, as far as they are looked into.

    own: the files that were loaded. Where both have one type the numbers have to be the same, else
    rounding is allowed for.
    """
    names, held = loaded.names, loaded.held()
    marks: dict[str, _Mark] = {}
    wrong: list[str] = []
    for name in names:
        ours, full = loaded.load(names[name], device), reference.full(name, device)
        if full.numel() != ours.numel():
            raise FramePackError(
                f"--against: its {name} is {list(full.shape)}, that of the model is "
                f"{list(ours.shape)}; give the snapshot that the files were made from"
            )
        full = full.reshape(ours.shape)
        rounded = reference.rounded(name, full)
        marks[name] = _Mark.of(rounded)
        if not _fits(ours, rounded, full, [own.stored(name), reference.stored(name)], held[name]):
            wrong.append(name)
    lines = []
    for name in wrong[:NAMED]:
        ours = loaded.load(names[name], device)
        mark = _Mark.of(ours)
        alike = [other for other in marks if other != name and marks[other].is_near(mark)]
        candidates = {
            n: reference.rounded(n, reference.full(n, device).reshape(ours.shape))
            for n in (name, *alike)
        }
        lines.append(f"{name} {_what_is_wrong(ours, candidates.pop(name), candidates)}")
    if len(wrong) > NAMED:
        lines.append(f"{len(wrong) - NAMED} more weights differ")
    return lines


@dataclass(frozen=True)
class _Mark:
    """By which a tensor is told from others without keeping it."""

    shape: torch.Size
    sum: float
    norm: float

    @classmethod
    def of(cls, x: Tensor) -> _Mark:
        return cls(x.shape, float(x.sum(dtype=torch.float64)), float(x.norm()))

    def is_near(self, other: _Mark) -> bool:
        near = SAME * other.norm
        close = abs(self.sum - other.sum) <= near and abs(self.norm - other.norm) <= near
        return self.shape == other.shape and close


def _fits(ours: Tensor, rounded: Tensor, full: Tensor, stored: Sequence[Held], held: Held) -> bool:
    """Whether a weight is the reference's. stored: how both files have it."""
    if torch.equal(ours, rounded):
        return True
    if stored[0] == stored[1]:  # quantising is not bit-exact across devices
        return held.encoding is not None and relative_error(ours, rounded) <= SAME
    plain = [torch.finfo(h.dtype).eps for h in stored if h.encoding is None]
    limit = max([FACTOR * relative_error(rounded, full), *plain])
    return relative_error(ours, full) <= limit


def _what_is_wrong(ours: Tensor, rounded: Tensor, others: Mapping[str, Tensor]) -> str:
    """Whether it is another's tensor, a multiple, one with its parts exchanged, or else how far."""
    if not bool(ours.isfinite().all()):
        return "holds values that are no numbers"
    for name, other in others.items():
        if relative_error(ours, other) <= SAME:
            return f"holds what the reference has as {name}"
    if ours.ndim and len(ours) % 2 == 0:
        half = len(ours) // 2
        if relative_error(ours, rounded.roll(half, dims=0)) <= SAME:
            return "has its two halves in the other order"
    factor = float((ours * rounded).sum(dtype=torch.float64)) / max(
        float(rounded.norm()) ** 2, TINY
    )
    if abs(factor - 1) > SAME and relative_error(ours, factor * rounded) <= SAME:
        return f"is {factor:.4g} times the reference's"
    count = int((ours != rounded).sum())
    error = relative_error(ours, rounded)
    return f"differs in {count} of {ours.numel()} values, by {error:.2g} of its norm"
