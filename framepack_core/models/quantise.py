"""What quantising a DiT costs: the error of each layer, and that of a whole pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import cast

import torch
from torch import Tensor, nn

from ..lora.apply import LoraUse, apply_loras
from ..weights.formats import MADE, Encoding, is_block_linear
from ..weights.precisions import Precision
from ..weights.quantised_linear import QuantisedLinear
from .build import load_dit
from .dit import DiTConfig, DiTInputs
from .offload import blocks_of, place, streamed_forwards
from .prompt import TextCondition

TRIAL_LATENTS = (16, 3, 16, 16)  # of the pass that is compared: three frames of 128 x 128 pixels
TRIAL_TOKENS = 32  # of its text, and of its picture


@dataclass
class LayerErrors:
    """The errors of quantised layers, each the norm of it over the norm of the weight.

    It is what `ModelState` calls for each of them.
    """

    errors: dict[str, float] = field(default_factory=dict)

    def __call__(
        self, name: str, full: Tensor, encoding: Encoding, parts: Mapping[str, Tensor]
    ) -> None:
        full = full.float()
        error = (encoding.decode(parts) - full).norm() / full.norm().clamp(min=1e-30)
        self.errors[name.removesuffix(".weight")] = error.item()

    def describe(self) -> str:
        """A line for each kind of layer: its mean and greatest error, and where that is."""
        kinds: dict[str, list[str]] = {}
        for name in self.errors:
            kinds.setdefault(name.split(".", 2)[2], []).append(name)
        lines = []
        for kind, names in sorted(kinds.items()):
            worst = max(names, key=self.errors.__getitem__)
            average = mean(self.errors[name] for name in names)
            number = worst.rpartition(f".{kind}")[0]
            lines.append(
                f"{kind}: {average:.4f} of the weight in {len(names)} layers, at most "
                f"{self.errors[worst]:.4f} ({number})"
            )
        return "\n".join(lines) or "no layer was quantised"


@torch.no_grad()
def quantise_layers(dit: nn.Module, precision: Precision) -> None:
    """Quantise the weights of a DiT's blocks in place; its layers are those of `QuantisedOps`."""
    for name, layer in dit.named_modules():
        weight = f"{name}.weight"
        if isinstance(layer, QuantisedLinear) and is_block_linear(weight):
            options = MADE[precision].options(tuple(layer.weight.shape))
            if options is not None:
                parts = Encoding(MADE[precision], options).encode(layer.weight.float())
                bias = {} if layer.bias is None else {"bias": layer.bias}
                layer.load_state_dict(parts | bias, assign=True)
                layer.requires_grad_(False)


def precision_of(encodings: Iterable[Encoding]) -> Precision:
    """The precision in which most of the quantised weights of a model are, "full" without any."""
    names = [
        "int8_convrot" if encoding.options.get("convrot") else encoding.format.name
        for encoding in encodings
    ]
    return cast(Precision, max(set(names), key=names.count)) if names else "full"


@torch.no_grad()
def pass_error(
    plain: Path | str,
    quantised: Path | str,
    loras: Sequence[LoraUse] = (),
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    on_block: Callable[[int, int], None] | None = None,
) -> float:
    """How far a quantised DiT's answer is from that of another file with LoRAs, over its norm.

    One block at a time is on the device. The inputs are random, so the error of a real prompt
    differs somewhat. on_block hears how many of how many blocks are done.
    """
    outputs = []
    device = torch.device(device)
    for number, path in enumerate((plain, quantised)):
        dit = load_dit(path, dtype=dtype)
        apply_loras(dit, () if number else loras)
        blocks = blocks_of(dit)
        forwards = streamed_forwards(blocks, device)
        for block, forward in zip(blocks, forwards, strict=True):
            block.forward = forward
        if on_block is not None:
            _count(blocks, on_block, number)
        place(dit, blocks, device, pin=False)
        outputs.append(dit(trial_inputs(dit.config, device, dtype)))
        del dit, blocks, forwards
    expected, found = outputs
    return float((found - expected).norm() / expected.norm())


def _count(blocks: Sequence[nn.Module], on_block: Callable[[int, int], None], passes: int) -> None:
    for i, block in enumerate(blocks, 1):
        done = passes * len(blocks) + i
        block.register_forward_hook(lambda *_, done=done: on_block(done, 2 * len(blocks)))


def trial_inputs(config: DiTConfig, device: torch.device, dtype: torch.dtype) -> DiTInputs:
    """The same random inputs every time."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(1, *shape, generator=generator).to(device, dtype)

    image = randn(TRIAL_TOKENS, config.image_proj_dim) if config.has_image_proj else None
    text = randn(TRIAL_TOKENS, config.text_embed_dim), randn(config.pooled_projection_dim)
    return DiTInputs(
        randn(*TRIAL_LATENTS),
        torch.full([1], 500.0, device=device),
        TextCondition(*text),
        torch.full([1], 10000.0, device=device) if config.guidance_embeds else None,
        image,
    )
