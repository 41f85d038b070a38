"""Seconds a step and peak memory of training at full size with random weights, as a table.

    python tests/bench/train_full_size.py                 one GPU, bf16 and fp8_scaled
    python tests/bench/train_full_size.py --budgets 24 16 12    also with blocks on the CPU
    python tests/bench/train_full_size.py --tiny          the same code on a CPU in seconds

640x640 in sections of 9 latent frames, rank 32 on all layers of the blocks, AdamW, gradient
checkpointing. A budget is kept by a hard limit on what the process may allocate.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from framepack_core.models.build import dit_state_of
from framepack_core.models.dit import DiTConfig, FramePackDiT
from framepack_core.models.prompt import TextCondition
from framepack_core.runtime.device import default_device
from framepack_core.sampling.flow import FlowDenoiser
from framepack_core.training.adapters import AdapterConfig
from framepack_core.training.batches import Batches, Sample
from framepack_core.training.cache import section_tensors, text_tensors
from framepack_core.training.cache_files import IMAGE, save_latent_cache, save_text_cache
from framepack_core.training.config import TrainConfig
from framepack_core.training.loop import Callbacks, train
from framepack_core.weights.files import TensorInfo
from framepack_core.weights.fp8 import Fp8Ops, Precision

WINDOW, SIDE, WORDS, IMAGE_TOKENS = 9, 640, 128, 729
RANK, WARMUP, STEPS = 32, 3, 10
SWAPS = range(0, 61, 5)  # how many blocks are tried for a budget, fewest first
GIB = 2**30
TINY = DiTConfig(
    num_attention_heads=2,
    attention_head_dim=16,
    num_layers=2,
    num_single_layers=2,
    num_refiner_layers=1,
    text_embed_dim=32,
    pooled_projection_dim=16,
    image_proj_dim=24,
    rope_axes_dim=(4, 6, 6),
)


@dataclass(frozen=True)
class Size:
    """How large a model and its clips are."""

    config: DiTConfig
    side: int = SIDE
    window: int = WINDOW
    dtype: torch.dtype = torch.bfloat16


@dataclass(frozen=True)
class Measured:
    """A step's seconds and the most memory in bytes, with so many blocks on the CPU."""

    seconds: float
    memory: int
    swapped: int


class RandomWeights:
    """Tensors of a model that was never trained, small enough that nothing overflows."""

    def __init__(self, config: DiTConfig) -> None:
        skeleton = FramePackDiT(config, device="meta")
        self.shapes = {name: tuple(x.shape) for name, x in skeleton.state_dict().items()}

    def info(self, name: str) -> TensorInfo:
        return TensorInfo(torch.bfloat16, self.shapes[name])

    def scale_info(self, name: str) -> None:
        return None

    def load(
        self, name: str, dtype: torch.dtype | None, device: torch.device | str, *, copy: bool
    ) -> Tensor:
        return 0.02 * torch.randn(self.shapes[name], dtype=dtype or torch.bfloat16)


def make_dit(size: Size, precision: Precision, device: torch.device) -> FramePackDiT:
    """On the device, but for the weights that a run keeps on the CPU: it moves those itself."""
    state = dit_state_of(
        size.config, RandomWeights(size.config), dtype=size.dtype, precision=precision
    )
    ops = Fp8Ops if state.holds_fp8() else torch.nn
    dit = FramePackDiT(size.config, ops=ops, dtype=size.dtype, device="meta")
    dit.load_state_dict(dict(state), strict=True, assign=True)
    return dit.requires_grad_(False)


def make_samples(size: Size, folder: Path) -> list[Sample]:
    """One cached section of noise."""
    config, latent = size.config, size.side // 8
    condition = TextCondition(
        torch.randn(1, WORDS, config.text_embed_dim),
        torch.randn(1, config.pooled_projection_dim),
    )
    text = folder / "noise_fp_te.safetensors"
    save_text_cache(text, text_tensors(condition, "noise"), "noise", "")
    latents = torch.randn(1, 16, 1 + size.window, latent, latent).half()
    [(_, tensors)] = section_tensors("framepack", latents, size.window)
    path = folder / "noise_fp.safetensors"
    image = torch.randn(IMAGE_TOKENS, config.image_proj_dim).half()
    about = {"size": (size.side, size.side), "digest": "", "mode": "framepack"}
    save_latent_cache(path, {**tensors, IMAGE: image}, **about)
    return [Sample(Path("noise"), path, text, text)]


def measure(size: Size, precision: Precision, swapped: int, device: torch.device) -> Measured:
    """A run of a few steps; raises torch's own error where the memory does not suffice."""
    times: list[float] = []

    def on_step(_report: object) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        samples = make_samples(size, Path(folder))
        dit = make_dit(size, precision, device)
        if not swapped:
            dit.to(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        config = TrainConfig(
            output_dir=Path(folder),
            steps=WARMUP + STEPS,
            adapter=AdapterConfig(rank=RANK, alpha=RANK),
            blocks_to_swap=swapped,
            save_every_steps=None,
        )
        denoiser = FlowDenoiser(dit, size.dtype)
        train(config, denoiser, Batches(samples), Callbacks(on_step), device=device)
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return Measured((times[-1] - times[WARMUP - 1]) / STEPS, memory, swapped)


def within(size: Size, precision: Precision, budget: float, device: torch.device) -> Measured:
    """The run with the fewest blocks on the CPU that keeps to a budget in GiB."""
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, budget * GIB / total), device)
    try:
        for swapped in SWAPS:
            try:
                return measure(size, precision, swapped, device)
            except torch.cuda.OutOfMemoryError:
                gc.collect()
                torch.cuda.empty_cache()
        raise SystemExit(f"{precision}: does not fit into {budget:g} GiB")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def rows(args: argparse.Namespace, size: Size, device: torch.device) -> Iterator[str]:
    for precision in ("full", "fp8_scaled"):
        runs = {"no limit": measure(size, precision, 0, device)}
        for budget in args.budgets:
            gc.collect()
            runs[f"{budget:g} GiB"] = within(size, precision, budget, device)
        for limit, found in runs.items():
            yield (
                f"{precision:<11} {limit:>9}  {found.swapped:>2} blocks on the CPU  "
                f"{found.seconds:7.3f} s a step  {found.memory / GIB:6.2f} GiB"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budgets", nargs="*", type=float, default=[], metavar="GIB")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    device = torch.device("cpu") if args.tiny else default_device()
    size = Size(TINY, side=32, window=2, dtype=torch.float32) if args.tiny else Size(DiTConfig())
    torch.manual_seed(0)
    print(f"{device}, torch {torch.__version__}, {size.side}x{size.side}, window {size.window}")
    for row in rows(args, size, device):
        print(row, flush=True)


if __name__ == "__main__":
    main()
