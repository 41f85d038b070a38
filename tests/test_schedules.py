"""Learning rates and optimizers: musubi-tuner's names against the functions that it calls."""

from __future__ import annotations

from inspect import signature
from typing import Any

import pytest
import torch
from torch import nn
from transformers import optimization

from framepack_core.runtime.errors import FramePackError
from framepack_core.training.config import OptimizerOptions
from framepack_core.training.optimizers import make_optimizer
from framepack_core.training.schedules import learning_rates, library_rates, rate_factor

TOTAL, WARMUP, RATE = 60, 6, 2e-4


def options(scheduler: str, **given: Any) -> OptimizerOptions:
    return OptimizerOptions(scheduler=scheduler, learning_rate=RATE, **given)


@pytest.mark.parametrize(
    ("scheduler", "given", "function", "theirs"),
    [
        ("linear", {}, "get_linear_schedule_with_warmup", {}),
        ("cosine", {}, "get_cosine_schedule_with_warmup", {}),
        (
            "cosine",
            {"scheduler_args": {"num_cycles": 1.5}},
            "get_cosine_schedule_with_warmup",
            {"num_cycles": 1.5},
        ),
        (
            "cosine_with_restarts",
            {"cycles": 3},
            "get_cosine_with_hard_restarts_schedule_with_warmup",
            {"num_cycles": 3},
        ),
        (
            "polynomial",
            {"power": 1.5},
            "get_polynomial_decay_schedule_with_warmup",
            {"power": 1.5},
        ),
        (
            "cosine_with_min_lr",
            {"cycles": 3, "min_ratio": 0.2},
            "get_cosine_with_min_lr_schedule_with_warmup",
            {"num_cycles": 1.5, "min_lr_rate": 0.2},
        ),
        ("inverse_sqrt", {"timescale": 9}, "get_inverse_sqrt_schedule", {"timescale": 9}),
        (
            "warmup_stable_decay",
            {"decay": 20, "min_ratio": 0.1},
            "get_wsd_schedule",
            {"num_decay_steps": 20, "min_lr_ratio": 0.1},
        ),
    ],
)
def test_rates_are_those_of_transformers_after_the_warmup(
    scheduler: str, given: dict[str, Any], function: str, theirs: dict[str, Any]
) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=RATE)
    lengths = {} if scheduler == "inverse_sqrt" else {"num_training_steps": TOTAL}
    make = getattr(optimization, function)
    if missing := {**lengths, **theirs}.keys() - signature(make).parameters.keys():
        pytest.skip(f"this transformers' {function} has no {', '.join(missing)}")
    schedule = make(optimizer, num_warmup_steps=WARMUP, **lengths, **theirs)
    expected = []
    for _ in range(TOTAL):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    rate = learning_rates(options(scheduler, warmup=WARMUP, **given), TOTAL)
    assert [rate(step) for step in range(WARMUP, TOTAL)] == pytest.approx(expected[WARMUP:])


def test_the_warmup_rises_in_equal_steps_and_may_be_a_share_of_all() -> None:
    found = [rate_factor(options("constant", warmup=4), step, 10) for step in range(5)]
    assert found == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rate_factor(options("linear", warmup=0.1), 55, 100) == pytest.approx(0.5)


def test_our_own_defaults() -> None:
    assert rate_factor(options("cosine_with_restarts"), 25, 100) == 1.0
    assert rate_factor(options("polynomial"), 50, 100) == pytest.approx(0.25, abs=1e-3)


def test_rex_by_its_formula() -> None:
    """Half of the run is left: 0.5 / (0.1 + 0.9 * 0.5), above a floor of a hundredth."""
    half = 0.5 / 0.55
    assert rate_factor(options("rex"), 50, 100) == pytest.approx(0.01 + 0.99 * half)
    given = options("rex", min_ratio=0.0, scheduler_args={"rex_alpha": 0.5, "rex_beta": 0.5})
    assert rate_factor(given, 50, 100) == pytest.approx(2 / 3)


def test_piecewise_rules() -> None:
    given = options("piecewise_constant", scheduler_args={"step_rules": "1:10,0.1:20,0.01"})
    found = [rate_factor(given, step, 100) for step in (0, 9, 10, 19, 20, 99)]
    assert found == [1, 1, 0.1, 0.1, 0.01, 0.01]


@pytest.mark.parametrize(
    ("scheduler", "args", "message"),
    [
        ("cosine_with_min_lr", {}, "give --lr_scheduler_min_lr_ratio"),
        ("piecewise_constant", {}, "step_rules"),
        ("linear", {"power": 2}, "linear does not take them .*unexpected keyword argument 'power'"),
        ("warmup_stable_decay", {"decay_type": "steep"}, "decay_type is one of cosine, linear"),
    ],
)
def test_arguments_that_a_scheduler_does_not_take(
    scheduler: str, args: dict[str, Any], message: str
) -> None:
    given = options(scheduler, scheduler_args=args, decay=0.5)
    with pytest.raises(FramePackError, match=message):
        learning_rates(given, 10)


def test_rates_of_a_library() -> None:
    args = {"step_size": 2, "gamma": 0.1}
    for path in ("torch.optim.lr_scheduler.StepLR", "StepLR"):
        rate = library_rates(path, args, RATE)
        assert rate(5) == pytest.approx(0.01 * RATE)  # out of order, as after resuming
        assert [rate(step) for step in range(3)] == pytest.approx([RATE, RATE, 0.1 * RATE])
    given = OptimizerOptions(
        scheduler_type="CosineAnnealingLR",
        scheduler_args={"T_max": 10, "eta_min": 1e-5},
        learning_rate=RATE,
    )
    assert learning_rates(given, 99)(10) == pytest.approx(1e-5)
    with pytest.raises(FramePackError, match="lr_scheduler_type: torch has no StepLR"):
        library_rates("torch.StepLR", {}, RATE)
    with pytest.raises(FramePackError, match=r"lr_scheduler_args: .* does not take them"):
        library_rates("StepLR", {"size": 2}, RATE)


def made(optimizer: str, **given: Any) -> torch.optim.Optimizer:
    found = OptimizerOptions(optimizer=optimizer, learning_rate=RATE, **given)
    return make_optimizer(found, [nn.Parameter(torch.zeros(2, 2))])


def test_optimizers_by_any_kind_of_name() -> None:
    assert type(made("AdamW")) is torch.optim.AdamW
    assert type(made("SGD")) is torch.optim.SGD
    path = "torch.optim.radam.RAdam"
    radam = made(path, optimizer_args={"betas": (0.9, 0.99)})
    assert type(radam) is torch.optim.RAdam
    [group] = radam.param_groups
    assert (group["lr"], group["betas"]) == (RATE, (0.9, 0.99))
    with pytest.raises(FramePackError, match="optimizer: 'lion' is unknown; use adamw, "):
        made("lion")


def test_adafactor_follows_the_schedule_or_finds_its_rate_itself() -> None:
    def group(**given: Any) -> dict[str, Any]:
        return made("AdaFactor", **given).param_groups[0]

    plain = group()
    assert (plain["lr"], plain["relative_step"], plain["scale_parameter"]) == (RATE, False, False)
    for given in ({"scheduler": "adafactor"}, {"optimizer_args": {"relative_step": True}}):
        own = group(**given)
        assert (own["lr"], own["relative_step"], own["scale_parameter"]) == (None, True, True)
    with pytest.raises(ValueError, match="lr_scheduler adafactor: needs the optimizer adafactor"):
        options("adafactor")
