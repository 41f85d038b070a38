"""What every pretraining run shares: a time budget, recorded steps, loss lines and state files."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framepack_core.runtime.errors import FramePackError
from framepack_core.weights.files import open_weights, save_weights

from .pretrain_optimizer import Optimizer

SYNC_EVERY = 20  # steps: how far the queue of the device may run ahead of the clock
LOG_SECONDS = 5.0

Step = Callable[[], None]


@dataclass
class Budget:
    """A run of so many minutes; schedules follow the clock, since a step's time is not known."""

    minutes: float
    max_steps: int | None = None
    started: float = field(default_factory=time.monotonic)
    steps: int = 0

    def restart(self) -> None:
        """Begin to count now: what came before was preparation."""
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def progress(self) -> float:
        """0 at the start, 1 at the end."""
        if self.max_steps is not None:
            return self.steps / self.max_steps
        return self.seconds / (60 * self.minutes)


def learning_rate(progress: float, peak: float, *, warmup: float = 0.02) -> float:
    """Linear warm-up, then a cosine down to a fiftieth of the peak."""
    if progress < warmup:
        return peak * max(progress, 0.1 * warmup) / warmup
    turn = min(1.0, (progress - warmup) / (1 - warmup))
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * turn)))


class LossMeter:
    """Sums losses on the device; only a log line waits for it."""

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self.names = names
        self._sums = torch.zeros(len(names), device=device)
        self._counts = torch.zeros(len(names), device=device)

    def add(self, name: str, value: Tensor) -> None:
        index = self.names.index(name)
        self._sums[index] += value.detach()
        self._counts[index] += 1

    def line(self) -> str:
        """The means since the last line."""
        sums, counts = self._sums.tolist(), self._counts.tolist()
        self._sums.zero_()
        self._counts.zero_()
        means = zip(self.names, sums, counts, strict=True)
        return " ".join(f"{name} {s / n:.5f}" for name, s, n in means if n)


def train(
    budget: Budget,
    next_step: Callable[[float, int], Step],
    set_rate: Callable[[float], None],
    after_step: Callable[[], None],
    meter: LossMeter,
    peak: float,
) -> None:
    """Steps until the budget is spent; `next_step` picks one by progress and number."""
    budget.restart()
    last_log, last_steps = 0.0, 0
    while (progress := budget.progress) < 1:
        set_rate(learning_rate(progress, peak))
        next_step(progress, budget.steps)()
        after_step()
        budget.steps += 1
        if budget.steps % SYNC_EVERY == 0:
            synchronize()
        if budget.seconds - last_log > LOG_SECONDS or budget.steps == 1:
            losses, now = meter.line(), budget.seconds
            speed = (now - last_log) * 1000 / max(1, budget.steps - last_steps)
            print(f"{now:6.1f} s  step {budget.steps}  {losses}  {speed:.1f} ms/step", flush=True)
            last_log, last_steps = now, budget.steps


def recorded(step: Step, device: torch.device, pool: object | None = None) -> Step:
    """The step as a CUDA graph, so that the launch of its kernels costs nothing.

    Where recording fails the plain step is returned, and a line says so. The three steps before
    recording are real ones. On a CPU there is nothing to record.
    """
    if device.type != "cuda":
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, pool=pool):
            step()
    except RuntimeError as error:
        print(f"no CUDA graph ({str(error).splitlines()[0]}): steps run one by one", flush=True)
        torch.cuda.synchronize()
        return step
    return graph.replay


def milliseconds(step: Step, repeats: int = 5) -> float:
    """What a step takes; before training, while the learning rate is still zero."""
    synchronize()
    start = time.monotonic()
    for _ in range(repeats):
        step()
    synchronize()
    return (time.monotonic() - start) * 1000 / repeats


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def save_state(
    folder: Path, name: str, state: Mapping[str, Mapping[str, Tensor]], info: Mapping[str, object]
) -> None:
    """One file `name-part.safetensors` a part of the state, each under 16 MiB for a toy model."""
    for part, tensors in state.items():
        metadata = {"info": json.dumps(dict(info))}
        tensors = {key: tensor.detach().cpu() for key, tensor in tensors.items()}
        save_weights(state_file(folder, name, part), tensors, metadata)


def state_file(folder: Path, name: str, part: str) -> Path:
    """Where a part of a state is."""
    return folder / f"{name}-{part}.safetensors"


def load_state(folder: Path, name: str, part: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """One part of a saved state, and what the run noted about itself."""
    path = state_file(folder, name, part)
    if not path.is_file():
        raise FramePackError(f"{path} does not exist: give the folder that a run wrote with --out")
    file = open_weights(path)
    return {key: tensor.clone() for key, tensor in file.items()}, json.loads(file.metadata["info"])


def resume(folder: Path, name: str, optimizer: Optimizer) -> None:
    """Continue from the weights and averages of an earlier run."""
    weights, info = load_state(folder, name, "weights")
    average, _ = load_state(folder, name, "ema")
    optimizer.load(weights, average)
    print(f"{name} continues from {folder}, after {info['steps']} steps there", flush=True)
