"""Linear layers that hold their weight in any format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .formats import PARTS, WEIGHT, Encoding, encoding_of


class QuantisedWeight(nn.Module):
    """Mixed into a layer class, lets its weight be quantised: `encoding` says how, if it is."""

    encoding: Encoding | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for part in PARTS:
            self.register_buffer(part, None)

    def parts(self) -> dict[str, Tensor]:
        """What the weight consists of."""
        found = {part: getattr(self, part) for part in PARTS if getattr(self, part) is not None}
        return {WEIGHT: self.weight, **found}

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        given = {part: state_dict.get(prefix + part) for part in (WEIGHT, *PARTS)}
        # Only the file knows which parts a weight has, and of what types and shapes.
        for part in PARTS:
            stored = given[part]
            setattr(self, part, None if stored is None else torch.empty_like(stored, device="meta"))
        parts = {part: stored for part, stored in given.items() if stored is not None}
        if WEIGHT in parts:
            self.encoding = encoding_of(parts)
        if self.encoding is not None:
            empty = torch.empty_like(parts[WEIGHT], device="meta")
            self.weight = nn.Parameter(empty, requires_grad=False)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class QuantisedLinear(QuantisedWeight, nn.Linear):
    """A linear layer that may hold its weight quantised, and computes in the type of its input.

    product: multiplies in the weight's own numbers; without one it is dequantised first.
    """

    product: Callable[[QuantisedLinear, Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.encoding is None:
            return super().forward(x)
        if self.product is not None:
            return self.product(self, x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return linear(x, self.encoding.decode(self.parts(), x.dtype), bias)


def full_weight(layer: nn.Module, dtype: torch.dtype) -> Tensor:
    """The weight of a linear layer, dequantised if it has to be."""
    if isinstance(layer, QuantisedWeight) and layer.encoding is not None:
        return layer.encoding.decode(layer.parts(), dtype)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.to(dtype)


class QuantisedOps:
    """Layer classes like torch.nn's, of which Linear may hold quantised weights."""

    Linear = QuantisedLinear
    Embedding = nn.Embedding
    LayerNorm = nn.LayerNorm
    RMSNorm = nn.RMSNorm
    Conv2d = nn.Conv2d
    Conv3d = nn.Conv3d
