"""A Toy World run on the command line, killed at random moments: nothing finished is lost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_runs import picture, small
from killing import FULL, check_whole, final_files, in_child, kill_after, moments, wait

from framepack_core.cli import main
from framepack_core.headless import jobs
from framepack_core.sampling.latents import load_latents

SECTIONS = 6
KILLS = 20 if FULL else 2

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that gets a byte for each section that is begun, also by a child."""
    log, original = tmp_path / "begun", jobs.unipc_sampler

    def logged(*args):
        sample = original(*args)

        def begin(task):
            with log.open("ab", buffering=0) as file:
                file.write(b".")
            return sample(task)

        return begin

    monkeypatch.setattr(jobs, "unipc_sampler", logged)
    log.touch()
    return log


def work(out: Path, image: str) -> Callable[[], None]:
    """A run through decoding and saving, with the ledger in its default place."""
    options = ["--prompt", "x", "--image_path", image, "--video_sections", str(SECTIONS)]
    command = small("generate", out, *options, "--output_type", "both")
    command.remove("--no_ledger")

    def run() -> None:
        assert main(command) == 0

    return run


def made(out: Path) -> torch.Tensor:
    [path] = out.glob("*_latent.safetensors")
    return load_latents(path)[0]


def test_a_killed_run_goes_on_to_the_same_bits(begun: Path, tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    start = time.monotonic()
    assert wait(in_child(work(tmp_path / "whole", image))) == 0
    duration = time.monotonic() - start
    expected, work_done = made(tmp_path / "whole"), begun.stat().st_size
    assert work_done == SECTIONS
    killed = 0
    for kill, moment in enumerate(moments(KILLS, duration, seed=8)):
        out = tmp_path / str(kill)
        out.mkdir()
        killed += kill_after(moment, in_child(work(out, image)), out) < 0
        for left in final_files(out):  # a result of before the kill is not what is compared
            if left.parent == out:
                left.unlink()
        assert wait(in_child(work(out, image))) == 0
        check_whole(out)
        assert torch.equal(made(out), expected), f"killed after {moment:.2f} s"
        repeated = begun.stat().st_size - work_done - SECTIONS
        assert repeated <= 1, f"killed after {moment:.2f} s: {repeated} sections made again"
        work_done = begun.stat().st_size
    assert killed >= KILLS / 2  # a run may be faster than the first one
    print(f"{KILLS} of {KILLS} runs equal, {killed} killed in {duration:.1f} s each")
