"""Two processes on the CPU train as one that accumulates more batches, however weights are kept."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from sharded_training import FSDP2, OF_TWO, STEPS, STOP
from tiny_training import make_samples, run, state_of, tiny_config

from framepack_core.runtime.distributed import Workers
from framepack_core.runtime.watch import ERROR
from framepack_core.training.config import TrainConfig
from framepack_core.weights.files import open_weights

WORKER = Path(__file__).with_name("sharded_training.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_how_long_processes_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[timedelta | None] = []

    def meet(_kind: str, timeout: timedelta | None) -> None:
        met.append(timeout)
        raise InterruptedError

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.setattr(dist, "init_process_group", meet)
    for minutes in (None, 90):
        with (
            pytest.raises(InterruptedError),
            Workers.joined(torch.device("cpu"), minutes),
        ):
            pass
    assert met == [None, timedelta(minutes=90)]


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes(tmp_path: Path) -> None:
    """On whole weights, on sharded ones and by PyTorch's FSDP2, stopped, resumed, and one lost."""
    one = tiny_config(tmp_path / "one", **OF_TWO | {"gradient_accumulation_steps": 4})
    samples = make_samples(tmp_path / "cache")
    losses = run(one, samples).losses
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    command = [sys.executable, str(WORKER), str(tmp_path)]
    first, second = (
        subprocess.Popen(
            command,
            env={**os.environ, **address, "RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    )
    assert second.wait(timeout=240) == -signal.SIGKILL
    _, said = first.communicate(timeout=30)
    assert first.returncode == ERROR
    assert said == "error: process 1 of 2 was killed or has crashed; note\n"

    whole, single = (tiny_config(tmp_path / name, steps=STEPS) for name in ("whole", "one"))
    assert log_of(whole) == pytest.approx(losses, rel=1e-5)
    alone, trained = (dict(open_weights(config.adapter_path)) for config in (single, whole))
    torch.testing.assert_close(trained, alone, rtol=2e-2, atol=1e-3)  # bf16
    for name in ("sharded", "resumed", *["fsdp2"] * FSDP2):
        other = tiny_config(tmp_path / name, steps=STEPS)
        assert log_of(other) == log_of(whole)
        same = dict(open_weights(other.adapter_path))
        torch.testing.assert_close(same, trained, rtol=0, atol=0)

    lost = tiny_config(tmp_path / "lost", **OF_TWO, resume=True)
    assert STOP - 1 <= len(log_of(lost)) <= STOP
    assert len(run(lost, samples).losses) == STEPS  # by one process


def log_of(config: TrainConfig) -> list[float]:
    """The losses that a state has."""
    log: Any = state_of(config)["log"]
    return [entry["loss"] for entry in log]
