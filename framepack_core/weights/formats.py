"""Formats of quantised weights: what each stores, and how a weight becomes it and comes back.

A quantised weight `x.weight` [out, in] is a few tensors beside each other, its parts. ComfyUI's
formats (QUANTIZATION.md and comfy-kitchen, 0.2) say which they are by `x.comfy_quant`, a JSON text
in bytes: {"format": NAME, ...options}. GGUF's block types (ggml-quants) are kept as their bytes.
Everything here is plain PyTorch and fp32.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .files import TensorInfo
from .fp8 import E4M3, E5M2, FP8, SCALE, cast, dequantize, quantize, scale_shape

WEIGHT, CONFIG = "weight", "comfy_quant"
Shape = tuple[int, ...]
Parts = Mapping[str, Tensor]
Options = Mapping[str, Any]
Layout = dict[str, tuple[torch.dtype, tuple[Shape, ...]]]
F32 = torch.float32
SCALAR: tuple[Shape, ...] = ((), (1,), (1, 1))
GROUPS = (256, 64, 16, 4)  # sizes of rotated groups: powers of 4, the largest that fits is taken
INT8_MAX, INT4_MAX, E2M1_MAX = 127, 7, 6.0


class Format(ABC):
    """One way of keeping a weight.

    parts: what is written beside the weight. optional: what a file may have or lack. native:
    whether ComfyUI knows it. stated: whether files say so in `comfy_quant`; else the parts tell.
    exact: whether it is made from the weight in fp32, or in the type that it is loaded in.
    """

    name: str
    dtype: torch.dtype
    parts: tuple[str, ...] = ("weight_scale",)
    optional: tuple[str, ...] = ()
    native = stated = exact = True

    @abstractmethod
    def options(self, shape: Shape) -> Options | None:
        """The options under which a weight of this shape is quantised; None if it cannot be."""

    @abstractmethod
    def layout(self, shape: Shape, options: Options) -> Layout:
        """Type and possible shapes of each part of a weight of this shape, what we write first."""

    @abstractmethod
    def encode(self, weight: Tensor, options: Options) -> dict[str, Tensor]:
        """The parts of a weight in fp32."""

    @abstractmethod
    def decode(self, parts: Parts, options: Options) -> Tensor:
        """The weight in fp32."""

    def __eq__(self, other: object) -> bool:
        """The same for weights that are there; what is made may differ in its options."""
        return isinstance(other, Format) and (self.name, self.dtype) == (other.name, other.dtype)

    def __hash__(self) -> int:
        return hash((self.name, self.dtype))

    def logical(self, stored: Shape, options: Options) -> Shape:
        """The shape of a weight from that of its stored tensor."""
        return stored

    def fault(self, shape: Shape, options: Options) -> str:
        """What is wrong with options of a weight of this shape, "" if nothing."""
        return ""


@dataclass(frozen=True)
class Encoding:
    """A format and the options of one weight in it."""

    format: Format
    options: Options = field(default_factory=dict)

    def infos(self, shape: Shape) -> dict[str, TensorInfo]:
        """Type and shape of the parts of a weight of this shape, as `encode` makes them."""
        layout = self.format.layout(shape, self.options)
        infos = {p: TensorInfo(layout[p][0], layout[p][1][0]) for p in (WEIGHT, *self.format.parts)}
        if self.format.stated:
            infos[CONFIG] = TensorInfo(torch.uint8, tuple(self.config().shape))
        return infos

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        """All parts of a weight."""
        parts = self.format.encode(weight, self.options)
        return parts | {CONFIG: self.config()} if self.format.stated else parts

    def decode(self, parts: Parts, dtype: torch.dtype = F32) -> Tensor:
        """The weight [out, in] that the parts stand for."""
        if not self.format.stated:  # plain fp8, where the type's own arithmetic is near enough
            return dequantize(parts[WEIGHT], parts.get(SCALE), dtype)
        return self.format.decode(parts, self.options).to(dtype)

    def config(self) -> Tensor:
        text = json.dumps({"format": self.format.name, **self.options})
        return torch.tensor(list(text.encode()), dtype=torch.uint8)


# --- arithmetic -----------------------------------------------------------------------------------


_hadamards: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}  # compilers see no caches


def _hadamard(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The regular orthogonal Hadamard matrix of ConvRot: its own transpose and inverse."""
    if (size, device, dtype) in _hadamards:
        return _hadamards[size, device, dtype]
    quarter = torch.ones(4, 4) - 2 * torch.eye(4).flip(1)
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.kron(matrix, quarter)
    matrix = (matrix / math.sqrt(size)).to(device, dtype)
    _hadamards[size, device, dtype] = matrix
    return matrix


