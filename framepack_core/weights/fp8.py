"""Weights in 8 bits: plain casts and scaled ones, read from any file and used by a linear layer.

A scaled weight is q * scale with q in fp8. Its scale is one number, one a row [out, 1], or one a
row and block of columns [out, blocks, 1]; the shape tells which.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..runtime.errors import FramePackError
from .files import TensorInfo, WeightFiles

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
FP8 = (E4M3, E5M2)
BLOCK = 64
SCALE = "scale_weight"

Scaling = Literal["block", "row", "tensor"]
Precision = Literal["auto", "full", "fp8", "fp8_e5m2", "fp8_scaled"]


def is_block_linear(name: str) -> bool:
    """Whether fp8 is harmless in this weight of the DiT: layers of blocks, without modulation."""
    in_block = name.startswith(("transformer_blocks.", "single_transformer_blocks."))
    return in_block and name.endswith(".weight") and "norm" not in name


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


class ScaledWeight(nn.Module):
    """Mixed into a layer class, lets its weight have a scale beside it."""

    scale_weight: Tensor | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer(SCALE, None)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        scale = state_dict.get(prefix + SCALE)
        # Only the file knows which weights have a scale, and of what shape.
        self.scale_weight = None if scale is None else torch.empty_like(scale, device="meta")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class Fp8Linear(ScaledWeight, nn.Linear):
    """A linear layer that may hold its weight in fp8, and computes in the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dtype not in FP8:
            return super().forward(x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return linear(x, full_weight(self, x.dtype), bias)


def full_weight(layer: nn.Linear, dtype: torch.dtype) -> Tensor:
    """The weight of a linear layer, dequantised if it has to be."""
    return dequantize(layer.weight, getattr(layer, SCALE, None), dtype)


class Fp8Ops:
    """Layer classes like torch.nn's, of which Linear may hold fp8 weights."""

    Linear = Fp8Linear
    Embedding = nn.Embedding
    LayerNorm = nn.LayerNorm
    RMSNorm = nn.RMSNorm
    Conv2d = nn.Conv2d
    Conv3d = nn.Conv3d


_WEIGHT_SCALES = (SCALE, "weight_scale")  # musubi-tuner and older ComfyUI, newer ComfyUI
_SIDE = (*_WEIGHT_SCALES, "scale_input", "input_scale", "comfy_quant")
_MARKER = "scaled_fp8"  # an empty tensor in ComfyUI's older files
_FORMATS = {"float8_e4m3fn": E4M3, "float8_e5m2": E5M2}


def _scale_form(scale: tuple[int, ...], weight: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of a stored scale in the form used here; None if it fits no form."""
    if math.prod(scale) == 1:
        return ()
    if scale in (weight[:1], (*weight[:1], 1)):
        return (weight[0], 1)
    blocks = scale[1] if len(scale) in (2, 3) else 0
    fits = blocks and len(weight) == 2 and weight[1] % blocks == 0
    if fits and scale in ((weight[0], blocks), (weight[0], blocks, 1)):
        return (weight[0], blocks, 1)
    return None


class ScaledFiles:
    """Files of weights whose fp8 tensors come with their scales applied.

    Lists the model's own tensors only; scales and markers of musubi-tuner's and ComfyUI's scaled
    files are found by the names beside the weight. Scales of inputs are for fp8 arithmetic and not
    needed. Raises FramePackError for a format that is not fp8, and for a scale of no known shape.
    """

    def __init__(self, files: WeightFiles) -> None:
        self._files = files
        self.paths, self.metadata = files.paths, files.metadata
        self._names = [name for name in files if not self._is_side(name)]
        self._formats = self._stated_formats()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def info(self, name: str) -> TensorInfo:
        """Type and shape; an fp8 weight kept in bytes counts as fp8."""
        info = self._files.info(name)
        stated = self._formats.get(name.removesuffix(".weight"))
        return TensorInfo(stated, info.shape) if stated and info.dtype.itemsize == 1 else info

    def scale_info(self, name: str) -> TensorInfo | None:
        """Type and shape of the scale of a weight, if it has one; one number has the shape ()."""
        key = self._scale_key(name)
        if key is None:
            return None
        info, shape = self._files.info(key), self._files.info(name).shape
        found = _scale_form(info.shape, shape)
        if found is None:
            raise FramePackError(
                f"{self.paths[0]}: the scale {key} is {list(info.shape)}, which does not fit a "
                f"weight {list(shape)}: download the file again"
            )
        return TensorInfo(info.dtype, found)

    def load(
        self,
        name: str,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        *,
        copy: bool = False,
    ) -> Tensor:
        """The tensor as `WeightFiles.load` gives it, dequantised if it has a scale."""
        if self.scale_info(name) is None and self.info(name) == self._files.info(name):
            return self._files.load(name, dtype, device, copy=copy)
        q, scale = self.load_scaled(name, device)
        return dequantize(q.float(), scale, torch.float32).to(dtype or torch.float32)

    def load_scaled(
        self, name: str, device: torch.device | str = "cpu", *, copy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The weight as it is stored, and its scale."""
        q = self._files.load(name, None, device, copy=copy).view(self.info(name).dtype)
        info, key = self.scale_info(name), self._scale_key(name)
        if info is None or key is None:
            return q, None
        return q, self._files.load(key, None, device, copy=copy).reshape(info.shape)

    def _scale_key(self, name: str) -> str | None:
        base, _, kind = name.rpartition(".")
        keys = [f"{base}.{scale}" for scale in _WEIGHT_SCALES] if kind == "weight" else []
        return next((key for key in keys if key in self._files), None)

    def _is_side(self, name: str) -> bool:
        base, _, kind = name.rpartition(".")
        return kind == _MARKER or (kind in _SIDE and f"{base}.weight" in self._files)

    def _stated_formats(self) -> dict[str, torch.dtype]:
        """The fp8 type of each layer that ComfyUI's newer files state one for."""
        found = {
            name.removesuffix(".comfy_quant"): bytes(self._files[name].tolist())
            for name in self._files
            if name.endswith(".comfy_quant")
        }
        try:
            stated: dict[str, Any] = {layer: json.loads(text) for layer, text in found.items()}
            if "_quantization_metadata" in self.metadata:
                stated |= json.loads(self.metadata["_quantization_metadata"])["layers"]
            formats = {layer: entry["format"] for layer, entry in stated.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise FramePackError(
                f"{self.paths[0]} has damaged quantisation metadata ({error}): download it again"
            ) from None
        for layer, name in formats.items():
            if name not in _FORMATS:
                raise FramePackError(
                    f"{self.paths[0]} is quantised as {name} ({layer}), which is not supported: "
                    "use the bf16, fp16 or fp8 file of this model"
                )
        return {layer: _FORMATS[name] for layer, name in formats.items()}
