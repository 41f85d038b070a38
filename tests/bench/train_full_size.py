"""Seconds a step and peak memory of training, as a table; `training_files.py DIR` comes first.

    python tests/bench/train_full_size.py DIR                          bf16 and fp8_scaled
    python tests/bench/train_full_size.py DIR --budgets 24 16 12       also within so many GiB
    torchrun --nproc_per_node 2 tests/bench/train_full_size.py DIR     a batch on each of two GPUs
    python tests/bench/train_full_size.py DIR --accumulation 2         the same updates on one

640x640 in sections of 9 latent frames, rank 32 on all layers of the blocks, AdamW, gradient
checkpointing. A budget is `gpu_memory`, which says what it chooses.
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
from framepack_core.runtime.distributed import launched_rank
from framepack_core.sampling.flow import FlowDenoiser
from framepack_core.training.batches import Batches, Sample
from framepack_core.training.config import AdapterConfig, TrainConfig
from framepack_core.training.loop import Callbacks, train

RANK, WARMUP = 32, 2
GIB = 2**30


@dataclass(frozen=True)
class Measured:
    """A step's seconds and the most memory in bytes."""

    seconds: float
    memory: int
    losses: list[float]


def measure(
    dit: FramePackDiT,
    size: Size,
    sample: Sample,
    device: torch.device,
    steps: int,
    gpu_memory: float | None = None,
    accumulation: int = 1,
    **options: bool,
) -> Measured:
    """A run of a few steps; raises torch's own error where the memory does not suffice.

    options: further ones of the run.
    """
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
            gpu_memory=gpu_memory,
            gradient_accumulation_steps=accumulation,
            save_every_steps=None,
            **options,
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
    return Measured(seconds, memory, done.losses)


def rows(args: argparse.Namespace, device: torch.device) -> Iterator[str]:
    size, sample = size_of(args.folder), sample_of(args.folder)
    for precision in args.precision:
        dit = load_dit(args.folder / DIT, dtype=size.dtype, device=device, precision=precision)
        dit.requires_grad_(False)
        unlimited = measure(dit, size, sample, device, args.steps, accumulation=args.accumulation)
        yield row(precision, "no limit", unlimited)
        for limit in args.budgets:
            dit.to("cpu")
            found = measure(dit, size, sample, device, args.steps, gpu_memory=limit)
            yield row(precision, f"{limit:g} GiB", found)
        del dit
        gc.collect()


def row(precision: str, limit: str, found: Measured) -> str:
    took = f"{found.seconds:7.3f} s a step  {found.memory / GIB:6.2f} GiB"
    losses = " ".join(f"{loss:.5f}" for loss in found.losses)
    return f"{precision:<11} {limit:>9}  {took}  losses {losses}"


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
