"""How much memory is free, in main memory and on devices."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from .errors import FramePackError

GIB = 2**30

# Limit and use of a container, and where its memory.stat says how much of that is cached files; the
# system's own numbers know nothing of them.
CGROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", ""),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)


def free_main_memory() -> int:
    """Bytes that this process could still use, with the page file where Windows counts that."""
    free = psutil.virtual_memory().available
    if psutil.WINDOWS:
        free += psutil.swap_memory().free
    return min([free, *_container_memory()])


def _container_memory() -> list[int]:
    for folder, limit, used, prefix in CGROUPS:
        root = Path(folder)
        try:
            in_use = int((root / used).read_text()) - _cached_files(root / "memory.stat", prefix)
            return [int((root / limit).read_text()) - in_use]
        except (OSError, ValueError, KeyError):  # no container, or one without a limit ("max")
            continue
    return []


def _cached_files(statistics: Path, prefix: str) -> int:
    """Bytes that the system gives back as soon as they are needed."""
    counts = dict(line.split() for line in statistics.read_text().splitlines())
    return sum(int(counts[f"{prefix}{name}_file"]) for name in ("active", "inactive"))


def free_device_memory(device: torch.device) -> int:
    """Bytes free on a device; of one that shares main memory, that."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_main_memory()


@contextmanager
def limited_memory(gib: float | None, device: torch.device) -> Iterator[int | None]:
    """Let PyTorch take no more of a GPU than so many GiB meanwhile; the bytes that it may take.

    They are fewer where fewer are free; None is no limit. Raises FramePackError on other devices.
    PyTorch's own allocator then maps memory to where it is needed, as long as the process runs, if
    its variable in the environment says nothing else: gaps took 1.4 of 8 GiB in a training.
    """
    if gib is None:
        yield None
        return
    if device.type != "cuda":
        raise FramePackError(f"gpu_memory: {device} has no memory of its own; leave it out")
    if device.index is None:  # as --device cuda
        device = torch.device("cuda", torch.cuda.current_device())
    total = torch.cuda.get_device_properties(device).total_memory
    free = free_device_memory(device) + torch.cuda.memory_reserved(device)
    most = min(int(gib * GIB), free)
    _use_gaps()
    torch.cuda.set_per_process_memory_fraction(most / total, device)
    try:
        yield most
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def _use_gaps() -> None:
    told = os.environ.keys() & {"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"}
    if told or sys.platform != "linux" or torch.cuda.get_allocator_backend() != "native":
        return
    newer = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    (newer or torch.cuda.memory._set_allocator_settings)("expandable_segments:True")


def peak_of(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes that are allocated on a GPU while something runs."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)
