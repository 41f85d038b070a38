"""Two processes on the CPU train as one that accumulates two batches."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny_training import make_samples, run, tiny_config

from framepack_core.runtime.distributed import Workers
from framepack_core.weights.files import open_weights

WORKER = Path(__file__).with_name("tiny_training.py")
STEPS = 6


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_how_long_processes_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[timedelta | None] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.setattr(dist, "init_process_group", lambda _kind, timeout: met.append(timeout))
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    for minutes in (None, 90):
        assert Workers.join(torch.device("cpu"), minutes) == Workers(1, 2, True)
    assert met == [None, timedelta(minutes=90)]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    one = tiny_config(tmp_path / "one", steps=STEPS, gradient_accumulation_steps=2)
    losses = run(one, make_samples(cache)).losses
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    command = [sys.executable, str(WORKER), str(tmp_path), str(STEPS), "0"]
    workers = [
        subprocess.Popen(command, env={**os.environ, **address, "RANK": rank}) for rank in "01"
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    two = tiny_config(tmp_path / "out", steps=STEPS)
    state = torch.load(two.state_path, weights_only=True)
    assert [entry["loss"] for entry in state["log"]] == pytest.approx(losses, rel=1e-5)
    single, double = (open_weights(config.adapter_path) for config in (one, two))
    for name in single:
        torch.testing.assert_close(double[name], single[name], rtol=2e-2, atol=1e-3)  # bf16
