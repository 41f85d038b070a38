"""LoRAs at work: merged into weights as they are read, or beside the layers of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..runtime.errors import FramePackError
from .fp8 import full_weight
from .lora import Lora, load_lora
from .lora_delta import Delta
from .lora_names import Shapes


@dataclass(frozen=True)
class LoraUse:
    """A LoRA and how much of its change to apply: 0 nothing, 1 as trained."""

    lora: Lora
    strength: float = 1.0

    def __post_init__(self) -> None:
        _check_strength(self.strength)


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
    """LoRAs on a model without touching its linear weights, so that their precision is kept.

    Linear layers get a side branch; the few other parameters are replaced by changed copies.
    Strengths can be set at any time, and `remove` gives the model back as it was, to the bit.
    """

    def __init__(self, model: nn.Module, uses: Sequence[LoraUse]) -> None:
        self.strengths = [use.strength for use in uses]
        self._handles = []
        self._copies: list[_Copy] = []
        for name, deltas in _by_parameter(uses).items():
            module, kind = _owner(model, name)
            if isinstance(module, nn.Linear) and kind == "weight":
                branches = _Branches(deltas, self.strengths)
                self._handles.append(module.register_forward_hook(branches))
            else:
                self._copies.append(_Copy(module, kind, deltas))
        self._update()

    def set_strength(self, index: int, strength: float) -> None:
        """Change how much of the index-th LoRA is applied."""
        _check_strength(strength)
        self.strengths[index] = strength
        self._update()

    def remove(self) -> None:
        """Take all of them off again."""
        for handle in self._handles:
            handle.remove()
        for copy in self._copies:
            copy.restore()
        self._handles, self._copies = [], []

    def _update(self) -> None:
        for copy in self._copies:
            copy.apply(self.strengths)


def apply_loras(model: nn.Module, uses: Sequence[LoraUse]) -> AppliedLoras:
    """Apply LoRAs that were read for this model's shapes; they add up, in any order."""
    return AppliedLoras(model, uses)


Numbered = list[tuple[int, Delta]]


def _by_parameter(uses: Sequence[LoraUse]) -> Mapping[str, Numbered]:
    found: dict[str, Numbered] = {}
    for i, use in enumerate(uses):
        for name, delta in use.lora.deltas.items():
            found.setdefault(name, []).append((i, delta))
    return found


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, kind = name.rpartition(".")
    try:
        return model.get_submodule(path), kind
    except AttributeError:
        raise FramePackError(
            f"the model has no module {path}: read the LoRA for the shapes of this model"
        ) from None


class _Branches:
    """A forward hook of a linear layer that adds what its LoRAs make of the same input."""

    def __init__(self, deltas: Numbered, strengths: Sequence[float]) -> None:
        self._deltas, self._strengths = deltas, strengths
        self._place: tuple[torch.device, torch.dtype] | None = None

    def __call__(self, module: nn.Linear, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        x = args[0]
        if self._place != (x.device, x.dtype):  # known only now, and may change with the model
            self._place = (x.device, x.dtype)
            self._deltas = [(i, delta.to(*self._place)) for i, delta in self._deltas]
        for i, delta in self._deltas:
            if self._strengths[i]:
                base = full_weight(module, torch.float32) if delta.needs_base else module.weight
                out = out + self._strengths[i] * delta.branch(x, base)
        return out


class _Copy:
    """A parameter that is not a linear layer's weight, swapped for a changed one."""

    def __init__(self, module: nn.Module, kind: str, deltas: Numbered) -> None:
        self._module, self._kind, self._deltas = module, kind, deltas
        self._original: nn.Parameter = getattr(module, kind)

    def apply(self, strengths: Sequence[float]) -> None:
        self.restore()
        deltas = [(strengths[i], delta) for i, delta in self._deltas if strengths[i]]
        if not deltas:
            return
        changed = add_deltas(self._original.detach(), deltas)
        setattr(self._module, self._kind, nn.Parameter(changed, self._original.requires_grad))

    def restore(self) -> None:
        setattr(self._module, self._kind, self._original)
