"""The drift anchor: it takes out drift, leaves what moves, and what it changes becomes history."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import randn
from torch import Tensor

from framepack_core.sampling.anchor import anchored, check_anchor, is_anchored
from framepack_core.sampling.generate import SectionTask, generate
from framepack_core.sampling.ledger import Ledger
from framepack_core.sampling.plan import Plan
from framepack_core.sampling.sections import plan_f1, plan_framepack

WINDOW, SIZE = 4, 12
CORNER = (..., slice(0, 3), slice(0, 3))  # where something moves
START = randn(1, 16, 1, SIZE, SIZE, seed=3)
COLOUR = torch.linspace(-0.2, 0.2, 16).view(1, 16, 1, 1, 1)


def still(frames: int = WINDOW, start: Tensor = START) -> Tensor:
    return start.expand(-1, -1, frames, -1, -1).clone()


def moved(seed: int = 5) -> Tensor:
    """The start image with something else in a corner of each frame."""
    section = still()
    section[CORNER] = randn(1, 16, WINDOW, 3, 3, seed=seed) + 2
    return section


def drifted(section: Tensor, contrast: float = 0.1) -> Tensor:
    """More contrast and other colours, ever more up to the last frame."""
    grown = torch.arange(1, section.shape[2] + 1).view(1, 1, -1, 1, 1) / section.shape[2]
    return section * (1 + contrast * grown) + COLOUR * grown


def error(section: Tensor, expected: Tensor) -> float:
    return ((section - expected).norm() / expected.norm()).item()


def test_drift_is_taken_out_and_what_moves_stays() -> None:
    section = moved()
    assert error(drifted(section), section) > 0.09
    assert error(anchored(drifted(section), START, 1.0), section) < 0.01
    half = error(anchored(drifted(section), START, 0.5), section)
    assert half == pytest.approx(error(drifted(section), section) / 2, rel=0.05)
    assert torch.equal(anchored(drifted(section), START, 0.0), drifted(section))


def test_less_contrast_is_drift_too() -> None:
    section = moved()
    assert error(anchored(drifted(section, -0.2), START, 1.0), section) < 0.01


def test_what_has_not_drifted_stays_though_most_of_a_channel_differs() -> None:
    """The mean of the whole picture would change by the corner's colour."""
    section = moved()
    assert (section.mean(dim=(2, 3, 4)) - START.mean(dim=(2, 3, 4))).abs().min() > 0.05
    assert error(anchored(section, START, 1.0), section) < 1e-6


def test_sections_join_without_a_step() -> None:
    """As much goes as has grown up to each frame, in the first one little and in the last all."""
    rest = (anchored(drifted(moved()), START, 1.0) - START)[..., 4:, 4:].mean(dim=(3, 4))
    assert rest.abs().max() < 0.02 * COLOUR.abs().max()


def test_noise_is_no_contrast() -> None:
    """Where half of the picture is plain, a noisy section keeps what moves as strong as it is."""
    start = START.clone()
    start[..., 4:] = 0.5
    section = still(start=start) + 0.1 * randn(1, 16, WINDOW, SIZE, SIZE, seed=6)
    kept = anchored(section, start, 1.0)
    assert (kept.std() / section.std() - 1).abs() < 0.01


def test_a_picture_that_changes_wholly_keeps_its_contrast() -> None:
    section = randn(1, 16, WINDOW, SIZE, SIZE, seed=7)
    kept = anchored(section, START, 1.0)
    assert (kept.std() / section.std() - 1).abs() < 0.1


def test_each_sample_is_measured_alone() -> None:
    starts = torch.cat([START, randn(1, 16, 1, SIZE, SIZE, seed=8)])
    sections = torch.cat([drifted(moved()), drifted(still(start=starts[1:]))])
    together = anchored(sections, starts, 1.0)
    alone = [anchored(sections[i : i + 1], starts[i : i + 1], 1.0) for i in range(2)]
    assert torch.equal(together, torch.cat(alone))


def test_what_a_mask_hides_of_the_start_image_says_nothing() -> None:
    hidden = START.clone()
    hidden[..., 4:] = 0
    section = moved()
    assert error(anchored(drifted(section), hidden, 1.0), section) < 0.02
    assert torch.equal(anchored(section, torch.zeros_like(START), 1.0), section)


