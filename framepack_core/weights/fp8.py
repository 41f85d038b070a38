"""The arithmetic of fp8: plain casts and scaled weights.

A scaled weight is q * scale with q in fp8. Its scale is one number, one a row [out, 1], or one a
row and block of columns [out, blocks, 1]; the shape tells which.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
FP8 = (E4M3, E5M2)
BLOCK = 64
SCALE = "scale_weight"

Scaling = Literal["block", "row", "tensor"]


def scale_shape(
    shape: tuple[int, ...], scaling: Scaling = "block", block: int = BLOCK
) -> tuple[int, ...]:
    """The shape of the scale of a weight: what is asked for, or the next that the weight allows."""
    if len(shape) != 2 or scaling == "tensor":
        return ()
    if scaling == "row" or shape[1] % block:
        return (shape[0], 1)
    return (shape[0], shape[1] // block, 1)


def quantize(
    weight: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype = E4M3,
    scale_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """(q, scale) of a weight, the scale of this shape, in the weight's type or another.

    The largest magnitude under each scale becomes the largest number of the fp8 type.
    """
    limit, scale_dtype = torch.finfo(dtype).max, scale_dtype or weight.dtype
    groups = _grouped(weight, shape)
    largest = groups.abs().amax(dim=-1, keepdim=True) if shape else groups.abs().max()
    scale = largest.to(torch.promote_types(weight.dtype, scale_dtype)) / limit
    # Rounded before it divides, so that the product is as near the weight as it can be.
    scale = scale.clamp(min=1e-8).to(scale_dtype)
    q = (groups.float() / scale.float()).nan_to_num_(0.0).clamp_(-limit, limit).to(dtype)
    return q.reshape(weight.shape), scale


def cast(weight: Tensor, dtype: torch.dtype = E4M3) -> Tensor:
    """A weight in fp8 without a scale; what lies outside the type's range is clamped."""
    limit = torch.finfo(dtype).max
    return weight.clamp(-limit, limit).to(dtype)


def dequantize(q: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The weight that q and its scale stand for."""
    if scale is None:
        return q.to(dtype)
    groups = _grouped(q.to(dtype), tuple(scale.shape))
    return (groups * scale.to(dtype)).reshape(q.shape)


def rescale(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight divided by a scale that it need not have been made for, inside the fp8 range."""
    limit = torch.finfo(dtype).max
    groups = _grouped(weight, tuple(scale.shape)) / scale.to(weight.dtype)
    return groups.clamp_(-limit, limit).reshape(weight.shape)


def _grouped(weight: Tensor, scale: tuple[int, ...]) -> Tensor:
    """A view whose last axis is what shares a scale of this shape."""
    return weight.unflatten(1, (scale[1], -1)) if len(scale) == 3 else weight
