"""The change that a LoRA file makes to one weight, kept in its factors.

A change is a dense matrix only while it is used: `delta` makes it, `branch` applies it to an input
beside the layer, without it where the form allows.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import ClassVar, cast

import torch
from torch import Tensor
from torch.nn.functional import linear

Rows = tuple[tuple[int, int], ...]


class Delta:
    """The change of one weight; dataclasses of tensors and a scale derive from it.

    Arithmetic is in the type of the tensors: move them with `to` before.
    """

    needs_base: ClassVar[bool] = False  # whether it depends on the weight, not only on its shape

    def delta(self, base: Tensor) -> Tensor:
        """The change of `base` [out, in], of its shape."""
        raise NotImplementedError

    def branch(self, x: Tensor, base: Tensor) -> Tensor:
        """What the change adds to the output of a linear layer with weight `base` for input x."""
        return linear(x, self.delta(base).to(x.dtype))

    def add_branch(self, out: Tensor, x: Tensor, base: Tensor, strength: float = 1.0) -> Tensor:
        """The output `out` of the layer for input x with strength times the branch added."""
        return out + strength * self.branch(x, base).to(out.dtype)

    def take(self, rows: Rows) -> Delta:
        """The change of these output rows only, in this order."""
        raise NotImplementedError

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The factors by name; `with_tensors` takes them back."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def with_tensors(self, tensors: dict[str, Tensor]) -> Delta:
        return replace(self, **tensors)  # type: ignore[type-var]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Delta:
        """The same change with its factors there and in that type."""
        moved = {name: x.to(device=device, dtype=dtype) for name, x in self.tensors.items()}
        return self.with_tensors(moved)


@dataclass(frozen=True, eq=False)
class LowRank(Delta):
    """scale * up @ down (LoRA, arXiv 2106.09685); up [out, r], down [r, in]."""

    up: Tensor
    down: Tensor
    scale: float = 1.0

    def delta(self, base: Tensor) -> Tensor:
        return ((self.scale * self.up) @ self.down).reshape(base.shape)

    def branch(self, x: Tensor, base: Tensor) -> Tensor:
        return linear(self._hidden(x, self.scale), self.up.to(x.dtype))

    def add_branch(self, out: Tensor, x: Tensor, base: Tensor, strength: float = 1.0) -> Tensor:
        if out.dtype != x.dtype:
            return super().add_branch(out, x, base, strength)
        # One pass over the output, which is far larger than what is between the factors.
        hidden = self._hidden(x, self.scale * strength).flatten(0, -2)
        added = torch.addmm(out.flatten(0, -2), hidden, self.up.to(x.dtype).T)
        return added.view_as(out)

    def _hidden(self, x: Tensor, scale: float) -> Tensor:
        """What is between the factors, scaled."""
        return scale * linear(x, self.down.to(x.dtype))

    def take(self, rows: Rows) -> LowRank:
        return replace(self, up=take_rows(self.up, rows))


@dataclass(frozen=True, eq=False)
class Hadamard(Delta):
    """scale * (w1_a @ w1_b) * (w2_a @ w2_b), elementwise (LoHa, arXiv 2108.06098)."""

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    scale: float = 1.0

    def delta(self, base: Tensor) -> Tensor:
        product = (self.scale * self.w1_a @ self.w1_b) * (self.w2_a @ self.w2_b)
        return product.reshape(base.shape)

    def take(self, rows: Rows) -> Hadamard:
        return replace(self, w1_a=take_rows(self.w1_a, rows), w2_a=take_rows(self.w2_a, rows))


@dataclass(frozen=True, eq=False)
class Kronecker(Delta):
    """scale * kron(w1, w2) (LoKr, arXiv 2309.14859), each whole or as a product of two.

    `rows` picks output rows, which need not end where a block of w2 does.
    """

    w1: Tensor
    w2: Tensor
    w1_b: Tensor | None = None
    w2_b: Tensor | None = None
    scale: float = 1.0
    rows: Rows | None = None

    def delta(self, base: Tensor) -> Tensor:
        w1, w2 = self._whole()
        if self.rows is None:
            return torch.kron(w1, w2).reshape(base.shape)
        parts = [_kron_rows(w1, w2, start, stop) for start, stop in self.rows]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(base.shape)

    def branch(self, x: Tensor, base: Tensor) -> Tensor:
        if self.rows is not None:
            return super().branch(x, base)
        w1, w2 = (w.to(x.dtype) for w in self._whole())
        x = x.unflatten(-1, (w1.shape[1], w2.shape[1]))
        return torch.einsum("...mn,kn,lm->...lk", x, w2, w1).flatten(-2)

    def take(self, rows: Rows) -> Kronecker:
        return replace(self, rows=rows)

    def _whole(self) -> tuple[Tensor, Tensor]:
        """w1, with the scale, and w2."""
        w1 = self.scale * (self.w1 if self.w1_b is None else self.w1 @ self.w1_b)
        w2 = self.w2 if self.w2_b is None else self.w2 @ self.w2_b
        return w1, w2


def _kron_rows(w1: Tensor, w2: Tensor, start: int, stop: int) -> Tensor:
    """Rows start to stop of kron(w1, w2), without making the others."""
    height = w2.shape[0]
    first, last = start // height, -(-stop // height)
    return torch.kron(w1[first:last], w2)[start - first * height : stop - first * height]


@dataclass(frozen=True, eq=False)
class Difference(Delta):
    """scale * value: the change itself (`.diff`, or factors whose product is small)."""

    value: Tensor
    scale: float = 1.0

    def delta(self, base: Tensor) -> Tensor:
        return (self.scale * self.value).reshape(base.shape)

    def take(self, rows: Rows) -> Difference:
        return replace(self, value=take_rows(self.value, rows))


@dataclass(frozen=True, eq=False)
class Replacement(Delta):
    """value - base: the weight itself (`.set_weight`)."""

    needs_base = True
    value: Tensor

    def delta(self, base: Tensor) -> Tensor:
        return self.value.reshape(base.shape) - base.to(self.value)

    def take(self, rows: Rows) -> Replacement:
        return replace(self, value=take_rows(self.value, rows))


@dataclass(frozen=True, eq=False)
class Decomposed(Delta):
    """DoRA (arXiv 2402.09353): base + inner, scaled to the norms `magnitude`, minus base.

    magnitude [out, 1] holds the norm of every row, [1, in] that of every column.
    """

    needs_base = True
    inner: Delta
    magnitude: Tensor

    def delta(self, base: Tensor) -> Tensor:
        flat = base.to(self.magnitude).flatten(1)
        moved = flat + self.inner.delta(flat)
        axis = 1 if self.magnitude.shape[1] == 1 else 0
        norm = moved.norm(dim=axis, keepdim=True)
        scale = self.magnitude / norm.clamp(min=torch.finfo(norm.dtype).tiny)
        return (moved * scale - flat).reshape(base.shape)

    def take(self, rows: Rows) -> Decomposed:
        return Decomposed(self.inner.take(rows), take_rows(self.magnitude, rows))

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {**self.inner.tensors, "magnitude": self.magnitude}

    def with_tensors(self, tensors: dict[str, Tensor]) -> Decomposed:
        inner = {name: x for name, x in tensors.items() if name != "magnitude"}
        return Decomposed(self.inner.with_tensors(inner), tensors["magnitude"])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Decomposed:
        """In fp32 at least: norms of thousands of numbers lose too much in less."""
        moved = super().to(device, torch.promote_types(dtype, torch.float32))
        return cast(Decomposed, moved)


def take_rows(x: Tensor, rows: Rows) -> Tensor:
    """The given ranges of rows one after the other; a view if it is one range."""
    parts = [x[start:stop] for start, stop in rows]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def tucker(core: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """[out, in, kernel...] of core [p, q, kernel...], left [p, out] and right [q, in]."""
    return torch.einsum("pq...,po,qi->oi...", core, left, right)
