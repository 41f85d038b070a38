"""LoRAs at work: merged into weights as they are read, or beside the layers of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv3d, layer_norm, rms_norm

from ..runtime.errors import FramePackError
from ..weights.quantised_linear import full_weight
from .delta import Delta
from .files import Lora, load_lora
from .names import Shapes


@dataclass(frozen=True)
class LoraUse:
    """A LoRA and how much of its change to apply: 0 nothing, 1 as trained."""

    lora: Lora
    strength: float = 1.0

    def __post_init__(self) -> None:
        _check_strength(self.strength)

    @property
    def identity(self) -> tuple[Path, float, Sequence[str]]:
        """What tells it from other uses: file, strength and modules."""
        return self.lora.path, self.strength, self.lora.modules


def _check_strength(strength: float) -> None:
    if not math.isfinite(strength):
        raise FramePackError(f"LoRA strength {strength} is not a number; use one such as 0.8")


def open_loras(
    paths: Sequence[Path | str],
    shapes: Shapes,
    strengths: Sequence[float] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> list[LoraUse]:
    """Read several files for a DiT of these shapes, the i-th strength and patterns for the i-th.

    A missing strength is 1, a missing or empty pattern lets everything through; `Lora.select` says
    what patterns are searched in. Raises FramePackError for more of them than files.
    """
    for what, given in (("strengths", strengths), ("include", include), ("exclude", exclude)):
        if len(given) > len(paths):
            raise FramePackError(
                f"{len(given)} {what} for {len(paths)} LoRA files; give at most one for each"
            )
    uses = []
    for i, path in enumerate(paths):
        patterns = [list(filter(None, given[i : i + 1])) for given in (include, exclude)]
        lora = load_lora(path, shapes).select(*patterns)
        uses.append(LoraUse(lora, strengths[i] if i < len(strengths) else 1.0))
    return uses


class MergeLoras:
    """Adds LoRAs to parameters one at a time, in fp32, each change taken from the unmerged weight.

    `names` are the parameters it changes; any other comes back as it is.
    """

    def __init__(self, uses: Sequence[LoraUse]) -> None:
        self._uses = [use for use in uses if use.strength]
        self.names = frozenset(name for use in self._uses for name in use.lora.deltas)

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """The merged parameter, in the type and on the device of the one given."""
        deltas = [(u.strength, u.lora.deltas[name]) for u in self._uses if name in u.lora.deltas]
        return add_deltas(tensor, deltas) if deltas else tensor


def add_deltas(tensor: Tensor, deltas: Sequence[tuple[float, Delta]]) -> Tensor:
    """tensor plus every strength times its change of it, computed in fp32, in tensor's type."""
    total = tensor.to(torch.float32, copy=True)
    for strength, delta in deltas:
        base = tensor.float() if delta.needs_base else tensor
        change = delta.to(tensor.device, torch.float32).delta(base)
        total.add_(change, alpha=strength)
    return total.to(tensor.dtype)


class AppliedLoras:
    """LoRAs beside the layers of a model whose weights stay as they are, in any type.

    Strengths can be set at any time, and `remove` gives the model back as it was, bit-exact.
    """

    def __init__(self, model: nn.Module, uses: Sequence[LoraUse], full: FullWeight) -> None:
        self.strengths = [use.strength for use in uses]
        self._handles = [
            _layer(model, path).register_forward_hook(_Addition(changes, self.strengths, full))
            for path, changes in _by_layer(uses).items()
        ]

    def set_strength(self, index: int, strength: float) -> None:
        """Change how much of the index-th LoRA is applied."""
        _check_strength(strength)
        self.strengths[index] = strength

    @contextmanager
    def scaled(self, factor: float) -> Iterator[None]:
        """All strengths times a factor meanwhile."""
        whole = list(self.strengths)
        for index, strength in enumerate(whole):
            self.set_strength(index, factor * strength)
        try:
            yield
        finally:
            self.strengths[:] = whole

    def remove(self) -> None:
        """Take all of them off again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


FullWeight = Callable[[nn.Module, torch.device], Tensor]
"""The whole weight of a layer on a device, in fp32."""


def own_weight(layer: nn.Module, device: torch.device) -> Tensor:
    """The weight that a layer holds itself, dequantised if it has to be."""
    return full_weight(cast(nn.Linear, layer), torch.float32).to(device)


def apply_loras(
    model: nn.Module, uses: Sequence[LoraUse], full: FullWeight = own_weight
) -> AppliedLoras:
    """Apply LoRAs that were read for this model's shapes; they add up, in any order.

    full: where a host keeps weights elsewhere, how to get at one; few kinds of LoRA need it.
    """
    return AppliedLoras(model, uses, full)


@dataclass(frozen=True)
class _Change:
    """What the number-th LoRA does to one parameter of a layer, its weight or its bias."""

    number: int
    parameter: str
    delta: Delta


def _by_layer(uses: Sequence[LoraUse]) -> Mapping[str, list[_Change]]:
    found: dict[str, list[_Change]] = {}
    for number, use in enumerate(uses):
        for name, delta in use.lora.deltas.items():
            path, _, parameter = name.rpartition(".")
            found.setdefault(path, []).append(_Change(number, parameter, delta))
    return found


def _layer(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise FramePackError(
            f"the model has no module {path}: read the LoRA for the shapes of this model"
        ) from None


class _Addition:
    """A forward hook that adds what LoRAs make of a layer's input.

    Every kind of layer is linear in its parameters, so their change acts like a layer beside it.
    """

    def __init__(
        self, changes: Sequence[_Change], strengths: Sequence[float], full: FullWeight
    ) -> None:
        self._changes, self._strengths, self._full = changes, strengths, full
        self._place: tuple[torch.device, torch.dtype] | None = None

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        x = args[0]
        if self._place != (x.device, x.dtype):  # known only now, and may change with the model
            self._place = (x.device, x.dtype)
            self._changes = [replace(c, delta=c.delta.to(*self._place)) for c in self._changes]
        for change in self._changes:
            if strength := self._strengths[change.number]:
                out = self._add(out, layer, change, x, strength)
        return out

    def _add(
        self, out: Tensor, layer: nn.Module, change: _Change, x: Tensor, strength: float
    ) -> Tensor:
        """The layer's output with what the change of one of its parameters makes of the input."""
        delta = change.delta
        if change.parameter == "bias":
            bias = delta.delta(cast(Tensor, layer.bias))
            added = bias[:, None, None, None] if isinstance(layer, nn.Conv3d) else bias
            return out + strength * added.to(out.dtype)
        stored = cast(Tensor, layer.weight)
        base = self._full(layer, x.device) if delta.needs_base else stored
        if isinstance(layer, nn.Conv3d):
            kernel = delta.delta(base).to(x.dtype)
            added = conv3d(x, kernel, None, layer.stride, cast(tuple[int, ...], layer.padding))
        elif isinstance(layer, nn.LayerNorm):
            added = layer_norm(x, base.shape, eps=layer.eps) * delta.delta(base)
        elif isinstance(layer, nn.RMSNorm):
            added = rms_norm(x, base.shape, eps=layer.eps) * delta.delta(base)
        else:
            return delta.add_branch(out, x, base, strength)
        return out + strength * added.to(out.dtype)
