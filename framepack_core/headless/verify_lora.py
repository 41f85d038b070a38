"""LoRAs as their formula has them, read without our readers: W + strength * alpha / rank * B A."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from safetensors import safe_open
from torch import Tensor

from ..lora.apply import LoraUse, MergeLoras
from ..weights.files import SAFETENSORS

_KEY = re.compile(
    r"(?P<module>.+?)\.(?:(?P<down>lora_(?:down|A)\.weight)|(?P<up>lora_(?:up|B)\.weight)|alpha)"
)
_PREFIX = re.compile(r"(?:base_model\.model\.|diffusion_model\.|transformer\.)+|lora_unet_")


class FormulaLoras:
    """The change of a parameter by LoRAs, in its type.

    plain: whether all files could be read here. Of one in another form than two factors and alpha
    for each of the model's own modules, the factors come from our readers.
    """

    def __init__(self, uses: Sequence[LoraUse], parameters: Iterable[str]) -> None:
        parameters = list(parameters)
        read = [(use, _factors(use, parameters)) for use in uses]
        self._factors = [(use.strength, factors) for use, factors in read if factors is not None]
        rest = [use for use, factors in read if factors is None]
        self._rest, self.plain = MergeLoras(rest), not rest

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        total = self._rest(name, tensor)
        for strength, factors in self._factors:
            if name in factors:
                up, down, scale = factors[name]
                product = up.to(tensor).flatten(1) @ down.to(tensor).flatten(1)
                total = total + strength * scale * product.reshape(tensor.shape)
        return total


def _factors(
    use: LoraUse, parameters: Sequence[str]
) -> Mapping[str, tuple[Tensor, Tensor, float]] | None:
    """(up, down, alpha / rank) of the modules in use by their weight; None for another form."""
    path = use.lora.path
    if path.suffix.lower() not in SAFETENSORS:
        return None
    weights = {p.removesuffix(".weight"): p for p in parameters if p.endswith(".weight")}
    modules = {module.replace(".", "_"): module for module in weights}
    found: dict[str, dict[str, Tensor]] = {}
    with safe_open(path, "pt") as file:
        for key in list(file.keys()):
            match = _KEY.fullmatch(key)
            name = match and modules.get(
                _PREFIX.sub("", match["module"], count=1).replace(".", "_")
            )
            if match is None or name is None:
                return None
            slot = "down" if match["down"] else "up" if match["up"] else "alpha"
            found.setdefault(name, {})[slot] = file.get_tensor(key)
    factors = {}
    for module in use.lora.modules:
        pair = found.get(module, {})
        if pair.keys() != {"up", "down", "alpha"}:
            return None
        scale = float(pair["alpha"]) / pair["down"].shape[0]
        factors[weights[module]] = pair["up"], pair["down"], scale
    return factors
