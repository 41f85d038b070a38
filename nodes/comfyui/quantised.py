"""Layers of ComfyUI whose weights are quantised: ComfyUI's own, and ours for what it lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import comfy.float
import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.functional import linear

from ...framepack_core.models.fastest import Way, chosen, fastest
from ...framepack_core.models.products import ALIGNMENT, ERRORS, scaled_rows
from ...framepack_core.runtime.display import say
from ...framepack_core.runtime.errors import FramePackError
from ...framepack_core.weights.formats import (
    CONFIG,
    PARTS,
    WEIGHT,
    Encoding,
    Fp8,
    Fp8Cast,
    Gguf,
    encoding_of,
)
from ...framepack_core.weights.fp8 import SCALE, rescale
from ...framepack_core.weights.quantised_linear import QuantisedWeight


def _native_formats() -> set[str]:
    """The formats that this version of ComfyUI holds in layers of its own; older ones have none."""
    if not hasattr(comfy.model_management, "supports_mxfp8_compute"):
        return set()
    from comfy.quant_ops import QUANT_ALGOS

    return set(QUANT_ALGOS)


def operations_for(encodings: Mapping[str, Encoding], device: torch.device, dtype: Any) -> Any:
    """The layer classes that hold weights kept like this; None where any of ComfyUI's can.

    ComfyUI's own compute in the numbers of a format where the device can, so they are taken for all
    formats that ComfyUI knows.
    """
    formats = {encoding.format.name: encoding.format for encoding in encodings.values()}
    if not formats:
        return None
    native = {name for name, format in formats.items() if format.native}
    if native != set(formats) or not native <= _native_formats():
        return EmulatingOps
    emulated = _without_hardware(device) & set(formats)
    if emulated:
        say(f"model: {', '.join(sorted(emulated))} is emulated here: dequantised, then multiplied")
    return _native_ops(dtype, _without_hardware(device))


def _without_hardware(device: torch.device) -> set[str]:
    """The formats whose products this device does not compute, by ComfyUI's own tests."""
    mm = comfy.model_management
    fp8 = mm.supports_fp8_compute(device)
    can = {
        "float8_e4m3fn": fp8,
        "float8_e5m2": fp8,
        "nvfp4": mm.supports_nvfp4_compute(device),
        "mxfp8": mm.supports_mxfp8_compute(device),
    }
    return {name for name, able in can.items() if not able}


def _native_ops(dtype: torch.dtype, disabled: set[str]) -> Any:
    """ComfyUI's layers that hold any of its formats and compute in `dtype` elsewhere."""
    base = comfy.ops.mixed_precision_ops({"mixed_ops": True}, dtype, disabled=disabled)

    class Linear(base.Linear):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if kwargs.get("dtype") == torch.float32:  # or it would be rounded to `dtype`
                self.factory_kwargs["dtype"] = torch.float32

        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            theirs = super().forward
            if not (_fp8_by_rows(self, x) and _rows_win(self, theirs, x)):
                return theirs(x, *args, **kwargs)
            comfy.ops.run_every_op()
            return multiplied_by_rows(self, x)

    class NativeOps(base):
        pass

    NativeOps.Linear = Linear
    return NativeOps


LONG = 1024  # rows; below, ComfyUI's own product is taken


def _fp8_by_rows(layer: Any, x: Tensor) -> bool:
    """Whether a product of ComfyUI's in fp8 could as well be ours, whose inputs have row scales."""
    if getattr(layer, "quant_format", None) != "float8_e4m3fn" or is_compiling():
        return False
    if layer._full_precision_mm or getattr(layer, "comfy_force_cast_weights", False):
        return False
    stated = any(
        getattr(layer, name, None) is not None for name in ("input_scale", "pre_quant_scale")
    )
    changed = layer.weight_function or layer.bias_function or x.requires_grad
    fits = layer.in_features % ALIGNMENT == 0 and layer.out_features % ALIGNMENT == 0
    new = hasattr(comfy.ops, "CastBiasWeightContext")
    return new and fits and not stated and not changed and x[..., 0].numel() >= LONG


