"""Files of weights of which some are quantised, in any format and by any maker."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..runtime.errors import FramePackError
from .files import TensorInfo, WeightFiles
from .formats import (
    CAST,
    CONFIG,
    FINE,
    FORMATS,
    PARTS,
    WEIGHT,
    Encoding,
    Fp8,
    read_config,
    stated_encoding,
)
from .fp8 import E4M3, FP8, SCALE

METADATA = "_quantization_metadata"
_SCALES = (SCALE, "weight_scale")  # musubi-tuner and older ComfyUI, newer ComfyUI
_INPUT = "scale_input"
_EXPONENTS = tuple(filter(None, [getattr(torch, "float8_e8m0fnu", None)]))  # PyTorch 2.7 and later
_MARKER = "scaled_fp8"  # an empty tensor in ComfyUI's older files


class QuantisedFiles:
    """Files of weights whose quantised tensors come as what they stand for, or as their parts.

    Lists the model's own tensors only; what lies beside a weight is found by its name. Raises
    FramePackError for a format that is unknown, and for parts that do not fit what is stated.
    """

    def __init__(self, files: WeightFiles) -> None:
        self._files = files
        self.paths, self.metadata = files.paths, files.metadata
        stated = self._stated()
        found = {name: self._encoding(name, stated) for name in files if not self._is_part(name)}
        self._encodings = {name: e for name, e in found.items() if e is not None}
        used = {key for name in self._encodings for key in self._keys(name).values()}
        used -= set(self._encodings)
        self._names = [name for name in files if name not in used and not self._is_remark(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def encoding(self, name: str) -> Encoding | None:
        """How a tensor is quantised; None for one that is not."""
        return self._encodings.get(name)

    def info(self, name: str) -> TensorInfo:
        """The type of what is stored, and the shape of what it stands for."""
        info, encoding = self._files.info(name), self.encoding(name)
        if encoding is None:
            return info
        shape = encoding.format.logical(info.shape, encoding.options)
        return TensorInfo(encoding.format.dtype, shape)

    def part_infos(self, name: str) -> dict[str, TensorInfo]:
        """Type and shape of each part of a quantised tensor."""
        encoding = self._encodings[name]
        shape = self.info(name).shape
        found = {}
        for part, key in self._keys(name).items():
            dtype, shapes = encoding.format.layout(shape, encoding.options)[part]
            stored = self._files.info(key)
            same = dtype.itemsize == stored.dtype.itemsize
            fitted = shapes[0] if math.prod(shapes[0]) == math.prod(stored.shape) else stored.shape
            found[part] = TensorInfo(dtype if same else stored.dtype, fitted)
        if encoding.format.stated:
            found[CONFIG] = encoding.infos(shape)[CONFIG]
        return found

    def load(
        self,
        name: str,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        *,
        copy: bool = False,
    ) -> Tensor:
        """The tensor as `WeightFiles.load` gives it, dequantised if it has to be."""
        encoding = self.encoding(name)
        if encoding is None:
            return self._files.load(name, dtype, device, copy=copy)
        parts = self.load_parts(name, device)
        return encoding.decode(parts).to(dtype or torch.float32)

    def load_parts(
        self, name: str, device: torch.device | str = "cpu", *, copy: bool = False
    ) -> dict[str, Tensor]:
        """A quantised tensor as it is stored, by the names of its parts."""
        keys, parts = self._keys(name), {}
        for part, info in self.part_infos(name).items():
            if part == CONFIG:
                parts[part] = self._encodings[name].config()
            else:
                stored = self._files.load(keys[part], None, device, copy=copy)
                parts[part] = stored.view(info.dtype).reshape(info.shape)
        return parts

    def _keys(self, name: str) -> dict[str, str]:
        """Where each part of a quantised tensor is in the files."""
        format = self._encodings[name].format
        keys = {part: self._key(name, part) for part in (*format.parts, *format.optional)}
        return {WEIGHT: name} | {part: key for part, key in keys.items() if key in self._files}

    def _key(self, name: str, part: str) -> str:
        """The name in the files of a part of a weight."""
        base = name.removesuffix(WEIGHT)
        names = _SCALES if part in _SCALES else (part,)
        return next((base + n for n in names if base + n in self._files), base + part)

    def _is_part(self, name: str) -> bool:
        base, _, kind = name.rpartition(".")
        return kind in PARTS and f"{base}.{WEIGHT}" in self._files

    def _is_remark(self, name: str) -> bool:
        """What older files say of an input or of themselves, and formats that were read already."""
        base, _, kind = name.rpartition(".")
        return kind == _MARKER or (kind in (CONFIG, _INPUT) and f"{base}.{WEIGHT}" in self._files)

    # What the files say

    def _stated(self) -> dict[str, Mapping[str, Any]]:
        """What each layer states of its format, by its name in the files."""
        ends = f".{CONFIG}"
        found = {
            name.removesuffix(ends): bytes(self._files[name].tolist())
            for name in self._files
            if name.endswith(ends)
        }
        try:
            stated = {layer: read_config(text) for layer, text in found.items()}
            if METADATA in self.metadata:
                layers = json.loads(self.metadata[METADATA])["layers"]
                stated |= {layer: read_config(json.dumps(x)) for layer, x in layers.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise FramePackError(
                f"{self.paths[0]} has damaged quantisation metadata ({error}): download it again"
            ) from None
        for layer, config in stated.items():
            if config["format"] not in FORMATS:
                raise FramePackError(
                    f"{self.paths[0]} is quantised as {config['format']} ({layer}), which is not "
                    f"supported: use a file in one of {', '.join(FORMATS)}, or the bf16 file"
                )
            if f"{layer}.weight" not in self._files:
                raise FramePackError(
                    f"{self.paths[0]} states a format for {layer}, which it does not hold: "
                    "download it again"
                )
        return stated

    def _encoding(self, name: str, stated: Mapping[str, Mapping[str, Any]]) -> Encoding | None:
        base, _, kind = name.rpartition(".")
        config = stated.get(base) if kind == WEIGHT else None
        encoding = self._implied(name) if config is None else stated_encoding(config)
        if encoding is None or not encoding.format.stated:
            return encoding
        stored = self._files.info(name)
        if not _holds(stored.dtype, encoding.format.dtype) or len(stored.shape) < 2:
            raise self._mistyped(name, name, encoding.format.name)
        return self._fine(name, encoding) or self._checked(name, encoding)

    def _implied(self, name: str) -> Encoding | None:
        """fp8 of files that do not state a format, told by what they hold."""
        info = self._files.info(name)
        if info.dtype not in FP8:
            return None
        key = self._key(name, SCALE)
        if not name.endswith(f".{WEIGHT}") or key not in self._files:
            return Encoding(CAST[info.dtype])
        scale = self._files.info(key)
        if math.prod(scale.shape) == 1:
            name = {E4M3: "float8_e4m3fn"}.get(info.dtype, "float8_e5m2")
            return Encoding(FORMATS[name])
        return self._finely_scaled(name, key, info.dtype, "fp8")

    def _fine(self, name: str, encoding: Encoding) -> Encoding | None:
        """fp8 under more scales than the one of ComfyUI's own format."""
        key = self._key(name, SCALE)
        if not isinstance(encoding.format, Fp8) or key not in self._files:
            return None
        if math.prod(self._files.info(key).shape) == 1:
            return None
        return self._finely_scaled(name, key, encoding.format.dtype, encoding.format.name)

    def _finely_scaled(self, name: str, key: str, dtype: torch.dtype, format: str) -> Encoding:
        scale, shape = self._files.info(key), self._files.info(name).shape
        form = _scale_form(scale.shape, shape)
        if form is None:
            raise self._misfit(key, scale.shape, shape, format)
        return Encoding(FINE[dtype], {"scale": form, "scale_dtype": scale.dtype})

    def _checked(self, name: str, encoding: Encoding) -> Encoding:
        """The encoding, if all that is stored fits it."""
        format, stored = encoding.format, self._files.info(name)
        shape = format.logical(stored.shape, encoding.options)
        if fault := format.fault(shape, encoding.options):
            raise FramePackError(
                f"{self.paths[0]} states {fault} for {name}, which does not fit a {format.name} "
                f"weight stored as {list(stored.shape)}: download it again"
            )
        layout = format.layout(shape, encoding.options)
        for part, (dtype, shapes) in layout.items():
            key = self._key(name, part)
            if key not in self._files:
                if part in format.optional:
                    continue
                raise FramePackError(
                    f"{self.paths[0]} says that {name} is {format.name}, but has no {key}: "
                    "download it again"
                )
            if self._files.info(key).shape not in shapes:
                raise self._misfit(key, self._files.info(key).shape, shape, format.name)
            if not _holds(self._files.info(key).dtype, dtype):
                raise self._mistyped(name, key, format.name)
        return encoding

    def _mistyped(self, name: str, key: str, format: str) -> FramePackError:
        info, which = self._files.info(key), "it" if key == name else key
        return FramePackError(
            f"{self.paths[0]} says that {name} is {format}, but {which} is stored as "
            f"{str(info.dtype).removeprefix('torch.')} {list(info.shape)}: download it again"
        )

    def _misfit(
        self, key: str, scale: tuple[int, ...], weight: tuple[int, ...], format: str
    ) -> FramePackError:
        return FramePackError(
            f"{self.paths[0]}: the scale {key} is {list(scale)}, which does not fit a weight "
            f"{list(weight)} in {format}: download the file again"
        )


def _holds(stored: torch.dtype, meant: torch.dtype) -> bool:
    """Whether a tensor of one type can hold numbers of another: as they are, or as their bytes."""
    if meant.itemsize > 1:
        return stored.is_floating_point
    raw = (torch.uint8, torch.int8) if meant in (torch.uint8, torch.int8) else (torch.uint8,)
    return stored in (meant, *raw) or (meant == torch.uint8 and stored in _EXPONENTS)


def _scale_form(scale: tuple[int, ...], weight: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of a stored scale in the form used here; None if it fits no form."""
    if scale in (weight[:1], (*weight[:1], 1)):
        return (weight[0], 1)
    blocks = scale[1] if len(scale) in (2, 3) else 0
    fits = blocks and len(weight) == 2 and weight[1] % blocks == 0
    if fits and scale in ((weight[0], blocks), (weight[0], blocks, 1)):
        return (weight[0], blocks, 1)
    return None
