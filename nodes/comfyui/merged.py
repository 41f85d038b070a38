"""The weights of a MODEL with everything that was applied to it, for writing them to a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.lora
import comfy.model_patcher
import torch
from torch import Tensor

from ...framepack_core.lora.apply import LoraUse, MergeLoras
from ...framepack_core.weights.files import TensorInfo
from ...framepack_core.weights.formats import PARTS, WEIGHT, Encoding, encoding_of

PREFIX = "diffusion_model."


class PatchedWeights:
    """The weights of the DiT by our names, patched and merged one at a time in fp32.

    A quantised weight to which nothing was applied is given as it is stored.
    """

    def __init__(self, model: Any, uses: Sequence[LoraUse]) -> None:
        self._model = model
        self._state = model.model.diffusion_model.state_dict()
        self._merge = MergeLoras(uses)

    @property
    def patched(self) -> int:
        """How many weights ComfyUI's own patches change."""
        return sum(PREFIX + name in self._model.patches for name in self._state)

    def encoding(self, name: str) -> Encoding | None:
        """How a weight is kept, if nothing was applied to it."""
        changed = PREFIX + name in self._model.patches or name in self._merge.names
        if changed or not name.endswith(f".{WEIGHT}"):
            return None
        return encoding_of(self._parts(name))

    def part_infos(self, name: str) -> dict[str, TensorInfo]:
        parts = self._parts(name).items()
        return {part: TensorInfo(x.dtype, tuple(x.shape)) for part, x in parts}

    def load(
        self, name: str, dtype: torch.dtype | None, device: torch.device | str, *, copy: bool
    ) -> Tensor:
        """The merged weight; computed where ComfyUI has it, which may be a GPU."""
        key = PREFIX + name
        weight, _, convert = comfy.model_patcher.get_key_weight(self._model.model, key)
        if key in self._model.backup:  # it is patched in place
            weight = self._model.backup[key].weight
        full = weight.to(torch.float32, copy=True)
        full = convert(full, inplace=True) if convert is not None else full
        full = comfy.lora.calculate_weight(self._model.patches.get(key, []), full, key)
        return self._merge(name, full).to(device, dtype)

    def load_parts(self, name: str, device: torch.device | str, *, copy: bool) -> dict[str, Tensor]:
        return {part: x.to(device) for part, x in self._parts(name).items()}

    def _parts(self, name: str) -> dict[str, Tensor]:
        base = name.removesuffix(WEIGHT)
        names = (part for part in (WEIGHT, *PARTS) if base + part in self._state)
        return {part: self._state[base + part] for part in names}
