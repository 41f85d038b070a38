"""The weights of a MODEL with everything that was applied to it, for writing them to a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.lora
import torch
from torch import Tensor

from ...framepack_core.lora.apply import LoraUse, MergeLoras
from ...framepack_core.weights.files import TensorInfo
from ...framepack_core.weights.fp8 import FP8, SCALE

PREFIX = "diffusion_model."


class PatchedWeights:
    """The weights of the DiT by our names, patched and merged one at a time in fp32.

    A quantised weight to which nothing was applied is given as it is stored.
    """

    def __init__(self, model: Any, uses: Sequence[LoraUse]) -> None:
        found = model.get_key_patches(PREFIX)
        self._weights = {key.removeprefix(PREFIX): patches for key, patches in found.items()}
        self._merge = MergeLoras(uses)

    @property
    def patched(self) -> int:
        """How many weights ComfyUI's own patches change."""
        return sum(len(patches) > 1 for patches in self._weights.values())

    def info(self, name: str) -> TensorInfo:
        weight = self._stored(name)
        changed = len(self._weights[name]) > 1 or name in self._merge.names
        dtype = torch.float32 if changed and weight.dtype in FP8 else weight.dtype
        return TensorInfo(dtype, tuple(weight.shape))

    def scale_info(self, name: str) -> TensorInfo | None:
        scale = self._scale(name)
        return None if scale is None else TensorInfo(scale.dtype, tuple(scale.shape))

    def load(
        self, name: str, dtype: torch.dtype | None, device: torch.device | str, *, copy: bool
    ) -> Tensor:
        """The merged weight; computed where ComfyUI has it, which may be a GPU."""
        (weight, convert), *patches = self._weights[name]
        full = convert(weight.to(torch.float32, copy=True), inplace=True)
        full = comfy.lora.calculate_weight(patches, full, PREFIX + name)
        return self._merge(name, full).to(device, dtype)

    def load_scaled(
        self, name: str, device: torch.device | str, *, copy: bool
    ) -> tuple[Tensor, Tensor | None]:
        scale = self._scale(name)
        return self._stored(name).to(device), None if scale is None else scale.to(device)

    def _stored(self, name: str) -> Tensor:
        return self._weights[name][0][0]

    def _scale(self, name: str) -> Tensor | None:
        key = f"{name.removesuffix('weight')}{SCALE}"
        return self._stored(key) if key in self._weights else None