def rotate(x: Tensor, size: int) -> Tensor:
    """Rotate every group of `size` channels; done twice it is x again. ConvRot (QuaRot-like)."""
    groups = x.unflatten(-1, (-1, size))
    return (groups @ _hadamard(size, x.device, x.dtype)).flatten(-2)


def rows_to_int(x: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """(integers in int8, scale [..., 1] fp32) of x by rows."""
    scale = (x.abs().amax(-1, keepdim=True).float() / largest).clamp(min=1e-30)
    return (x / scale).round_().clamp_(-largest, largest).to(torch.int8), scale


def _packed(low: Tensor, high: Tensor) -> Tensor:
    """Two numbers of 4 bits in a byte."""
    return (low & 0xF).to(torch.uint8) | ((high & 0xF).to(torch.uint8) << 4)


def _nibbles(packed: Tensor) -> tuple[Tensor, Tensor]:
    packed = packed.view(torch.uint8)
    return packed & 0xF, packed >> 4


def _interleaved(even: Tensor, odd: Tensor) -> Tensor:
    return torch.stack([even, odd], dim=-1).flatten(-2)


def _group(columns: int) -> int | None:
    return next((size for size in GROUPS if columns % size == 0), None)


def _tiled(scales: Tensor) -> Tensor:
    """Block scales [out, blocks] in the order that cuBLAS reads them in: tiles of 128 x 4."""
    rows, columns = scales.shape
    padded = pad(scales, (0, -columns % 4, 0, -rows % 128))
    tiles = padded.unflatten(0, (-1, 4, 32)).unflatten(-1, (-1, 4))  # [R, 4, 32, C, 4]
    return tiles.permute(0, 3, 2, 1, 4).reshape(padded.shape)


def _untiled(tiled: Tensor, rows: int, columns: int) -> Tensor:
    """The reverse of `_tiled`."""
    tiles = tiled.reshape(tiled.shape[0] // 128, tiled.shape[1] // 4, 32, 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(tiled.shape)[:rows, :columns]


def _tiled_shape(rows: int, columns: int) -> Shape:
    return (rows + -rows % 128, columns + -columns % 4)


# --- ComfyUI's formats ----------------------------------------------------------------------------


class Fp8(Format):
    """fp8 under one scale for the whole tensor."""

    optional = ("input_scale",)

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name, self.dtype = name, dtype

    def options(self, shape: Shape) -> Options | None:
        return {}

    def layout(self, shape: Shape, options: Options) -> Layout:
        scalar = (F32, SCALAR)
        parts = {"weight_scale": scalar, "input_scale": scalar}
        return {"weight": (self.dtype, (shape,))} | parts

    def encode(self, weight: Tensor, options: Options) -> dict[str, Tensor]:
        q, scale = quantize(weight, (), self.dtype, torch.float32)
        return {"weight": q, "weight_scale": scale}

    def decode(self, parts: Parts, options: Options) -> Tensor:
        return dequantize(parts["weight"], parts["weight_scale"].reshape(()), torch.float32)


class Int8(Format):
    """int8 under a scale for each row, the channels rotated before or not (ConvRot)."""

    dtype = torch.int8

    def __init__(self, name: str, convrot: bool) -> None:
        self.name, self.convrot = name, convrot

    def options(self, shape: Shape) -> Options | None:
        group = _group(shape[1])
        if not self.convrot:
            return {}
        return {"convrot": True, "convrot_groupsize": group} if group else None

    def layout(self, shape: Shape, options: Options) -> Layout:
        rows = (shape[0], 1)
        return {
            "weight": (torch.int8, (shape,)),
            "weight_scale": (F32, (rows, rows[:1], *SCALAR)),
        }

    def encode(self, weight: Tensor, options: Options) -> dict[str, Tensor]:
        group = options.get("convrot_groupsize")
        q, scale = rows_to_int(rotate(weight, group) if group else weight, INT8_MAX)
        return {"weight": q, "weight_scale": scale}

    def decode(self, parts: Parts, options: Options) -> Tensor:
        weight = parts["weight"].float() * parts["weight_scale"].float().reshape(-1, 1)
        group = int8_rotation(options)
        return rotate(weight, group) if group else weight

    def fault(self, shape: Shape, options: Options) -> str:
        return _group_fault(shape, int8_rotation(options)) if int8_rotation(options) else ""


def int8_rotation(options: Options) -> int:
    """The size of rotated groups of an int8 weight, 0 for none."""
    return rotation(options) if options.get("convrot") else 0


def rotation(options: Options) -> int:
    """The size of rotated groups of a format that always rotates."""
    return options.get("convrot_groupsize", 256)


def _group_fault(shape: Shape, size: Any) -> str:
    power = isinstance(size, int) and size in (4**n for n in range(1, 7))
    return "" if power and shape[1] % size == 0 else f"convrot_groupsize {size}"


class ConvRotW4A4(Format):
    """int4 under a scale for each row, rotated; two numbers a byte, the even column low."""

    name, dtype = "convrot_w4a4", torch.int8

    def options(self, shape: Shape) -> Options | None:
        group = _group(shape[1])
        return {"convrot_groupsize": group} if group and shape[1] % 64 == 0 else None

    def layout(self, shape: Shape, options: Options) -> Layout:
        return {
            "weight": (torch.int8, ((shape[0], shape[1] // 2),)),
            "weight_scale": (F32, (shape[:1], (shape[0], 1))),
        }

    def encode(self, weight: Tensor, options: Options) -> dict[str, Tensor]:
        q, scale = rows_to_int(rotate(weight, options["convrot_groupsize"]), INT4_MAX)
        packed = _packed(q[:, 0::2], q[:, 1::2])
        return {"weight": packed.view(torch.int8), "weight_scale": scale.flatten()}

    def decode(self, parts: Parts, options: Options) -> Tensor:
        even, odd = (part.to(torch.int8) for part in _nibbles(parts["weight"]))
        signed = ((_interleaved(even, odd) ^ 8) - 8).float()
        weight = signed * parts["weight_scale"].float().reshape(-1, 1)
        return rotate(weight, rotation(options))

    def logical(self, stored: Shape, options: Options) -> Shape:
        return (stored[0], 2 * stored[1])

    def fault(self, shape: Shape, options: Options) -> str:
        return _group_fault(shape, rotation(options))


class W4A8(Format):
    """4-bit codes under an fp8 scale for each group and an fp32 one for each row, rotated."""

    name, dtype = "asym_w4a8_int8", torch.int8
    parts = ("weight_s_rel", "weight_s_channel", "weight_codebook")
    optional = ("weight_codebook",)
    GROUP = 16

    def options(self, shape: Shape) -> Options | None:
        group = _group(shape[1])
        fits = group and shape[1] % self.GROUP == 0
        return {"group_size": self.GROUP, "convrot_groupsize": group} if fits else None

    def layout(self, shape: Shape, options: Options) -> Layout:
        groups = shape[1] // options.get("group_size", self.GROUP)
        return {
            "weight": (torch.int8, ((shape[0], shape[1] // 2),)),
            "weight_s_rel": (E4M3, ((shape[0], groups),)),
            "weight_s_channel": (F32, (shape[:1],)),
            "weight_codebook": (F32, ((16,),)),
        }

    def encode(self, weight: Tensor, options: Options) -> dict[str, Tensor]:
        rotated = rotate(weight, options["convrot_groupsize"])
        groups = rotated.unflatten(1, (-1, options["group_size"]))
        largest = groups.abs().amax(-1, keepdim=True).clamp(min=1e-8)
        codebook = _gaussian_levels(options["group_size"]).to(weight)
        channel = (largest.amax(1).flatten() / INT8_MAX).contiguous()
        relative = (largest.squeeze(-1) / channel[:, None]).to(E4M3)
        codes = torch.empty(groups.shape, dtype=torch.uint8, device=weight.device)
        for row in range(0, len(groups), 64):  # the differences to 16 levels take 16 times a row
            part = slice(row, row + 64)
            levels = _int8_levels(codebook, relative[part])
            wanted = groups[part] / channel[part, None, None]
            difference = wanted[..., None] - levels[..., None, :]
            codes[part] = difference.abs().argmin(-1).to(torch.uint8)
        codes = codes.flatten(1)
        return {
            "weight": _packed(codes[:, 0::2], codes[:, 1::2]).view(torch.int8),
            "weight_s_rel": relative,
            "weight_s_channel": channel,
            "weight_codebook": codebook,
        }

    def decode(self, parts: Parts, options: Options) -> Tensor:
        weight = self.to_int8(parts, options).float() * parts["weight_s_channel"].float()[:, None]
        return rotate(weight, rotation(options))

    def to_int8(self, parts: Parts, options: Options) -> Tensor:
        """The rotated weight [out, in] in int8, without the scale of its rows."""
        relative = parts["weight_s_rel"]
        if relative.dtype.itemsize == 1:
            relative = relative.view(E4M3)
        codebook = parts.get("weight_codebook")
        if codebook is None:
            codebook = torch.arange(-8.0, 8.0, device=relative.device)
        levels = _int8_levels(codebook.float(), relative)
        codes = _interleaved(*_nibbles(parts["weight"])).long()
        groups = codes.unflatten(1, (-1, options.get("group_size", self.GROUP)))
        return levels.gather(-1, groups).flatten(1).to(torch.int8)

    def logical(self, stored: Shape, options: Options) -> Shape:
        return (stored[0], 2 * stored[1])

    def fault(self, shape: Shape, options: Options) -> str:
        size = options.get("group_size", self.GROUP)
        if not isinstance(size, int) or size < 4 or shape[1] % size:
            return f"group_size {size}"
        return _group_fault(shape, rotation(options))


def _int8_levels(codebook: Tensor, relative: Tensor) -> Tensor:
    """What each of 16 codes stands for [out, groups, 16] in a row's int8 numbers."""
    levels = codebook * relative.float()[..., None]
    return levels.round_().clamp_(-INT8_MAX, INT8_MAX)


@cache
def _gaussian_levels(group: int, draws: int = 1 << 17) -> Tensor:
    """16 levels of least squared error for normal numbers over the largest of their group.

    Rotation makes every weight nearly normal. Lloyd's algorithm (IEEE Trans. Inf. Theory 28, 1982).
    """
    sample = torch.randn(draws // group, group, generator=torch.Generator().manual_seed(0))
    sample = (sample / sample.abs().amax(-1, keepdim=True)).flatten().sort().values
    levels = torch.linspace(-1, 1, 16)
    for _ in range(200):
        nearest = torch.bucketize(sample, (levels[1:] + levels[:-1]) / 2)
        sums = torch.zeros(16).index_add_(0, nearest, sample)
        levels = sums / torch.bincount(nearest, minlength=16).clamp(min=1)
    return levels


_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class NvFp4(Format):
    """fp4 (e2m1) under an e4m3 scale for 16 numbers and an fp32 one for all."""

    name, dtype = "nvfp4", torch.uint8
    parts = ("weight_scale", "weight_scale_2")
    optional = ("input_scale", "pre_quant_scale")
    BLOCK = 16
    # What a block's greatest number may become: above 4 the steps are wide, and cutting it off can
    # be better for the others. Of normally distributed weights the error is 0.084, not 0.095.
    GREATEST = (6.0, 4.0, 6.5)

    def options(self, shape: Shape) -> Options | None:
        return {} if shape[0] % 16 == 0 and shape[1] % 16 == 0 else None

    def layout(self, shape: Shape, options: Options) -> Layout:
        scales = _tiled_shape(shape[0], shape[1] // self.BLOCK)
        return {
            "weight": (torch.uint8, ((shape[0], shape[1] // 2),)),
            "weight_scale": (E4M3, (scales,)),
            "weight_scale_2": (F32, SCALAR),
            "input_scale": (F32, SCALAR),
            "pre_quant_scale": (F32, (shape[1:],)),
        }

    def encode(self, weight: Tensor, options: Options) -> dict[str, Tensor]:
        blocks = weight.unflatten(1, (-1, self.BLOCK))
        whole = (weight.abs().max() / (torch.finfo(E4M3).max * E2M1_MAX)).clamp(min=1e-30)
        scale, codes, errors = None, None, None
        for greatest in self.GREATEST:
            here = blocks.abs().amax(-1) / (greatest * whole)
            here = here.clamp(max=torch.finfo(E4M3).max).to(E4M3)
            rounded, error = self._rounded(blocks, here.float() * whole)
            if scale is None or codes is None or errors is None:
                scale, codes, errors = here, rounded, error
                continue
            better = error < errors
            scale = torch.where(better, here.view(torch.uint8), scale.view(torch.uint8)).view(E4M3)
            codes = torch.where(better[..., None], rounded, codes)
            errors = torch.where(better, error, errors)
        assert scale is not None and codes is not None
        codes = codes.flatten(1)
        packed = _packed(codes[:, 1::2], codes[:, 0::2])  # here the even column is high
        return {"weight": packed, "weight_scale": _tiled(scale), "weight_scale_2": whole}

    @staticmethod
    def _rounded(blocks: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """The codes of blocks [..., BLOCK] under their scales, and the squared error of each."""
        divisor = scale[..., None]
        x = torch.where(divisor > 0, blocks / divisor, 0).clamp(-E2M1_MAX, E2M1_MAX)
        size = x.abs()
        # Half-way numbers go to the neighbour with an even mantissa.
        codes = torch.zeros_like(size, dtype=torch.uint8)
        for edge in (0.25, 1.25, 2.5, 5.0):
            codes += size > edge
        for edge in (0.75, 1.75, 3.5):
            codes += size >= edge
        found = torch.tensor(_E2M1, device=x.device)[codes.long()].copysign(x) * divisor
        error = (found - blocks).square().sum(-1)
        return codes | torch.signbit(x).to(torch.uint8) << 3, error

    def decode(self, parts: Parts, options: Options) -> Tensor:
        odd, even = _nibbles(parts["weight"])
        values = torch.tensor([*_E2M1, *(-x for x in _E2M1)], device=odd.device)
        weight = values[_interleaved(even, odd).long()]
        rows, blocks = weight.shape[0], weight.shape[1] // self.BLOCK
        scale = _untiled(parts["weight_scale"].view(E4M3), rows, blocks).float()
        scale = scale * parts["weight_scale_2"].float().reshape(())
        weight = (weight.unflatten(1, (-1, self.BLOCK)) * scale[..., None]).flatten(1)
        smoothing = parts.get("pre_quant_scale")  # of the input, which the weight takes over
        return weight if smoothing is None else weight * smoothing.float()

    def logical(self, stored: Shape, options: Options) -> Shape:
        return (stored[0], 2 * stored[1])


class MxFp8(Format):
    """fp8 (e4m3) under a power of two for 32 numbers (OCP Microscaling Formats 1.0)."""

    name, dtype = "mxfp8", E4M3
    optional = ("input_scale",)
    BLOCK, BIAS = 32, 127

    def options(self, shape: Shape) -> Options | None:
        return {} if shape[0] % 32 == 0 and shape[1] % 32 == 0 else None

    def layout(self, shape: Shape, options: Options) -> Layout:
        scales = _tiled_shape(shape[0], shape[1] // self.BLOCK)
        return {
            "weight": (E4M3, (shape,)),
            "weight_scale": (torch.uint8, (scales,)),
            "input_scale": (F32, SCALAR),
        }

    def encode(self, weight: Tensor, options: Options) -> dict[str, Tensor]:
        limit = torch.finfo(E4M3).max
        blocks = weight.unflatten(1, (-1, self.BLOCK))
        exponent = (blocks.abs().amax(-1) / limit).clamp(min=2.0**-self.BIAS).log2().ceil()
        q = (blocks / exponent.exp2()[..., None]).clamp(-limit, limit).to(E4M3).flatten(1)
        return {"weight": q, "weight_scale": _tiled((exponent + self.BIAS).to(torch.uint8))}

    def decode(self, parts: Parts, options: Options) -> Tensor:
        weight = parts["weight"].view(E4M3)
        rows, blocks = weight.shape[0], weight.shape[1] // self.BLOCK
        exponent = _untiled(parts["weight_scale"].view(torch.uint8), rows, blocks).float()
        scale = (exponent - self.BIAS).exp2()[..., None]
        return (weight.float().unflatten(1, (-1, self.BLOCK)) * scale).flatten(1)


# --- formats that ComfyUI does not know -----------------------------------------------------------


class Fp8Cast(Format):
    """fp8 without a scale."""

    parts, native, stated, exact = (), False, False, False

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name, self.dtype = name, dtype

    def options(self, shape: Shape) -> Options | None:
        return {}

    def layout(self, shape: Shape, options: Options) -> Layout:
        return {"weight": (self.dtype, (shape,))}

    def encode(self, weight: Tensor, options: Options) -> dict[str, Tensor]:
        return {"weight": cast(weight, self.dtype)}

    def decode(self, parts: Parts, options: Options) -> Tensor:
        return dequantize(parts["weight"], parts.get(SCALE), F32)


class FineFp8(Fp8Cast):
    """fp8 under a scale for each row and block of columns, each row, or all (musubi-tuner's)."""

    parts = (SCALE,)

    def options(self, shape: Shape) -> Options | None:
        return {"scale": scale_shape(shape), "scale_dtype": F32}

    def layout(self, shape: Shape, options: Options) -> Layout:
        scale = (options["scale_dtype"], (options["scale"],))
        return {"weight": (self.dtype, (shape,)), SCALE: scale}

    def encode(self, weight: Tensor, options: Options) -> dict[str, Tensor]:
        q, scale = quantize(weight, options["scale"], self.dtype, options["scale_dtype"])
        return {"weight": q, SCALE: scale}


class Gguf(Format):
    """A block type of ggml: `block` numbers in `size` bytes, which lie in rows [out, bytes]."""

    dtype, parts, native = torch.uint8, (), False
    block: int
    size: int

    @property
    def kind(self) -> str:
        """What ggml calls it."""
        return self.name.removeprefix("gguf_").upper()

    def options(self, shape: Shape) -> Options | None:
        return {} if shape[-1] % self.block == 0 else None

    def layout(self, shape: Shape, options: Options) -> Layout:
        stored = (*shape[:-1], shape[-1] // self.block * self.size)
        return {"weight": (torch.uint8, (stored,))}

    def logical(self, stored: Shape, options: Options) -> Shape:
        return (*stored[:-1], stored[-1] // self.size * self.block)

    def encode(self, weight: Tensor, options: Options) -> dict[str, Tensor]:
        blocks = self.pack(weight.unflatten(-1, (-1, self.block)))
        return {"weight": blocks.flatten(-2)}

    def decode(self, parts: Parts, options: Options) -> Tensor:
        blocks = parts["weight"].unflatten(-1, (-1, self.size))
        return self.unpack(blocks).flatten(-2)

    @abstractmethod
    def pack(self, x: Tensor) -> Tensor:
        """Blocks of numbers [..., block] to bytes [..., size]."""

    @abstractmethod
    def unpack(self, x: Tensor) -> Tensor:
        """Blocks of bytes [..., size] to numbers [..., block]."""


def _half(x: Tensor) -> Tensor:
    """Numbers [..., n] as the bytes [..., 2 n] of fp16."""
    return x.half().contiguous().view(torch.uint8)


def _from_half(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.float16).float()


class Q8_0(Gguf):
    """int8 under an fp16 scale for 32."""

    name, block, size = "gguf_q8_0", 32, 34

    def pack(self, x: Tensor) -> Tensor:
        q, scale = rows_to_int(x, INT8_MAX)
        return torch.cat([_half(scale), q.view(torch.uint8)], dim=-1)

    def unpack(self, x: Tensor) -> Tensor:
        return x[..., 2:].view(torch.int8).float() * _from_half(x[..., :2])


class Q6_K(Gguf):
    """6 bits under an int8 scale for 16 and an fp16 one for 256."""

    name, block, size = "gguf_q6_k", 256, 210

    def pack(self, x: Tensor) -> Tensor:
        groups = x.unflatten(-1, (16, 16))
        largest = groups.abs().amax(-1)
        whole = (largest.amax(-1, keepdim=True) / (31 * INT8_MAX)).half().float().clamp(min=6e-8)
        scale = (largest / (31 * whole)).round().clamp(0, INT8_MAX)
        divisor = (scale * whole)[..., None]
        q = torch.where(divisor > 0, groups / divisor, 0).round().clamp(-32, 31) + 32
        q = q.to(torch.uint8).flatten(-2).unflatten(-1, (2, 4, 32))  # halves of 128, quarters
        low = torch.cat([_packed(q[..., i, :], q[..., i + 2, :]) for i in (0, 1)], dim=-1)
        high = sum((q[..., i, :] >> 4) << (2 * i) for i in range(4))
        assert isinstance(high, Tensor)
        parts = [low.flatten(-2), high.flatten(-2), scale.to(torch.int8).view(torch.uint8)]
        return torch.cat([*parts, _half(whole)], dim=-1)

    def unpack(self, x: Tensor) -> Tensor:
        low, high, scale, whole = x.split([128, 64, 16, 2], dim=-1)
        low = torch.cat(_nibbles(low.unflatten(-1, (2, 64)).contiguous()), dim=-1)
        shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=x.device)[:, None]
        high = (high.unflatten(-1, (2, 1, 32)) >> shifts & 3).flatten(-2)
        q = (low | high << 4).flatten(-2).float() - 32
        scale = scale.contiguous().view(torch.int8).float() * _from_half(whole)
        return (q.unflatten(-1, (16, 16)) * scale[..., None]).flatten(-2)


class _K(Gguf):
    """4 or 5 bits under 6-bit scales and minima for 32, and two fp16 numbers for 256."""

    block = 256
    largest: int

    def pack(self, x: Tensor) -> Tensor:
        groups = x.unflatten(-1, (8, 32))
        low = (-groups.amin(-1)).clamp(min=0)
        span = (groups.amax(-1) + low) / self.largest
        whole, offset = (
            (y.amax(-1, keepdim=True) / 63).half().float().clamp(min=6e-8) for y in (span, low)
        )
        scale, minimum = ((y / w).round().clamp(0, 63) for y, w in ((span, whole), (low, offset)))
        divisor = (scale * whole)[..., None]
        shifted = groups + (minimum * offset)[..., None]
        q = torch.where(divisor > 0, shifted / divisor, 0).round().clamp(0, self.largest)
        heads = [_half(whole), _half(offset), _six_bits(scale, minimum)]
        return torch.cat([*heads, self.pack_codes(q.to(torch.uint8))], dim=-1)

    def unpack(self, x: Tensor) -> Tensor:
        whole, offset, scales, codes = x.split([2, 2, 12, self.size - 16], dim=-1)
        scale, minimum = _from_six_bits(scales)
        scale, minimum = scale * _from_half(whole), minimum * _from_half(offset)
        return (self.unpack_codes(codes) * scale[..., None] - minimum[..., None]).flatten(-2)

    def pack_codes(self, q: Tensor) -> Tensor:
        """Codes [..., 8, 32] to bytes."""
        return _packed(q[..., 0::2, :], q[..., 1::2, :]).flatten(-2)

    def unpack_codes(self, x: Tensor) -> Tensor:
        """The reverse of `pack_codes`, fp32."""
        pairs = _nibbles(x.unflatten(-1, (4, 32)).contiguous())
        return torch.stack(pairs, dim=-2).flatten(-3, -2).float()


def _six_bits(scale: Tensor, minimum: Tensor) -> Tensor:
    """8 scales and 8 minima of 6 bits each in 12 bytes."""
    scale, minimum = scale.to(torch.uint8), minimum.to(torch.uint8)
    (first, last), (low, high) = scale.split(4, -1), minimum.split(4, -1)
    heads = [first | (last >> 4) << 6, low | (high >> 4) << 6]
    return torch.cat([*heads, _packed(last, high)], dim=-1)


def _from_six_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    first, low, rest = x.split(4, dim=-1)
    last, high = _nibbles(rest.contiguous())
    scale = torch.cat([first & 63, last | (first >> 6) << 4], dim=-1)
    minimum = torch.cat([low & 63, high | (low >> 6) << 4], dim=-1)
    return scale.float(), minimum.float()


class Q4_K(_K):
    """4 bits, 4.5 with their scales."""

    name, size, largest = "gguf_q4_k", 144, 15


class Q5_K(_K):
    """5 bits, 5.5 with their scales."""

    name, size, largest = "gguf_q5_k", 176, 31

    def pack_codes(self, q: Tensor) -> Tensor:
        high = sum((q[..., i, :] >> 4) << i for i in range(8))
        assert isinstance(high, Tensor)
        return torch.cat([high, super().pack_codes(q)], dim=-1)

    def unpack_codes(self, x: Tensor) -> Tensor:
        high, low = x.split([32, 128], dim=-1)
        shifts = torch.arange(8, dtype=torch.uint8, device=x.device)[:, None]
        return super().unpack_codes(low) + 16 * (high[..., None, :] >> shifts & 1).float()


_INT8 = Int8("int8_tensorwise", convrot=False)
FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        Fp8("float8_e4m3fn", E4M3),
        Fp8("float8_e5m2", E5M2),
        _INT8,
        ConvRotW4A4(),
        W4A8(),
        NvFp4(),
        MxFp8(),
        Q8_0(),
        Q6_K(),
        Q5_K(),
        Q4_K(),
    )
}
"""Every format that a file states, by the name it states."""

MADE: dict[str, Format] = {
    "fp8": Fp8Cast("fp8", E4M3),
    "fp8_e5m2": Fp8Cast("fp8_e5m2", E5M2),
    "fp8_scaled": FineFp8("fp8_scaled", E4M3),
    **FORMATS,
    "int8_convrot": Int8("int8_tensorwise", convrot=True),
}
"""Every format that weights are quantised in, by the name of the precision."""

CAST = {format.dtype: format for format in (MADE["fp8"], MADE["fp8_e5m2"])}
FINE = {dtype: FineFp8("fp8_scaled", dtype) for dtype in FP8}
PARTS = (
    SCALE,
    CONFIG,
    *dict.fromkeys(part for format in FORMATS.values() for part in format.parts + format.optional),
)
"""Every tensor that may lie beside a weight."""


def read_config(text: bytes | str) -> Mapping[str, Any]:
    """The JSON of a `comfy_quant` tensor; raises ValueError for anything else."""
    config = json.loads(text)
    if not isinstance(config, dict) or not isinstance(config.get("format"), str):
        raise ValueError("a layer states no format")
    return config


def stated_encoding(config: Mapping[str, Any]) -> Encoding:
    """What a `comfy_quant` text states; raises KeyError for an unknown format."""
    nested = config.get("params")
    options = {**(nested if isinstance(nested, dict) else {}), **config}
    name = options.pop("format")
    options.pop("params", None)
    return Encoding(FORMATS[name], options)


def encoding_of(parts: Parts) -> Encoding | None:
    """How a weight with these parts is kept, None where it is not quantised."""
    if CONFIG in parts:
        return stated_encoding(read_config(bytes(parts[CONFIG].tolist())))
    dtype = parts["weight"].dtype
    if dtype not in FP8:
        return None
    return Encoding(FINE[dtype] if SCALE in parts else CAST[dtype])


def is_block_linear(name: str) -> bool:
    """Whether this weight of the DiT is quantised: layers of blocks, without modulation."""
    in_block = name.startswith(("transformer_blocks.", "single_transformer_blocks."))
    return in_block and name.endswith(".weight") and "norm" not in name