@pytest.mark.parametrize("start", [torch.full_like(START, 0.5), START.to(torch.float64)])
def test_any_start_gives_finite_latents(start: Tensor) -> None:
    section = drifted(still(1, start))
    kept = anchored(section, start, 1.0)
    assert torch.isfinite(kept).all() and kept.dtype == section.dtype
    assert error(kept, still(1, start)) < error(section, still(1, start))


# Where it acts


class Drifting:
    """Sections that go astray from the last latent they see."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, task: SectionTask) -> Tensor:
        last = task.context.clean[:, :, -1:]
        self.seen.append(last)
        return last * 1.1 + COLOUR + torch.zeros_like(task.noise)


def run(plan: Plan, anchor: float, ledger: Path | None = None) -> tuple[Tensor, list[Tensor]]:
    sample, kept = Drifting(), None
    if ledger is not None:
        kept = Ledger(ledger).open(plan, {"anchor": anchor})
    return generate(plan, sample, START, 1, ledger=kept, anchor=anchor), sample.seen


def test_what_is_anchored_becomes_history() -> None:
    video, seen = run(plan_f1(4, WINDOW), 1.0)
    assert error(video, still(1 + 4 * WINDOW)) < 0.01
    for index, last in enumerate(seen[1:], 1):
        assert torch.equal(last, video[:, :, index * WINDOW : index * WINDOW + 1])
    free, _ = run(plan_f1(4, WINDOW), 0.0)
    assert error(free, still(1 + 4 * WINDOW)) > 0.3


def test_off_changes_nothing() -> None:
    free, _ = run(plan_f1(3, WINDOW), 0.0)
    assert torch.equal(free, generate(plan_f1(3, WINDOW), Drifting(), START, 1))


def test_a_section_with_a_picture_of_its_own_is_left_as_it_is() -> None:
    plan = plan_f1(3, WINDOW).with_overrides("1", image=randn(1, 16, 1, SIZE, SIZE, seed=9))
    assert [is_anchored(plan, section) for section in plan.sections] == [True, False, True]
    video, seen = run(plan, 1.0)
    own = video[:, :, 1 + WINDOW : 1 + 2 * WINDOW]
    assert torch.equal(own, (seen[1] * 1.1 + COLOUR).expand_as(own))


def test_the_section_that_an_end_image_closes_has_a_picture_of_its_own() -> None:
    plan = plan_framepack(3, WINDOW)
    ended = plan.with_end("end")
    assert [is_anchored(ended, section) for section in ended.sections] == [False, True, True]
    unseen = plan.with_end("end", strength=0.0)
    assert all(is_anchored(unseen, section) for section in unseen.sections)


def test_a_loop_ends_with_the_picture_that_sections_are_held_to() -> None:
    plan = plan_framepack(3, WINDOW).with_loop()
    assert all(is_anchored(plan, section) for section in plan.sections)


def test_an_anchor_without_a_section_to_act_on_is_told(caplog: pytest.LogCaptureFixture) -> None:
    check_anchor(plan_framepack(2).with_end("end"), 1.0, "--anchor")
    check_anchor(plan_framepack(1).with_end("end"), 0.0, "--anchor")
    assert caplog.messages == []
    check_anchor(plan_framepack(1).with_end("end"), 1.0, "--anchor")
    assert caplog.messages == ["--anchor has no effect, as every section has a picture of its own"]


def test_stored_sections_are_the_anchored_ones(tmp_path: Path) -> None:
    plan = plan_f1(3, WINDOW)
    video, made = run(plan, 1.0, tmp_path)
    again, none = run(plan, 1.0, tmp_path)
    assert torch.equal(again, video) and len(made) == 3 and none == []
    assert len(run(plan, 0.5, tmp_path)[1]) == 3


def test_a_plan_that_ends_early_is_anchored_as_the_whole_one() -> None:
    """Or its sections in the ledger would be others than those of the whole video."""
    plan = plan_f1(3, window=2).with_end(torch.zeros(1, 16, 1, 4, 4))
    assert [is_anchored(plan, section) for section in plan.sections] == [True, True, False]
    early = plan.first(2)
    assert [is_anchored(early, section) for section in early.sections] == [True, True]
