"""Seconds and memory of work on a device, and the table that they make."""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

GIB = 2**30
REPEATS = 5


@dataclass(frozen=True)
class Took:
    """Seconds, and bytes of GPU memory at most, what was there before left out."""

    seconds: float
    memory: int = 0

    def __str__(self) -> str:
        memory = f", {self.memory / GIB:.1f} GiB" if self.memory else ""
        return f"{self.seconds:.3f} s{memory}"


@dataclass(frozen=True)
class Row:
    """A line of the table; error: relative difference of the results by norm."""

    work: str
    here: Took
    beside: Took | None = None
    what: str = ""
    error: float | None = None

    def __str__(self) -> str:
        beside = f"{self.beside}, {self.what}" if self.beside else ""
        ratio = f"{self.here.seconds / self.beside.seconds:.2f}" if self.beside else ""
        error = "" if self.error is None else f"{self.error:.1e}"
        return f"| {self.work} | {self.here} | {beside} | {ratio} | {error} |"


HEAD = "| work | here | beside | ratio | difference |\n|---|---|---|---|---|"


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def free() -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Memory:
    """The most memory since it was made, ComfyUI's own allocations of weights included."""

    def __init__(self, kept: int = 0) -> None:
        """kept: bytes that were there before and belong to what is measured."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated() - kept

    @property
    def peak(self) -> int:
        if not torch.cuda.is_available():
            return 0
        streamed = sys.modules.get("comfy_aimdo.control")  # where ComfyUI keeps weights itself
        weights = streamed.get_total_vram_usage() if streamed else 0
        return torch.cuda.max_memory_allocated() - self._before + weights


def took(work: Callable[[], Any], repeats: int = REPEATS, kept: int = 0) -> tuple[Took, Any]:
    """The median of some calls after one that warms up, and what the last call returned."""
    work()
    synchronize()
    memory, times, made = Memory(kept), [], None
    for _ in range(repeats):
        made = None
        start = time.perf_counter()
        made = work()
        synchronize()
        times.append(time.perf_counter() - start)
    return Took(statistics.median(times), memory.peak), made


class Clock:
    """Called after each step of a run; `seconds` is the median step but for the first two."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def tick(self, *_: object) -> None:
        synchronize()
        self.times.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        steps = [b - a for a, b in zip(self.times, self.times[1:], strict=False)]
        return statistics.median(steps[1:])


def difference(found: Tensor, expected: Tensor) -> float:
    found, expected = found.float().cpu(), expected.float().cpu()
    return float((found - expected).norm() / expected.norm())


def table(rows: Iterable[Row]) -> str:
    return "\n".join([HEAD, *map(str, rows)])
