"""Outputs of a network's stages: recorded, forced onto another network, and judged.

Rounding is what the reference itself loses in the number type that is used: its distance from the
same computation in a wider type. A stage is judged on inputs of its own, which are this pack's for
both, so that no error is handed on from one to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Parts = list[Tensor]

FACTOR = 2.0  # of the reference's own rounding; other kernels round in another order
FLOOR = 1.0  # of the type's last digit: where the reference rounds nowhere, or by luck to nothing


@dataclass(frozen=True)
class Form:
    """How what a stage returns is read as tensors, and how such tensors take its place."""

    read: Callable[[Any], Parts]
    write: Callable[[Any, Parts], Any]


def _read_first(out: Any) -> Parts:
    return [out[0] if isinstance(out, tuple) else out]


def _write_first(out: Any, parts: Parts) -> Any:
    return (parts[0], *out[1:]) if isinstance(out, tuple) else parts[0]


FIRST = Form(_read_first, _write_first)
PAIR = Form(list, lambda _out, parts: tuple(parts))


def first_rows(count: int) -> Form:
    """The first rows of [B, L, C]: those behind are padding, which only the reference has."""

    def write(out: Any, parts: Parts) -> Any:
        whole = _read_first(out)[0]
        return _write_first(out, [torch.cat([parts[0], whole[:, count:]], dim=1)])

    return Form(lambda out: [_read_first(out)[0][:, :count]], write)


@dataclass(frozen=True)
class Subject:
    """A network, the stages that are looked at, and what it makes of its input."""

    stages: Mapping[str, tuple[nn.Module, Form]]
    run: Callable[[], Tensor]


@dataclass
class Recording:
    """What the stages returned, in the order in which they ran, and the result; on the CPU."""

    stages: dict[str, Parts] = field(default_factory=dict)
    result: Parts = field(default_factory=list)


@torch.no_grad()
def record(subject: Subject, forced: Mapping[str, Parts] | None = None) -> Recording:
    """Run once; with `forced` each stage continues from those outputs instead of its own."""
    found = Recording()

    def hook(name: str, form: Form) -> Callable[..., Any]:
        def keep(_module: nn.Module, _inputs: Any, out: Any) -> Any:
            parts = form.read(out)
            found.stages[name] = [part.detach().to("cpu", copy=True) for part in parts]
            if forced is None:
                return None
            pairs = zip(forced[name], parts, strict=True)
            return form.write(out, [other.to(part) for other, part in pairs])

        return keep

    stages = subject.stages.items()
    handles = [module.register_forward_hook(hook(name, form)) for name, (module, form) in stages]
    try:
        found.result = [subject.run().detach().to("cpu", copy=True)]
    finally:
        for handle in handles:
            handle.remove()
    return found


@dataclass(frozen=True)
class Judgement:
    """Relative errors against the wide type: this pack's, and the reference's own rounding."""

    name: str
    error: float
    rounding: float
    limit: float

    @property
    def good(self) -> bool:
        return self.error <= self.limit  # False for what is no number


def judge(name: str, ours: Parts, reference: Parts, exact: Parts, dtype: torch.dtype) -> Judgement:
    """The worst part of a stage's output. exact: the reference in a wider type; dtype: of ours."""
    floor = FLOOR * torch.finfo(dtype).eps
    judged = []
    for part, rounded, truth in zip(ours, reference, exact, strict=True):
        rounding = relative_error(rounded, truth)
        limit = max(FACTOR * rounding, floor)
        judged.append(Judgement(name, relative_error(part, truth), rounding, limit))
    return max(judged, key=lambda j: math.inf if math.isnan(j.error) else j.error / j.limit)


def relative_error(found: Tensor, truth: Tensor) -> float:
    """The norm of the difference over the norm of the truth; nan where something is no number."""
    truth = truth.double()
    difference = float((found.double() - truth).norm())
    return difference / max(float(truth.norm()), torch.finfo(torch.float64).tiny)


def first_bad(judgements: Sequence[Judgement]) -> Judgement | None:
    """The first stage beyond rounding."""
    return next((judgement for judgement in judgements if not judgement.good), None)
