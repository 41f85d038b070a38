"""Seconds a step and peak memory of training, in JSON lines; `training_files.py DIR` comes first.

    python tests/bench/train_full_size.py DIR                          bf16 and fp8_scaled
    python tests/bench/train_full_size.py DIR --budgets 24 16 12       also within so many GiB
    torchrun --nproc_per_node 2 tests/bench/train_full_size.py DIR     a batch on each of two GPUs
    torchrun … DIR --weights whole sharded fsdp2       also with half of the weights on each of them
    python tests/bench/train_full_size.py DIR --accumulation 2         the same updates on one

640x640 in sections of 9 latent frames, rank 32 on all layers of the blocks, AdamW, gradient
checkpointing. A budget is `gpu_memory`, which says what it chooses. fsdp2 is PyTorch's own sharding
of the same blocks, to compare with `shard_weights`.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from training_files import DIT, Size, sample_of, size_of

from framepack_core.models.build import load_dit
from framepack_core.models.dit import FramePackDiT
from framepack_core.models.offload import blocks_of
from framepack_core.runtime.distributed import Workers, launched_rank
from framepack_core.runtime.memory import GIB, limited_memory
from framepack_core.sampling.flow import FlowDenoiser
from framepack_core.training.batches import Batches, Sample
from framepack_core.training.config import AdapterConfig, TrainConfig
from framepack_core.training.loop import Callbacks, train

RANK, WARMUP = 32, 2
WHOLE, SHARDED, FSDP2 = "whole", "sharded", "fsdp2"

Row = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """A step's seconds and the most memory in bytes, of tensors and with PyTorch's gaps."""

    seconds: float
    memory: int
    reserved: int
    losses: list[float]

    @property
    def row(self) -> Row:
        gib = {"gib": round(self.memory / GIB, 2), "gib_reserved": round(self.reserved / GIB, 2)}
        return {"seconds_a_step": round(self.seconds, 3), **gib, "losses": self.losses}


def measure(
    dit: FramePackDiT,
    size: Size,
    sample: Sample,
    device: torch.device,
    steps: int,
    **options: Any,
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
    on_gpu = device.type == "cuda"
    memory = torch.cuda.max_memory_allocated() if on_gpu else 0
    reserved = torch.cuda.max_memory_reserved() if on_gpu else 0
    seconds = (times[-1] - times[WARMUP - 1]) / steps
    return Measured(seconds, memory, reserved, done.losses)


def rows(args: argparse.Namespace, device: torch.device, count: int) -> Iterator[Row]:
    size, sample = size_of(args.folder), sample_of(args.folder)
    for precision in args.precision:
        for weights in args.weights:
            if time.perf_counter() > args.ends:
                return
            if weights == FSDP2 and precision != "full":
                continue  # products are chosen on whole layers
            place = device if weights == WHOLE else torch.device("cpu")
            given = {"dtype": size.dtype, "device": place, "precision": precision}
            dit = load_dit(args.folder / DIT, **given).requires_grad_(False)
            if weights == FSDP2:
                fully_shard(dit, device, count)
            options = {
                "gradient_accumulation_steps": args.accumulation,
                "gradient_checkpointing_cpu_offload": args.offload_activations,
                "shard_weights": weights == SHARDED,
                "quantized_matmul": args.quantized_matmul,
            }
            with limited_memory(args.limit, device):
                found = measure(dit, size, sample, device, args.steps, **options)
            about = {"precision": precision, "quantized_matmul": args.quantized_matmul}
            about |= {"weights": weights, "limit": args.limit}
            yield {**about, "offload_activations": args.offload_activations, **found.row}
            for limit in args.budgets if weights == WHOLE else ():
                dit.to("cpu")
                within = {"quantized_matmul": args.quantized_matmul, "gpu_memory": limit}
                found = measure(dit, size, sample, device, args.steps, **within)
                yield {"precision": precision, **within, **found.row}
            del dit
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()


def fully_shard(dit: FramePackDiT, device: torch.device, count: int) -> None:
    """PyTorch's own sharding of each block; the rest is whole on each GPU."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, blocks = init_device_mesh(device.type, (count,)), blocks_of(dit)
    for block in blocks:
        fully_shard(block, mesh=mesh)
    kept = {id(parameter) for block in blocks for parameter in block.parameters()}
    rest = {parameter for parameter in dit.parameters() if id(parameter) not in kept}
    for parameter in rest:
        parameter.data = parameter.data.to(device)
    fully_shard(dit, mesh=mesh, ignored_params=rest)  # so that all blocks prefetch in one order


def main() -> None:
    parser = argparse.ArgumentParser(description="seconds a step and peak memory of training")
    parser.add_argument("folder", type=Path, help="of training_files.py")
    parser.add_argument("--precision", nargs="+", default=["full", "fp8_scaled"])
    parser.add_argument("--weights", nargs="+", default=[WHOLE], choices=[WHOLE, SHARDED, FSDP2])
    parser.add_argument("--budgets", nargs="*", type=float, default=[], metavar="GIB")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--offload_activations", action="store_true")
    parser.add_argument("--quantized_matmul", action="store_true")
    parser.add_argument("--limit", type=float, help="GiB that PyTorch may take of each GPU")
    parser.add_argument("--minutes", type=float, default=30, help="after which no run begins")
    args = parser.parse_args()
    args.ends = time.perf_counter() + 60 * args.minutes
    rank = launched_rank()
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    with Workers.joined(device) as workers:
        about = {"torch": torch.__version__, "processes": workers.count}
        about["device"] = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
        for row in rows(args, device, workers.count):
            if rank == 0:
                print(json.dumps({**about, **row}), flush=True)


if __name__ == "__main__":
    main()
