"""What stops a broken run, and what says how far a good one has drifted."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tiny import randn
from torch import Tensor

from framepack_core.models.attention import sdpa
from framepack_core.runtime.errors import FramePackError
from framepack_core.sampling.generate import generate
from framepack_core.sampling.sanity_checks import check_attention, check_output, measure_drift
from framepack_core.sampling.sections import plan_f1

CPU = torch.device("cpu")
START = randn(1, 16, 1, 4, 4, seed=3)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (lambda x: x.fill_(torch.nan), "values that are not finite; try another precision"),
        (lambda x: x.index_fill_(2, torch.tensor(1), torch.inf), "values that are not finite"),
        (lambda x: x.fill_(0.7), "same value everywhere, .* LoRA far too strong"),
    ],
)
def test_a_broken_section_stops_the_run_and_is_named(broken, reason) -> None:
    """It is the second one made, so the first one passes."""

    def sample(task) -> Tensor:
        return broken(task.noise.clone()) if task.order == 1 else task.noise

    with pytest.raises(FramePackError, match=f"section 1: the model returned .*{reason}"):
        generate(plan_f1(3, 2), sample, START, 1)


def test_one_plain_channel_is_no_constant() -> None:
    latents = torch.zeros(1, 16, 2, 4, 4)
    latents[:, 3] = 1
    check_output(latents, "section 0")


def noisy(error: float, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    out = sdpa(q, k, v, mask)
    return out + error * out.std() * randn(*out.shape, seed=5)


def test_attention_may_round_but_not_be_another() -> None:
    check = partial(check_attention, name="fast", device=CPU, dtype=torch.float32)
    check(sdpa)
    check(partial(noisy, 0.05))

    def transposed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return sdpa(q, v, k, mask)

    def unsupported(*_tensors: Tensor | None) -> Tensor:
        raise RuntimeError("no kernel image is available\nmore")

    for wrong, reason in (
        (partial(noisy, 0.3), "differ from PyTorch's by 30 %"),
        (partial(noisy, torch.nan), "differ from PyTorch's by nan %"),
        (transposed, "differ from PyTorch's by 1"),
        (unsupported, r"fails on this cpu in torch.float32 \(no kernel image is available\)"),
    ):
        with pytest.raises(FramePackError, match=f"attention fast: .*{reason}.*; use another"):
            check(wrong)


def test_drift_is_that_of_channel_means_and_contrast() -> None:
    """A section that is the start frame shifted by one standard deviation and twice as strong."""
    start = torch.randn(1, 4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    mean = start.mean(dim=(3, 4), keepdim=True)
    section = (mean + 2 * (start - mean) + 1).expand(-1, -1, 3, -1, -1)
    drift = measure_drift(section, start)
    assert drift.colour == pytest.approx(1, abs=0.02)
    assert drift.contrast == pytest.approx(2, abs=0.01)
    same = measure_drift(start.expand(-1, -1, 3, -1, -1), start)
    assert (same.colour, same.contrast) == (pytest.approx(0, abs=1e-6), pytest.approx(1))
    assert str(drift) == f"colour {drift.colour:.2f}, contrast x{drift.contrast:.2f}"
