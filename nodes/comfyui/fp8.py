"""Layers of ComfyUI whose weights may be in fp8, with a scale of any form."""

from __future__ import annotations

from typing import Any

import comfy.float
import comfy.lora
import comfy.model_patcher
import comfy.ops
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ...framepack_core.weights.fp8 import ScaledWeight, dequantize, rescale


class ScaledLinear(ScaledWeight, comfy.ops.manual_cast.Linear):
    """A linear layer that ComfyUI streams and patches, with a scale beside its weight or none."""

    def forward_comfy_cast_weights(self, x: Tensor) -> Tensor:
        if self.scale_weight is None:
            return super().forward_comfy_cast_weights(x)
        bias = None if self.bias is None else comfy.ops.cast_to_input(self.bias, x)
        for function in self.bias_function if bias is not None else ():
            bias = function(bias)
        return linear(x, self.full_weight(x.device, x.dtype), bias)

    def full_weight(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The weight dequantised, with the patches that ComfyUI applies while it streams."""
        weight = self.convert_weight(self.weight.to(device, dtype))
        for function in self.weight_function:
            if isinstance(function, comfy.model_patcher.LowVramPatch):
                # Called itself it would dequantise once more in some versions of ComfyUI.
                patches = function.patches[function.key]
                weight = comfy.lora.calculate_weight(patches, weight, function.key, weight.dtype)
            else:
                weight = function(weight)
        return weight

    # What ComfyUI calls before and after it patches a weight in place.

    def convert_weight(self, weight: Tensor, **_: Any) -> Tensor:
        """The stored weight, cast to a wider type, to the weight that it stands for."""
        if self.scale_weight is None:
            return weight
        return dequantize(weight, self.scale_weight.to(weight.device), weight.dtype)

    def set_weight(
        self,
        weight: Tensor,
        inplace_update: bool = False,
        seed: int = 0,
        return_weight: bool = False,
        **_: Any,
    ) -> Tensor | None:
        """Store a patched weight in the type and under the scale of the one that it replaces."""
        if self.scale_weight is not None:
            weight = rescale(weight, self.scale_weight.to(weight.device), self.weight.dtype)
        weight = comfy.float.stochastic_rounding(weight, self.weight.dtype, seed=seed)
        if return_weight:
            return weight
        if inplace_update:
            self.weight.data.copy_(weight)
        else:
            self.weight = nn.Parameter(weight, requires_grad=False)
        return None


class ScaledOps(comfy.ops.manual_cast):
    """ComfyUI's layers, of which Linear may hold scaled fp8 weights."""

    Linear = ScaledLinear


def layer_weight(layer: nn.Module, device: torch.device) -> Tensor:
    """The whole weight of a layer on a device in fp32, wherever ComfyUI keeps it."""
    if isinstance(layer, ScaledLinear) and layer.scale_weight is not None:
        return layer.full_weight(device, torch.float32)
    kinds = {"dtype": torch.float32, "bias_dtype": torch.float32}
    weight, _ = comfy.ops.cast_bias_weight(layer, device=device, **kinds)
    return weight
