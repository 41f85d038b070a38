"""Several processes that train one adapter: gradients are averaged, all else is the same in each.

`accelerate launch` and `torchrun` set the variables that are read here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


def launched_rank() -> int:
    """This process's number among those that were launched together; 0 alone."""
    return int(os.environ.get("RANK", "0"))


@dataclass(frozen=True)
class Workers:
    """This process and how many there are."""

    rank: int = 0
    count: int = 1
    joined: bool = False  # here, and so to be left here

    @classmethod
    def join(cls, device: torch.device) -> Workers:
        """Meet the other processes, if this one was launched with others."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls()
        if device.type == "cuda":
            torch.cuda.set_device(device)  # where NCCL works what comes without a device
        joining = not dist.is_initialized()
        if joining:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
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

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in one message."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.count
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))
