"""Seconds and memory to apply a LoRA of rank 32 to every layer of a full-size model.

`python tests/bench/lora_apply.py [--device cuda] [--precision bf16 fp8_scaled]` makes a model of
random weights (26 or 17 GB on the device); `--tiny` makes a small one, to try the script.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

from training_files import TINY

from framepack_core.lora.apply import apply_loras, open_loras
from framepack_core.lora.names import underscored
from framepack_core.models.build import dit_shapes
from framepack_core.models.dit import DiTConfig, DiTInputs, FramePackDiT
from framepack_core.models.prompt import TextCondition
from framepack_core.runtime.device import parse_device
from framepack_core.runtime.files import size_text
from framepack_core.training.adapters import select_layers
from framepack_core.weights.files import save_weights
from framepack_core.weights.formats import is_block_linear
from framepack_core.weights.fp8 import quantize, scale_shape
from framepack_core.weights.quantised_linear import QuantisedOps
from framepack_core.weights.state import scale_name

RANK, DTYPE = 32, torch.bfloat16


def random_dit(config: DiTConfig, precision: str, device: torch.device) -> FramePackDiT:
    """A model of small random weights, made where it stays."""
    scaled = precision == "fp8_scaled"
    model = FramePackDiT(config, ops=QuantisedOps if scaled else nn, dtype=DTYPE, device="meta")
    state = {}
    for name, parameter in model.state_dict().items():
        wide = name.startswith(FramePackDiT.FP32_PARAMETERS)
        dtype = torch.float32 if wide else DTYPE
        weight = 0.02 * torch.randn(parameter.shape, device=device, dtype=dtype)
        if scaled and is_block_linear(name):
            weight, state[scale_name(name)] = quantize(weight, scale_shape(tuple(weight.shape)))
        state[name] = weight
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def random_lora(config: DiTConfig, path: Path) -> int:
    """A file for every linear layer of the blocks; returns how many."""
    tensors = {}
    layers = select_layers(FramePackDiT(config, device="meta"))
    for name, layer in layers.items():
        base = f"lora_unet_{underscored(name)}"
        tensors[f"{base}.lora_down.weight"] = 0.02 * torch.randn(RANK, layer.in_features)
        tensors[f"{base}.lora_up.weight"] = 0.02 * torch.randn(layer.out_features, RANK)
    save_weights(path, {name: x.to(DTYPE) for name, x in tensors.items()})
    return len(layers)


def step(model: FramePackDiT, side: int) -> Callable[[], Tensor]:
    """One call of the model for a section of side x side latents."""
    config, device = model.config, next(model.parameters()).device

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=DTYPE)

    text = TextCondition(
        random(1, 64, config.text_embed_dim), random(1, config.pooled_projection_dim), None
    )
    image = random(1, 729, config.image_proj_dim)
    levels = torch.tensor([500.0], device=device), torch.tensor([10000.0], device=device)
    latents = random(1, 16, 9, side, side)
    inputs = DiTInputs(latents, levels[0], text, levels[1], image)
    return lambda: model(inputs)


def measured(device: torch.device, work: Callable[[], Any]) -> tuple[float, int, Any]:
    """Seconds, bytes that stay allocated on a GPU, and what came of it."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device) if cuda else 0
    start = time.perf_counter()
    made = work()
    if cuda:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    return seconds, (torch.cuda.memory_allocated(device) if cuda else 0) - before, made


@torch.no_grad()
def bench(config: DiTConfig, precision: str, device: torch.device, lora: Path, side: int) -> None:
    model = random_dit(config, precision, device)
    run = step(model, side)
    run()  # kernels are chosen and compiled in the first
    plain, *_ = measured(device, run)
    shapes = dit_shapes(config)
    reading, _, uses = measured(device, lambda: open_loras([lora], shapes))
    applying, _, applied = measured(device, lambda: apply_loras(model, uses))
    first, memory, _ = measured(device, lambda: (run(), None)[1])  # moves the factors
    later, *_ = measured(device, run)
    changing, *_ = measured(device, lambda: applied.set_strength(0, 0.5))
    print(
        f"{precision}: read {reading:.2f} s, apply {applying:.3f} s, move to {device.type} "
        f"{max(0.0, first - later):.2f} s, extra memory {size_text(memory)}; a step {plain:.3f} s, "
        f"with it {later:.3f} s; another strength {1e6 * changing:.0f} us",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", nargs="+", default=["bf16", "fp8_scaled"])
    parser.add_argument("--side", type=int, default=64, help="of the latents")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    config, device = TINY if args.tiny else DiTConfig(), parse_device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lora.safetensors"
        count = random_lora(config, path)
        print(f"rank {RANK} on {count} layers, {size_text(path.stat().st_size)}, {device}")
        for precision in args.precision:
            bench(config, precision, device, path, args.side)


if __name__ == "__main__":
    main()
