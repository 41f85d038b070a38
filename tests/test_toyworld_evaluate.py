"""The built-in model does what it is for: a short form of the evaluation, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from toyworld.evaluate import Cases, Measure, Toy, kept, vae_psnr
from toyworld.tracker import motion

from framepack_core.toyworld import SNAPSHOT

STEPS = 8


@pytest.fixture(scope="module")
def toy() -> Iterator[Toy]:
    with torch.inference_mode():
        yield Toy.load(SNAPSHOT, torch.device("cpu"))


def test_autoencoder(toy: Toy) -> None:
    assert vae_psnr(toy, 2, sections=1) >= 34


@pytest.mark.parametrize("mode", ["framepack", pytest.param("f1", marks=pytest.mark.slow)])
def test_prompts_decide_the_motion(toy: Toy, mode: str) -> None:
    cases = Cases.draw(2, 60_000, ("left", "down"))
    for case in (cases, cases.opposites()):
        video = toy.make_videos(mode, case.starts, case.prompts, 1, case.seeds, steps=STEPS)
        assert motion(video.track) == list(case.motions)
        assert kept(video, case) == 1


def test_a_measure_says_whether_its_bar_is_met() -> None:
    assert str(Measure("share", 0.9, 0.95)) == "MISS   90.0%  >= 95.0%   share"
    ratio = Measure("ratio", 1.2, 1.5, at_most=True, percent=False)
    assert ratio.met and str(ratio).startswith("ok")
