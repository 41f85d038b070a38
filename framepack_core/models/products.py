"""Quantized matmul: weights multiplied in their own numbers, and whether that is faster here.

Which way is the fastest differs by card, so nothing is listed: each that takes a format is timed
once on a layer of the model, beside dequantising and multiplying, and a line says what is taken.
Inputs are quantised by rows (arXiv 2208.07339). Gradients are those of the dequantised product.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..runtime.display import say
from ..weights.formats import (
    CONFIG,
    W4A8,
    WEIGHT,
    Encoding,
    Parts,
    int8_rotation,
    rotate,
    rotation,
    rows_to_int,
)
from ..weights.fp8 import E4M3, SCALE
from ..weights.quantised_linear import QuantisedLinear
from .fastest import Way, chosen, fastest
from .fused import usable

ROWS = 19257  # tokens of a pass at 640x640: fewer, or an even number, favour integers
FEWEST = 32  # rows; below, integer products are not there, and nothing is gained
ALIGNMENT = 16  # of both sides of a weight
ERRORS = {8: 0.06, 4: 0.25}  # by bits of the numbers: what quantising the input may add, relative
DEQUANTISING = "dequantising"

Run = Callable[[Tensor, Parts, Encoding, "Tensor | None"], Tensor]
"""(x [N, in], parts, encoding, bias) -> [N, out] in the type of x."""


@dataclass(frozen=True)
class Product:
    """A way to multiply by weights of some formats, and the package and GPU that it needs."""

    name: str
    formats: tuple[str, ...]
    run: Run
    bits: int = 8
    module: str = ""
    capability: tuple[int, int] = (0, 0)

    def takes(self, layer: QuantisedLinear) -> bool:
        """Whether a layer's weight can be multiplied this way, where its package is installed."""
        encoding = layer.encoding
        if encoding is None or encoding.options.get("full_precision_matrix_mult"):
            return False
        aligned = layer.in_features % ALIGNMENT == 0 and layer.out_features % ALIGNMENT == 0
        fine = layer.parts().get(SCALE)
        by_rows = fine is None or fine.ndim < 3
        installed = not self.module or find_spec(self.module) is not None
        return encoding.format.name in self.formats and aligned and by_rows and installed

    def __call__(self, layer: QuantisedLinear, x: Tensor) -> Tensor:
        """The layer's output; gradients reach x."""
        if torch.is_grad_enabled() and x.requires_grad:
            return _Exact.apply(x, layer, self)  # type: ignore[no-any-return]
        return self.multiply(layer, x)

    def multiply(self, layer: QuantisedLinear, x: Tensor) -> Tensor:
        """The layer's output, without gradients."""
        assert layer.encoding is not None  # as `takes` says
        rows = x.flatten(0, -2)
        if len(rows) < FEWEST:
            return dequantised(layer, x)
        out = self.run(rows, layer.parts(), layer.encoding, layer.bias)
        return out.unflatten(0, x.shape[:-1])


class _Exact(torch.autograd.Function):
    """The product in the weight's numbers forwards, by the dequantised weight backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantisedLinear, product: Product) -> Tensor:
        parts = layer.parts()  # of a streamed layer they are gone when its block is done
        ctx.layer, ctx.names = layer, tuple(parts)
        # What is kept on ctx itself outlives a checkpointed block, and so would a layer's copies.
        ctx.save_for_backward(*parts.values())
        return product.multiply(layer, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        parts = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        return grad @ ctx.layer.encoding.decode(parts, grad.dtype), None, None


def dequantised(layer: QuantisedLinear, x: Tensor) -> Tensor:
    """The layer's output by its whole weight."""
    assert layer.encoding is not None  # only such layers are asked
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return linear(x, layer.encoding.decode(layer.parts(), x.dtype), bias)


# --- the ways -------------------------------------------------------------------------------------


def _rows_to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """(fp8, scale [N, 1] fp32) of x by rows."""
    if usable(x):
        from .fused_triton import quantised_rows

        return quantised_rows(x, E4M3)
    limit = torch.finfo(E4M3).max
    scale = (x.abs().amax(-1, keepdim=True).float() / limit).clamp(min=1e-12)
    return (x / scale).clamp(-limit, limit).to(E4M3), scale


def _rows_to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    if usable(x):
        from .fused_triton import quantised_rows

        return quantised_rows(x, torch.int8)
    return rows_to_int(x, 127)


