"""What a golden case comes to, and the ways to compare.

Where we differ from the reference on purpose, a case is held to our own documented rule instead:
`exact_ours` and `compare_ours` fail on anything else, and carry a Deviation that `reviewed.py`
looks up.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Deviation:
    """A value that is not the reference's on purpose; all fields but the tag are plain JSON.

    tag: the reason in differences.py; inputs: what the value was made of; reference: its value.
    """

    tag: str
    inputs: Any
    reference: Any
    ours: Any


@dataclass(frozen=True)
class Case:
    """One compared case; `error` and `tolerance` are printed, and ok None is not built yet."""

    name: str
    ok: bool | None
    error: str
    tolerance: str
    deviation: Deviation | None = None


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


def exact_ours(name: str, tag: str, actual: Any, *, rule: Any, reference: Any, inputs: Any) -> Case:
    """Equality with what our rule says, which for these inputs may be the reference's value too."""
    case = exact(f"{name}[{tag}]", actual, rule)
    same = exact(name, rule, reference).ok
    deviation = Deviation(tag, inputs, summary(reference), summary(actual))
    return case if same else replace(case, deviation=deviation)


def compare_ours(
    name: str,
    tag: str,
    actual: Tensor,
    *,
    rule: Tensor,
    reference: Tensor,
    inputs: Any,
    rtol: float,
    atol: float,
) -> Case:
    """The like of exact_ours for numbers with a tolerance."""
    case = compare(f"{name}[{tag}]", actual, rule, rtol, atol)
    same = compare(name, rule, reference, rtol, atol).ok
    deviation = Deviation(tag, inputs, summary(reference), summary(actual))
    return case if same else replace(case, deviation=deviation)


def refusal(error: Exception, *names: str) -> str:
    """An error as a value to compare: whether it names all that it has to."""
    missing = [name for name in names if name not in str(error)]
    return f"refused without {missing}: {error}" if missing else refused(*names)


def refused(*names: str) -> str:
    """The value of an error that names these."""
    return f"refused, naming {list(names)}"


def summary(value: Any) -> Any:
    """A value as JSON reads it back; large tensors as shape, mean, norm and product with a ramp."""
    if not isinstance(value, Tensor):
        return json.loads(json.dumps(value, default=str, sort_keys=True))
    flat = value.detach().double().flatten()
    if flat.numel() <= 32:
        return value.tolist()
    ramp = torch.linspace(-1, 1, flat.numel(), dtype=torch.float64)
    return {
        "shape": list(value.shape),
        "mean": flat.mean().item(),
        "norm": flat.norm().item(),
        "ramp": (flat @ ramp).item(),
    }


def digest(*tensors: Tensor) -> str:
    """Tells tensors that were read from a file from all others, on every machine."""
    found = hashlib.sha256()
    for tensor in tensors:
        about = f"{tensor.dtype} {tuple(tensor.shape)}"
        found.update(
            about.encode() + tensor.flatten().contiguous().view(torch.uint8).numpy().tobytes()
        )
    return found.hexdigest()[:16]


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
