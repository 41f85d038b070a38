"""What a golden case comes to, and the two ways to compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One compared case; `error` and `tolerance` are printed, and ok None is not built yet."""

    name: str
    ok: bool | None
    error: str
    tolerance: str


def todo(name: str) -> Case:
    """A case of something that is not built yet."""
    return Case(name, None, "", "")


def compare(name: str, actual: Tensor, expected: Tensor, rtol: float, atol: float) -> Case:
    """Largest absolute difference, judged element by element against atol + rtol * |expected|."""
    tolerance = f"rtol={rtol:g},atol={atol:g}"
    if actual.shape != expected.shape:
        shapes = f"shape {tuple(actual.shape)} != {tuple(expected.shape)}"
        return Case(name, False, shapes.replace(" ", ""), tolerance)
    difference = (actual.double() - expected.double()).abs()
    ok = bool((difference <= atol + rtol * expected.double().abs()).all())
    worst = difference.max().item() if difference.numel() else 0.0
    return Case(name, ok, f"{worst:.3g}", tolerance)


def exact(name: str, actual: Any, expected: Any) -> Case:
    """Equality; the first difference is printed."""
    if isinstance(actual, Tensor) and isinstance(expected, Tensor):
        ok = actual.dtype == expected.dtype and torch.equal(actual, expected)
        return Case(name, ok, "0" if ok else "differs", "exact")
    ok = actual == expected
    return Case(name, ok, "0" if ok else _first_difference(actual, expected), "exact")


def _first_difference(actual: Any, expected: Any) -> str:
    if isinstance(actual, list | tuple) and isinstance(expected, list | tuple):
        for i, (a, e) in enumerate(zip(actual, expected, strict=False)):
            if a != e:
                return f"[{i}]{_first_difference(a, e)}"
        return f"length {len(actual)} != {len(expected)}".replace(" ", "")
    if isinstance(actual, dict) and isinstance(expected, dict):
        for key in sorted(set(actual) | set(expected), key=str):
            if actual.get(key) != expected.get(key):
                return f".{key}{_first_difference(actual.get(key), expected.get(key))}"
    return f"{actual!r}!={expected!r}".replace(" ", "")[:160]
