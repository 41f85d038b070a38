"""A Toy World run on the command line, killed at random moments: nothing finished is lost."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch
from cli_runs import picture, small
from killing import FULL, check_whole, final_files, kill_after, moments, start
from logged_command import logged_sampler

from framepack_core.cli import main
from framepack_core.headless import crew
from framepack_core.sampling.latents import load_latents

SECTIONS = 6
KILLS = 20 if FULL else 2
PROGRAM = Path(__file__).with_name("logged_command.py")


def command(out: Path, image: str) -> list[str]:
    """A run through decoding and saving, with the ledger in its default place."""
    options = ["--prompt", "x", "--image_path", image, "--video_sections", str(SECTIONS)]
    command = small("generate", out, *options, "--output_type", "both")
    command.remove("--no_ledger")
    return command


def made(out: Path) -> torch.Tensor:
    [path] = out.glob("*_latent.safetensors")
    return load_latents(path)[0]


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_run_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, log = picture(tmp_path / "a.png"), tmp_path / "begun"
    monkeypatch.setattr(crew, "unipc_sampler", logged_sampler(log))
    begun_at = time.monotonic()
    assert main(command(tmp_path / "whole", image)) == 0
    duration = time.monotonic() - begun_at
    expected, work_done = made(tmp_path / "whole"), log.stat().st_size
    assert work_done == SECTIONS
    killed = 0
    for kill, moment in enumerate(moments(KILLS, duration, seed=8)):
        out = tmp_path / str(kill)
        out.mkdir()
        killed += kill_after(moment, start(PROGRAM, log, *command(out, image)), out) < 0
        for left in final_files(out):  # a result of before the kill is not what is compared
            if left.parent == out:
                left.unlink()
        assert main(command(out, image)) == 0
        check_whole(out)
        assert torch.equal(made(out), expected), f"killed after {moment:.2f} s"
        repeated = log.stat().st_size - work_done - SECTIONS
        assert repeated <= 1, f"killed after {moment:.2f} s: {repeated} sections made again"
        work_done = log.stat().st_size
    assert killed >= KILLS / 2  # a run may be faster than the first one
    print(f"{KILLS} of {KILLS} runs equal, {killed} killed in {duration:.1f} s each")
