"""Seconds a step and peak memory of training, as a table; `training_files.py DIR` comes first.

    python tests/bench/train_full_size.py DIR                          bf16 and fp8_scaled
    python tests/bench/train_full_size.py DIR --budgets 24 16 12       also within so many GiB
    torchrun --nproc_per_node 2 tests/bench/train_full_size.py DIR     a batch on each of two GPUs
    python tests/bench/train_full_size.py DIR --accumulation 2         the same updates on one

640x640 in sections of 9 latent frames, rank 32 on all layers of the blocks, AdamW, gradient
checkpointing. A budget is kept by a hard limit on what the process may allocate: with the fewest
blocks in main memory that do, and, where blocks alone do not suffice, the activations too.
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

sys.path.insert(0, str(Path(__file__).resolve().parent))

from training_files import DIT, Size, sample_of, size_of

from framepack_core.models.build import load_dit
from framepack_core.models.dit import FramePackDiT
from framepack_core.models.offload import (
    MOST_TO_SWAP,
    WeightSizes,
    blocks_of,
    place,
    streamed_blocks,
)
from framepack_core.runtime.distributed import launched_rank
from framepack_core.sampling.flow import FlowDenoiser
from framepack_core.training.batches import Batches, Sample
from framepack_core.training.config import AdapterConfig, TrainConfig
from framepack_core.training.loop import Callbacks, train

RANK, WARMUP = 32, 2
GIB = 2**30
SLACK = 3 * GIB // 2  # of the allocator


@dataclass(frozen=True)
class Measured:
    """A step's seconds and the most memory in bytes, and how it was kept low."""

    seconds: float
    memory: int
    swapped: int
    offloaded: bool
    losses: list[float]


def measure(
    dit: FramePackDiT,
    size: Size,
    sample: Sample,
    device: torch.device,
    steps: int,
    swapped: int = 0,
    offloaded: bool = False,
    accumulation: int = 1,
) -> Measured:
    """A run of a few steps; raises torch's own error where the memory does not suffice."""
    times: list[float] = []

    def on_step(_report: object) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter())

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            output_dir=Path(folder),
            steps=WARMUP + steps,
            adapter=AdapterConfig(rank=RANK, alpha=RANK),
            blocks_to_swap=swapped,
            gradient_checkpointing_cpu_offload=offloaded,
            gradient_accumulation_steps=accumulation,
            save_every_steps=None,
        )
        done = train(
            config,
            FlowDenoiser(dit, size.dtype),
            Batches([sample]),
            Callbacks(on_step),
            device=device,
        )
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    seconds = (times[-1] - times[WARMUP - 1]) / steps
    return Measured(seconds, memory, swapped, offloaded, done.losses)


class Budget:
    """The run with the least in main memory that keeps to a limit."""

    def __init__(self, dit: FramePackDiT, unlimited: Measured, checkpoints: int) -> None:
        self.dit, self.sizes = dit, WeightSizes.of_model(dit)
        self.working = unlimited.memory - self.sizes.total
        self.checkpoints = checkpoints

    def plan(self, limit: float) -> tuple[int, bool]:
        """blocks_to_swap, and whether the activations go too."""
        for offloaded in (False, True):
            working = self.working - (self.checkpoints if offloaded else 0)
            swapped = self.sizes.fewest(int(limit) - SLACK - working)
            if swapped is not None:
                return swapped, offloaded
        return MOST_TO_SWAP, True

    def measure(
        self, limit: float, size: Size, sample: Sample, device: torch.device, steps: int
    ) -> Measured:
        swapped, offloaded = self.plan(limit)
        total = torch.cuda.get_device_properties(device).total_memory
        while True:
            place(self.dit, streamed_blocks(self.dit, swapped), device, pin=True)
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
            try:
                return measure(self.dit, size, sample, device, steps, swapped, offloaded)
            except torch.cuda.OutOfMemoryError:
                print(f"blocks_to_swap {swapped}: still too much", flush=True)
                if swapped == MOST_TO_SWAP:
                    raise
                swapped = min(MOST_TO_SWAP, swapped + 1)
            finally:
                torch.cuda.set_per_process_memory_fraction(1.0)


def rows(args: argparse.Namespace, device: torch.device) -> Iterator[str]:
    size, sample = size_of(args.folder), sample_of(args.folder)
    for precision in args.precision:
        dit = load_dit(args.folder / DIT, dtype=size.dtype, device=device, precision=precision)
        dit.requires_grad_(False)
        unlimited = measure(dit, size, sample, device, args.steps, accumulation=args.accumulation)
        yield row(precision, "no limit", unlimited)
        tokens = size.window * (size.side // 16) ** 2 * 1.34 + 900  # with history and text
        checkpoints = int(tokens * size.config.dim * size.dtype.itemsize * len(blocks_of(dit)))
        budget = Budget(dit, unlimited, checkpoints)
        for limit in args.budgets:
            found = budget.measure(limit * GIB, size, sample, device, args.steps)
            yield row(precision, f"{limit:g} GiB", found)
        del dit, budget
        gc.collect()


def row(precision: str, limit: str, found: Measured) -> str:
    activations = " and activations" if found.offloaded else ""
    return (
        f"{precision:<11} {limit:>9}  {found.swapped:>2} swapped{activations} on the CPU  "
        f"{found.seconds:7.3f} s a step  {found.memory / GIB:6.2f} GiB  losses "
        + " ".join(f"{loss:.5f}" for loss in found.losses)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of training_files.py")
    parser.add_argument("--precision", nargs="+", default=["full", "fp8_scaled"])
    parser.add_argument("--budgets", nargs="*", type=float, default=[], metavar="GIB")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--accumulation", type=int, default=1)
    args = parser.parse_args()
    rank = launched_rank()
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    for line in rows(args, device):
        if rank == 0:
            print(f"torch {torch.__version__}, {device}: {line}", flush=True)


if __name__ == "__main__":
    main()