def _scaled_mm(x: Tensor, parts: Parts, encoding: Encoding, bias: Tensor | None) -> Tensor:
    stored = parts.get(SCALE, parts.get("weight_scale"))
    scale = torch.ones((), device=x.device) if stored is None else stored
    return scaled_rows(x, parts[WEIGHT], scale, bias)


def scaled_rows(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x [N, in], quantised by rows, by an fp8 weight under a scale for all or for each row."""
    columns = scale.float().reshape(1, -1).expand(1, len(weight)).contiguous()
    q, rows = _rows_to_fp8(x)
    out = torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
        q,
        weight.t(),
        scale_a=rows,
        scale_b=columns,
        bias=None if bias is None else bias.bfloat16(),
        out_dtype=torch.bfloat16,  # the one that it has with scales of rows
        use_fast_accum=True,
    )
    return out.to(x.dtype)


def _int_mm(x: Tensor, parts: Parts, encoding: Encoding, bias: Tensor | None) -> Tensor:
    format, options = encoding.format, encoding.options
    if isinstance(format, W4A8):
        weight, group = format.to_int8(parts, options), rotation(options)
        columns = parts["weight_s_channel"]
    else:
        weight, group = parts[WEIGHT], int8_rotation(options)
        columns = parts["weight_scale"]
    q, rows = _rows_to_int8(rotate(x, group) if group else x)
    whole = torch._int_mm(q, weight.t())  # pyright: ignore[reportPrivateImportUsage]
    out = whole * rows * columns.float().reshape(1, -1)
    return out.to(x.dtype) if bias is None else (out + bias).to(x.dtype)


_LAYOUTS = {
    "float8_e4m3fn": "TensorCoreFP8Layout",
    "int8_tensorwise": "TensorWiseINT8Layout",
    "convrot_w4a4": "TensorCoreConvRotW4A4Layout",
    "asym_w4a8_int8": "AsymW4A8Int8Layout",
    "nvfp4": "TensorCoreNVFP4Layout",
    "mxfp8": "TensorCoreMXFP8Layout",
}
_FIELDS: Mapping[str, Mapping[str, str]] = {
    "nvfp4": {"scale": "weight_scale_2", "block_scale": "weight_scale"},
    "asym_w4a8_int8": {
        "scale": "weight_s_rel",
        "s_channel": "weight_s_channel",
        "codebook": "weight_codebook",
    },
}
_QUANTISE_INPUT = ("float8_e4m3fn", "nvfp4", "mxfp8")


def _kitchen(x: Tensor, parts: Parts, encoding: Encoding, bias: Tensor | None) -> Tensor:
    """comfy-kitchen's own choice of kernels."""
    from comfy_kitchen.tensor import QuantizedTensor, get_layout_class

    name = encoding.format.name
    layout = get_layout_class(_LAYOUTS[name])
    shape = (len(parts[WEIGHT]), x.shape[1])
    fields = _FIELDS.get(name, {"scale": "weight_scale"})
    given = {field: parts[part] for field, part in fields.items() if part in parts}
    if name == "mxfp8":
        given["scale"] = given["scale"].view(torch.float8_e8m0fnu)
    options = {k: v for k, v in encoding.options.items() if k != "full_precision_matrix_mult"}
    params = layout.Params(**given, **options, orig_dtype=x.dtype, orig_shape=shape)
    weight = QuantizedTensor(parts[WEIGHT], _LAYOUTS[name], params)
    if name in _QUANTISE_INPUT:
        x = QuantizedTensor.from_float(x, _LAYOUTS[name])
    return linear(x, weight, None if bias is None else bias.to(params.orig_dtype))


_FP8 = ("float8_e4m3fn", "float8_e5m2", "fp8", "fp8_e5m2", "fp8_scaled")
_INT8 = ("int8_tensorwise", "asym_w4a8_int8")
_BLACKWELL = (10, 0)
_KITCHEN = partial(Product, "comfy-kitchen", run=_kitchen, module="comfy_kitchen")
PRODUCTS = (
    Product("torch._scaled_mm", _FP8, _scaled_mm),
    Product("torch._int_mm", _INT8, _int_mm),
    _KITCHEN((*_FP8[:1], *_INT8)),
    _KITCHEN(("convrot_w4a4",), bits=4),
    _KITCHEN(("mxfp8",), capability=_BLACKWELL),
    _KITCHEN(("nvfp4",), bits=4, capability=_BLACKWELL),
)


# --- the choice -----------------------------------------------------------------------------------


def choose_products(
    model: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    products: Sequence[Product] = PRODUCTS,
    clock: Callable[[Callable[[], object]], float] | None = None,
) -> bool:
    """Let the quantised layers of a model multiply in the way that is the fastest on this device.

    Each format is timed once on a layer of each shape, as often as there are such layers. clock: as
    for `fastest`. Returns whether there are any such layers.
    """
    kinds: dict[tuple[Any, ...], list[QuantisedLinear]] = {}
    for layer in model.modules():
        if isinstance(layer, QuantisedLinear) and layer.encoding is not None:
            kinds.setdefault(_kind(layer), []).append(layer)
    for kind, layers in kinds.items():
        shapes = Counter((layer.in_features, layer.out_features) for layer in layers)
        key = device, dtype, kind, frozenset(shapes.items()), tuple(products)
        if key not in chosen:
            chosen[key] = _choose(layers, device, dtype, products, clock)
        product = chosen[key]
        for layer in layers:
            layer.product = product if product is not None and product.takes(layer) else None
    return bool(kinds)


def _kind(layer: QuantisedLinear) -> tuple[Any, ...]:
    """What decides together: a format, whether it is rotated, and the form of its scale."""
    assert layer.encoding is not None  # only such layers are asked
    scale = layer.scale_weight
    encoding = layer.encoding
    form = 0 if scale is None else scale.ndim
    return encoding.format.name, bool(encoding.options.get("convrot")), form


def _needs_gpu(device: torch.device) -> bool:
    """Whether products in few bits are slower here than any other."""
    return device.type != "cuda"


@torch.no_grad()
def _choose(
    layers: Sequence[QuantisedLinear],
    device: torch.device,
    dtype: torch.dtype,
    products: Sequence[Product],
    clock: Callable[[Callable[[], object]], float] | None,
) -> Product | None:
    """The fastest way for layers of one kind, None for dequantising."""
    first = layers[0]
    assert first.encoding is not None  # only such layers are asked
    name = first.encoding.format.name
    if _needs_gpu(device):
        say(f"{name}: dequantised, then multiplied; only GPUs compute in its own numbers")
        return None
    trial = _Trial(layers, device, dtype)
    have = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    able = [p for p in products if p.capability <= have and all(map(p.takes, trial.layers))]
    expected = trial.run(_dequantised).float()

    def error(out: Tensor) -> float:
        return float((out.float() - expected).norm() / expected.norm())

    ways = [Way(DEQUANTISING, partial(trial.run, _dequantised), ERRORS[8])]
    ways += [Way(p.name, partial(trial.run, p.run), ERRORS[p.bits]) for p in able]
    alike = f"{', '.join(map(str, _kind(first)))}, {trial}, {dtype}"
    return [None, *able][fastest(name, str(trial), ways, error, device, alike, clock)]


def _dequantised(x: Tensor, parts: Parts, encoding: Encoding, bias: Tensor | None) -> Tensor:
    return linear(x, encoding.decode(parts, x.dtype), bias)


class _Trial:
    """A layer of each shape, in proportion to how many there are."""

    def __init__(
        self, layers: Sequence[QuantisedLinear], device: torch.device, dtype: torch.dtype
    ) -> None:
        by_shape = {(layer.in_features, layer.out_features): layer for layer in layers}
        counts = Counter((layer.in_features, layer.out_features) for layer in layers)
        self.layers = list(by_shape.values())
        self.shares = {shape: round(n / min(counts.values())) for shape, n in counts.items()}
        x = torch.randn(ROWS, max(wide for wide, _ in counts), device=device, dtype=dtype)
        self._given: list[tuple[Tensor, Parts, Encoding, Tensor | None]] = []
        for shape, layer in by_shape.items():
            assert layer.encoding is not None  # only such layers are asked
            parts = {part: y.to(device) for part, y in layer.parts().items() if part != CONFIG}
            bias = None if layer.bias is None else layer.bias.to(device, dtype)
            given = x[:, : shape[0]].contiguous(), parts, layer.encoding, bias
            self._given += [given] * self.shares[shape]

    def run(self, product: Run) -> Tensor:
        """The last layer's output."""
        for given in self._given:
            out = product(*given)
        return out

    def __str__(self) -> str:
        shapes = (f"{n} of {wide} by {high}" for (wide, high), n in self.shares.items())
        return f"{ROWS} rows, {', '.join(shapes)}"