def _rows_win(layer: Any, theirs: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether they are faster than ComfyUI's own product, measured the first time."""
    what = "fp8 in ComfyUI"
    key = what, x.device, x.dtype
    if key not in chosen:
        expected = theirs(x)
        runs = {"ComfyUI's": theirs, "torch._scaled_mm": partial(multiplied_by_rows, layer)}
        ways = [Way(name, partial(run, x), ERRORS[8]) for name, run in runs.items()]
        case = f"{x[..., 0].numel()} x {layer.in_features} by {layer.out_features}"

        def error(out: Tensor) -> float:
            return float((out.float() - expected).norm() / expected.norm())

        chosen[key] = fastest(what, case, ways, error, x.device, what) == 1
    return bool(chosen[key])


def multiplied_by_rows(layer: Any, x: Tensor) -> Tensor:
    """What a layer of ComfyUI's with an fp8 weight makes of x, which is quantised by rows."""
    kept = {"dtype": layer.weight.dtype, "device": x.device, "bias_dtype": x.dtype}
    asked = {"offloadable": True, "compute_dtype": x.dtype, "want_requant": True}
    with comfy.ops.CastBiasWeightContext(layer, None, **kept, **asked) as (weight, bias):
        out = scaled_rows(x.flatten(0, -2), weight._qdata, weight._params.scale, bias)
    return out.unflatten(0, x.shape[:-1])


class EmulatingLinear(QuantisedWeight, comfy.ops.manual_cast.Linear):
    """A linear layer that ComfyUI streams and patches, its weight quantised in any format."""

    def forward_comfy_cast_weights(self, x: Tensor) -> Tensor:
        if self._is_plain():
            return super().forward_comfy_cast_weights(x)
        bias = None if self.bias is None else comfy.ops.cast_to_input(self.bias, x)
        for function in self.bias_function if bias is not None else ():
            bias = function(bias)
        return linear(x, self.full_weight(x.device, x.dtype), bias)

    def full_weight(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The weight dequantised, with the patches that ComfyUI applies while it streams."""
        weight = self._decoded(self.weight.to(device), dtype)
        for function in self.weight_function:
            if isinstance(function, comfy.model_patcher.LowVramPatch):
                # Called itself it would dequantise once more in some versions of ComfyUI.
                patches = function.patches[function.key]
                weight = comfy.lora.calculate_weight(patches, weight, function.key, weight.dtype)
            else:
                weight = function(weight)
        return weight

    def _is_plain(self) -> bool:
        """Whether its numbers are the weight's own, of any type."""
        return self.encoding is None or type(self.encoding.format) is Fp8Cast

    def _decoded(self, stored: Tensor, dtype: torch.dtype) -> Tensor:
        assert self.encoding is not None  # as _is_plain says
        parts = {part: x.to(stored.device) for part, x in self.parts().items() if part != CONFIG}
        return self.encoding.decode(parts | {WEIGHT: stored}, dtype)

    # What ComfyUI calls before and after it patches a weight in place.

    def convert_weight(self, weight: Tensor, **_: Any) -> Tensor:
        """The stored weight, cast to a wider type, to the weight that it stands for."""
        if self._is_plain():
            return weight
        return self._decoded(weight.to(self.weight.dtype), weight.dtype)

    def set_weight(
        self,
        weight: Tensor,
        inplace_update: bool = False,
        seed: int = 0,
        return_weight: bool = False,
        **_: Any,
    ) -> Tensor | None:
        """Store a patched weight in the type and under the scale of the one that it replaces."""
        weight = self._stored_again(weight, seed)
        if return_weight:
            return weight
        if inplace_update:
            self.weight.data.copy_(weight)
        else:
            self.weight = nn.Parameter(weight, requires_grad=False)
        return None

    def _stored_again(self, weight: Tensor, seed: int) -> Tensor:
        format = None if self.encoding is None else self.encoding.format
        if self.encoding is not None and isinstance(format, Gguf):
            return self.encoding.encode(weight.float())[WEIGHT]
        if isinstance(format, (Fp8, Fp8Cast)):
            scale = self.parts().get(SCALE if isinstance(format, Fp8Cast) else "weight_scale")
            if scale is not None:
                weight = rescale(weight, scale.to(weight.device), self.weight.dtype)
        elif format is not None:
            raise FramePackError(
                f"model: nothing can be patched into {format.name} weights in this version of "
                "ComfyUI; apply LoRAs with FramePack Apply LoRA, or update ComfyUI"
            )
        return comfy.float.stochastic_rounding(weight, self.weight.dtype, seed=seed)


class EmulatingOps(comfy.ops.manual_cast):
    """ComfyUI's layers, of which Linear may hold quantised weights, which it dequantises."""

    Linear = EmulatingLinear


def holds_quantised(module: nn.Module) -> bool:
    """Whether any layer of ours holds a quantised weight."""
    layers = (m for m in module.modules() if isinstance(m, EmulatingLinear))
    return any(layer.encoding is not None for layer in layers)


def model_encodings(model: nn.Module) -> list[Encoding]:
    """How the quantised weights of a model are kept, in our layers and in ComfyUI's."""
    state = model.state_dict()
    parts = [
        {part: state[base + part] for part in (WEIGHT, *PARTS) if base + part in state}
        for base in (name.removesuffix(WEIGHT) for name in state if name.endswith(f".{WEIGHT}"))
    ]
    return [encoding for given in parts if (encoding := encoding_of(given)) is not None]


def layer_weight(layer: nn.Module, device: torch.device) -> Tensor:
    """The whole weight of a layer on a device in fp32, wherever ComfyUI keeps it."""
    if isinstance(layer, EmulatingLinear) and not layer._is_plain():
        return layer.full_weight(device, torch.float32)
    kinds = {"dtype": torch.float32, "bias_dtype": torch.float32}
    weight, _ = comfy.ops.cast_bias_weight(layer, device=device, **kinds)
    return weight.dequantize() if hasattr(weight, "dequantize") else weight
