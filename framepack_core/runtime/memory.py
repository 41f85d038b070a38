"""How much memory is free, in main memory and on devices."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

# Limit and use of a container; the system's own numbers know nothing of them.
CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def free_main_memory() -> int:
    """Bytes that this process could still use, with the page file where Windows counts that."""
    free = psutil.virtual_memory().available
    if psutil.WINDOWS:
        free += psutil.swap_memory().free
    return min([free, *_container_memory()])


def _container_memory() -> list[int]:
    for limit, used in CGROUPS:
        try:
            return [int(Path(limit).read_text()) - int(Path(used).read_text())]
        except (OSError, ValueError):  # no container, or one without a limit ("max")
            continue
    return []


def free_device_memory(device: torch.device) -> int:
    """Bytes free on a device; of one that shares main memory, that."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_main_memory()
