"""Runs of one of several processes: on whole weights, on sharded ones, and by PyTorch's FSDP2.

As a program: `sharded_training.py FOLDER`, in processes that know their RANK. In the last run the
second process dies.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.fsdp as fsdp

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[1])]

from tiny import tiny_dit
from tiny_training import make_samples, tiny_config

from framepack_core.models.dit import FramePackDiT
from framepack_core.models.offload import blocks_of
from framepack_core.runtime.distributed import Workers
from framepack_core.sampling.flow import FlowDenoiser
from framepack_core.training.batches import Batches
from framepack_core.training.config import AdapterConfig
from framepack_core.training.loop import Callbacks, StepReport, train

STEPS, STOP = 4, 2
DROPPING = AdapterConfig(rank=2, alpha=2, dropout=0.1, rank_dropout=0.1, module_dropout=0.3)
OF_TWO = {"steps": STEPS, "gradient_accumulation_steps": 2, "adapter": DROPPING}
FSDP2 = hasattr(fsdp, "fully_shard") and hasattr(torch.cpu.Stream(), "record_event")  # on a CPU


class Stop(Exception):
    """A run is over before its end."""


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with Workers.joined(torch.device("cpu"), note="note") as workers:
        train_all(folder, workers.rank)


def train_all(folder: Path, rank: int) -> None:
    """One run after the other."""
    batches = Batches(make_samples(folder / f"cache{rank}"), 42)

    def trained(name: str, dit: FramePackDiT, stop: int = 0, **settings: object) -> None:
        def on_step(report: StepReport) -> None:
            if report.step == stop and name == "lost" and rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if report.step == stop and name != "lost":
                raise Stop

        config = tiny_config(folder / name, **OF_TWO, **settings)
        dist.barrier()  # the files of the run before are there
        with suppress(Stop):
            train(config, FlowDenoiser(dit), batches, Callbacks(on_step))

    trained("whole", tiny_dit())
    trained("sharded", tiny_dit(), shard_weights=True)
    if FSDP2:
        trained("fsdp2", fully_sharded(tiny_dit()))
    trained("resumed", tiny_dit(), stop=STOP, shard_weights=True)
    trained("resumed", tiny_dit(), shard_weights=True, resume=True)
    trained("lost", tiny_dit(), stop=STOP, shard_weights=True, save_every_steps=1)


def fully_sharded(dit: FramePackDiT) -> FramePackDiT:
    """The same model by PyTorch's own sharding."""
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    for module in (*blocks_of(dit), dit):
        fsdp.fully_shard(module, mesh=mesh)
    return dit


if __name__ == "__main__":
    main(Path(sys.argv[1]))
