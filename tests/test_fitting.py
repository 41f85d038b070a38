"""A training within a budget of GPU memory: what is chosen by the peak of a step on trial."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import CONFIG, tiny_dit
from tiny_training import make_samples, run, tiny_config

from framepack_core.models.dit import FramePackDiT
from framepack_core.models.offload import MOST_TO_SWAP, WeightSizes
from framepack_core.runtime.errors import FramePackError
from framepack_core.runtime.memory import GIB, limited_memory
from framepack_core.runtime.options import validate
from framepack_core.sampling.flow import FlowDenoiser
from framepack_core.training import loop
from framepack_core.training.batches import Batches
from framepack_core.training.config import TrainConfig
from framepack_core.training.fitting import SLACK, STATES, Fit, fit_step
from framepack_core.training.objective import Objective

CPU = torch.device("cpu")
WORK, INPUTS, TRAINED = 5 * GIB, 150_000, GIB  # bytes: activations, inputs of blocks, adapters


def deep_dit() -> FramePackDiT:
    return FramePackDiT(replace(CONFIG, num_layers=4, num_single_layers=8))


def fitted(weights_free: int) -> Fit:
    """What is chosen with so many bytes for weights when the inputs of blocks stay on the GPU."""
    dit = deep_dit()
    smallest = WeightSizes.of_model(dit).needed(MOST_TO_SWAP)
    budget = weights_free + WORK + INPUTS + STATES * TRAINED + SLACK

    def trial(fit: Fit) -> int:
        assert fit.swapped == MOST_TO_SWAP
        peak = smallest + WORK + (0 if fit.inputs_to_cpu else INPUTS)
        if peak > budget:
            raise torch.cuda.OutOfMemoryError
        return peak

    return fit_step(dit, budget, TRAINED, trial, CPU)


def test_as_much_stays_on_the_device_as_fits() -> None:
    """The inputs of blocks go only where swapping blocks does not suffice."""
    sizes = WeightSizes.of_model(deep_dit())
    assert fitted(sizes.total) == Fit(0, False)
    assert fitted(sizes.total - 1) == Fit(1, False)
    assert fitted(sizes.needed(3)) == Fit(3, False)
    least = sizes.needed(MOST_TO_SWAP)
    assert least == min(sizes.needed(n) for n in range(MOST_TO_SWAP))
    fit = fitted(least - 1)
    assert fit.inputs_to_cpu and sizes.needed(fit.swapped) < least + INPUTS
    assert fitted(least - INPUTS).inputs_to_cpu
    assert fitted(least - INPUTS - SLACK) == Fit(MOST_TO_SWAP, True)
    with pytest.raises(FramePackError, match=r"gpu_memory: .* but a step needs .* GiB even with"):
        fitted(least - INPUTS - SLACK - 1)


def test_a_run_within_a_budget_trains_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = make_samples(tmp_path / "cache")
    sizes = WeightSizes.of_model(tiny_dit())
    budget = SLACK + min(sizes.needed(n) for n in range(MOST_TO_SWAP + 1))
    seen: list[object] = []

    @contextmanager
    def limited(gib: float | None, _device: torch.device) -> Iterator[int | None]:
        yield gib and budget

    def peak_of(step: Callable[[], object], _device: torch.device) -> int:
        seen.append(step())
        return sizes.needed(MOST_TO_SWAP)

    monkeypatch.setattr(loop, "limited_memory", limited)
    monkeypatch.setattr(loop, "peak_of", peak_of)
    monkeypatch.setattr("framepack_core.training.fitting.STATES", 0)
    plain = run(tiny_config(tmp_path / "plain"), samples)
    assert not seen
    within = run(tiny_config(tmp_path / "within", gpu_memory=1.0), samples)
    assert len(seen) == 1 and "GiB of GPU memory: blocks_to_swap" in capsys.readouterr().out
    assert within.losses == plain.losses
    for a, b in zip(within.adapters.parameters(), plain.adapters.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_step_on_trial_is_of_a_largest_batch(tmp_path: Path) -> None:
    single = make_samples(tmp_path / "single", clips=2)
    pairs = make_samples(tmp_path / "pairs", clips=3, batch_size=2)
    batches = Batches([*single, *pairs], seed=3)
    assert len(batches.pick(batches.largest())) == 2


def test_what_a_budget_cannot_go_with() -> None:
    for given in ({"blocks_to_swap": 3}, {"gradient_checkpointing_cpu_offload": True}):
        with pytest.raises(FramePackError, match="gpu_memory: chooses blocks_to_swap and gradi"):
            validate(TrainConfig, {"gpu_memory": 12.0, **given}, "x")
    with pytest.raises(FramePackError, match="gpu_memory: needs gradient_checkpointing"):
        validate(TrainConfig, {"gpu_memory": 12.0, "gradient_checkpointing": False}, "x")
    with (
        pytest.raises(FramePackError, match="cpu has no memory of its own"),
        limited_memory(1, CPU),
    ):
        pass


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_limit_of_a_gpu_is_kept() -> None:
    device = torch.device("cuda", 0)
    with limited_memory(1.0, device) as budget:
        assert budget == GIB
        with pytest.raises(torch.cuda.OutOfMemoryError):
            torch.empty(2 * GIB, dtype=torch.uint8, device=device)
    torch.empty(2 * GIB, dtype=torch.uint8, device=device)


def test_the_step_on_trial_sees_all_that_others_may_see(tmp_path: Path) -> None:
    """F1 with its end frame, which makes the context longer, however seldom it is shown."""
    seen: list[int] = []

    class Denoiser(FlowDenoiser):
        def loss(self, *args, context, **kwargs):
            seen.append(context.clean.shape[2])
            return super().loss(*args, context=context, **kwargs)

    samples = make_samples(tmp_path / "cache", mode="f1", ends=True)
    config = tiny_config(tmp_path, mode="f1", end_frame_prob=1e-6)
    objective = Objective(config, Denoiser(tiny_dit()), Batches(samples), CPU)
    objective.loss(0)
    objective.loss(0, whole=True)
    assert seen == [2, 3]
