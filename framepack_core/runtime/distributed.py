"""Several processes that share work: how many there are, and which of them this one is.

`accelerate launch` and `torchrun` set the variables that are read here. Processes that make videos
take turns in a list of them; those that train one adapter average its gradients.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(days=30)


def launched_rank() -> int:
    """This process's number among those that were launched together; 0 alone."""
    return int(os.environ.get("RANK", "0"))


def launched_count() -> int:
    """How many processes were launched together; 1 for one alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def launched_together() -> Iterator[tuple[int, int]]:
    """This process's number and how many there are, under `accelerate launch` or torchrun.

    They wait for each other at the end: a launcher stops all others when one has failed.
    """
    rank, processes = launched_rank(), launched_count()
    if processes == 1 or "MASTER_ADDR" not in os.environ:
        yield rank, processes
        return
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield rank, processes
        dist.barrier()
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True)
class Workers:
    """This process and how many there are."""

    rank: int = 0
    count: int = 1
    joined: bool = False  # here, and so to be left here

    @classmethod
    def join(cls, device: torch.device, minutes: int | None = None) -> Workers:
        """Meet the other processes, if this one was launched with others.

        minutes: how long they wait for each other, PyTorch's own time by default.
        """
        count = launched_count()
        if count == 1:
            return cls()
        if device.type == "cuda":
            torch.cuda.set_device(device)  # where NCCL works what comes without a device
        joining = not dist.is_initialized()
        if joining:
            timeout = None if minutes is None else timedelta(minutes=minutes)
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
        return cls(dist.get_rank(), count, joining)

    def leave(self) -> None:
        """Part from the other processes once all are done: a process that only exits may abort."""
        if self.joined:
            dist.barrier()
            dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def agree(self, value: int) -> int:
        """The main process's value."""
        values = [value]
        if self.count > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in one message."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.count
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))
