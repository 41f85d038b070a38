"""Two processes on the CPU make one video: the same as one process alone makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cli_runs import failure, latents, picture, small
from several_processes import CASES, KILLED_IN
from test_distributed import free_port

import framepack_core
from framepack_core.runtime.errors import FramePackError
from framepack_core.sampling.latents import load_latents

ROOT = Path(__file__).parents[1]
PROGRAM = Path(__file__).with_name("several_processes.py")
ROUNDING = 5e-6  # of fp32 over two sections, relative to the largest value
SECTIONS = 4
SLOWEST = 30  # seconds until the others end, where a process dies

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")


def launch(*command: str) -> list[subprocess.Popen[str]]:
    """The two processes of a command, as a launcher would start them."""
    address = {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
    address |= {name: str(free_port()) for name in ("MASTER_PORT", "NEXT_PORT")}
    start = [sys.executable, *command]
    to_read = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    own = [{**os.environ, **address, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    return [subprocess.Popen(start, env=env, **to_read) for env in own]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A video of several sections whose ledger is kept."""
    folder = tmp_path_factory.mktemp("video")
    options = ["--prompt", "x", "--image_path", picture(folder / "a.png")]
    command = small("generate", folder, *options, "--video_sections", str(SECTIONS))
    command.remove("--no_ledger")
    return command


class Pair:
    """The first two processes: all cases, then a command in which one dies."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        processes = launch(str(PROGRAM), str(folder), *command)
        processes[1].wait(timeout=240)
        died = time.monotonic()
        self.output, self.complaint = processes[0].communicate(timeout=240)
        self.seconds = time.monotonic() - died
        self.codes = [process.returncode for process in processes]
        files = (folder / f"errors{rank}.json" for rank in (0, 1))
        self.errors = [json.loads(file.read_text()) for file in files if file.is_file()]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, command: list[str]) -> Iterator[Pair]:
    yield Pair(tmp_path_factory.mktemp("cases"), command)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_make_what_one_makes(pair: Pair, case: str) -> None:
    assert len(pair.errors) == 2, pair.complaint
    for errors in pair.errors:
        assert errors[case] < ROUNDING


@pytest.mark.slow
def test_a_process_that_dies_ends_the_other_and_sections_are_kept(
    pair: Pair, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pair.codes == [2, -9]
    assert pair.seconds < SLOWEST
    [error] = [line for line in pair.complaint.splitlines() if "error:" in line]
    assert "error: process 1 of 2 was killed or has crashed; " in error
    assert f"{KILLED_IN} of {SECTIONS} sections are kept in " in error
    # again, with what is left to make; the slices of the video are decoded by both
    leader, follower = launch("-m", "framepack_core.cli", *command, "--output_type", "both")
    output, complaint = leader.communicate(timeout=240)
    assert follower.communicate(timeout=60) == ("", "")
    assert (leader.returncode, follower.returncode) == (0, 0), complaint
    assert f"{KILLED_IN} of {SECTIONS} sections are there already; resuming" in output
    made = [Path(line) for line in output.splitlines() if line.startswith("/")]
    assert [path.suffix for path in made] == [".safetensors", ".mp4"]
    alone = latents([*command, "--no_ledger", "--save_path", str(tmp_path)], capsys)
    torch.testing.assert_close(load_latents(made[0])[0], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--shard_weights", "--shard_weights: no other process makes the same"),
        ("--shard_weights --blocks_to_swap 2", "--shard_weights and --blocks_to_swap cannot be"),
        ("--shard_weights --gpu_memory 9", "--shard_weights and --gpu_memory cannot be combined"),
        ("--together", "--together: it needs --from_file"),
    ],
)
def test_what_is_refused(
    command: list[str], options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in failure([*command, *options.split()], capsys)


def test_processes_that_nobody_brings_together(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert "2 processes were launched, which could not meet" in failure(command, capsys)


def test_typed_prompts_are_for_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "several processes cannot read" in failure(small("interactive", tmp_path), capsys)


@pytest.mark.slow
def test_a_call_from_python_is_made_by_all_processes_together(tmp_path: Path) -> None:
    options = {
        "snapshot": "toyworld",
        "device": "cpu",
        "image_path": picture(tmp_path / "a.png"),
        "prompt": "x",
        "infer_steps": 1,
        "video_sections": 1,
        "output_type": "latent",
        "save_path": str(tmp_path),
    }
    made = f"print('made', framepack_core.generate(**{options!r}))"
    processes = launch("-c", f"import framepack_core; {made}")
    outputs = [process.communicate(timeout=240) for process in processes]
    [file] = tmp_path.glob("*.safetensors")
    assert repr([file]) in outputs[0][0], outputs[0][1]
    assert "made []" in outputs[1][0], outputs[1][1]


def test_loaded_models_are_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(FramePackError, match="load: 2 processes were launched"):
        framepack_core.load(snapshot="toyworld")
