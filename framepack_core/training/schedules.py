"""Learning rates as functions of the step: those of musubi-tuner by name, others by class path."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..runtime.errors import FramePackError
from .config import OptimizerOptions, Scheduler
from .optimizers import import_class

REX_FLOOR = 0.01


@dataclass(frozen=True)
class _Moment:
    """A step of a run, of which `since` come after the warmup of a run that has `left` then."""

    step: int
    since: int
    left: int
    rate: float

    @property
    def done(self) -> float:
        return self.since / max(1, self.left)


def _constant(_now: _Moment) -> float:
    return 1.0


def _linear(now: _Moment) -> float:
    return 1 - now.done


def _cosine(now: _Moment, num_cycles: float = 0.5) -> float:
    return _wave(2 * num_cycles * now.done)


def _restarts(now: _Moment, num_cycles: int = 4) -> float:
    return _wave(now.done * num_cycles % 1)


def _cosine_to_floor(
    now: _Moment, half_waves: int = 1, ratio: float | None = None, min_lr: float | None = None
) -> float:
    if ratio is None and min_lr is None:
        raise ValueError("give --lr_scheduler_min_lr_ratio")
    floor = ratio if ratio is not None else (min_lr or 0.0) / now.rate
    return _above(floor, _wave(half_waves * now.done))


def _polynomial(now: _Moment, power: float = 2.0, lr_end: float = 1e-7) -> float:
    return _above(lr_end / now.rate, (1 - now.done) ** power)


def _rex(
    now: _Moment, ratio: float = REX_FLOOR, rex_alpha: float = 0.1, rex_beta: float = 0.9
) -> float:
    """arXiv 2107.04197 with musubi-tuner's constants."""
    left = 1 - now.done
    return _above(ratio, left / (rex_alpha + rex_beta * left))


def _inverse_sqrt(now: _Moment, timescale: int | None = None) -> float:
    scale = timescale or now.step - now.since or 10_000
    return (scale / (now.since + scale)) ** 0.5


def _stable(
    now: _Moment,
    decay: float = 0.0,
    half_waves: int = 1,
    ratio: float = 0.0,
    decay_type: str = "cosine",
) -> float:
    shapes: dict[str, Callable[[float], float]] = {
        "cosine": lambda done: _wave(half_waves * done),
        "linear": lambda done: 1 - done,
        "1-sqrt": lambda done: 1 - done**0.5,
    }
    if decay_type not in shapes:
        raise ValueError(f"decay_type is one of {', '.join(shapes)}")
    length = _steps(decay, now.step - now.since + now.left)
    into = now.since - (now.left - length)
    return 1.0 if into < 0 else _above(ratio, shapes[decay_type](into / max(1, length)))


def _piecewise(now: _Moment, step_rules: str) -> float:
    """Rules are value:step, up to which it holds, with commas between, and the last value alone."""
    *rules, last = str(step_rules).split(",")
    pairs = (rule.split(":") for rule in rules)
    bounds = sorted((int(step), float(factor)) for factor, step in pairs)
    return next((factor for step, factor in bounds if now.step < step), float(last))


def _wave(turns: float) -> float:
    """From 1 at 0 down to 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * turns))


def _above(floor: float, factor: float) -> float:
    return floor + (1 - floor) * max(0.0, factor)


# The factor of a moment, and the options that its keywords are filled with.
SCHEDULES: dict[Scheduler, tuple[Callable[..., float], dict[str, str]]] = {
    "constant": (_constant, {}),
    "constant_with_warmup": (_constant, {}),
    "linear": (_linear, {}),
    "cosine": (_cosine, {}),
    "cosine_with_restarts": (_restarts, {"num_cycles": "cycles"}),
    "polynomial": (_polynomial, {"power": "power"}),
    "rex": (_rex, {"ratio": "min_ratio"}),
    "cosine_with_min_lr": (_cosine_to_floor, {"half_waves": "cycles", "ratio": "min_ratio"}),
    "inverse_sqrt": (_inverse_sqrt, {"timescale": "timescale"}),
    "warmup_stable_decay": (
        _stable,
        {"decay": "decay", "half_waves": "cycles", "ratio": "min_ratio"},
    ),
    "piecewise_constant": (_piecewise, {}),
    "adafactor": (_constant, {}),
}


def rate_factor(options: OptimizerOptions, step: int, total: int) -> float:
    """What the learning rate of a step, 0 first, is multiplied with."""
    warmup = _steps(options.warmup, total)
    if step < warmup:
        return (step + 1) / warmup
    factor, filled = SCHEDULES[options.scheduler]
    values = {keyword: getattr(options, name) for keyword, name in filled.items()}
    given = {keyword: value for keyword, value in values.items() if value is not None}
    now = _Moment(step, step - warmup, total - warmup, options.learning_rate)
    try:
        return factor(now, **{**given, **options.scheduler_args})
    except (TypeError, ValueError) as error:
        reason = str(error).replace(f"{factor.__name__}()", options.scheduler)
        raise FramePackError(
            f"lr_scheduler_args: {options.scheduler} does not take them ({reason})"
        ) from None


def learning_rates(options: OptimizerOptions, total: int) -> Callable[[int], float]:
    """The learning rate of an update, 0 first, of `total`.

    Raises FramePackError for arguments that the scheduler does not take.
    """
    if options.scheduler_type:
        path, args = options.scheduler_type, options.scheduler_args
        return library_rates(path, args, options.learning_rate)
    rate_factor(options, total - 1, total)
    return lambda step: options.learning_rate * rate_factor(options, step, total)


def library_rates(path: str, args: Mapping[str, Any], rate: float) -> Callable[[int], float]:
    """As `learning_rates`, by a scheduler of torch's kind that counts steps.

    path: of its class; a name alone is one of torch's. It runs beside an optimiser of its own, from
    the first step on, so that nothing of it needs to be saved.
    """
    path = path if "." in path else f"torch.optim.lr_scheduler.{path}"
    kind = import_class(path, path.partition(".")[0], "lr_scheduler_type")
    dummy = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)
    rates: list[float] = []

    def rate_of(step: int) -> float:
        while len(rates) <= step:
            rates.append(dummy.param_groups[0]["lr"])
            dummy.step()
            scheduler.step()
        return rates[step]

    try:
        scheduler = kind(dummy, **args)
        rate_of(1)  # or one whose steps need more than their number would fail in the training
    except (TypeError, ValueError) as error:
        raise FramePackError(f"lr_scheduler_args: {path} does not take them ({error})") from None
    return rate_of


def unused_options(options: OptimizerOptions) -> set[str]:
    """Names of options of other schedulers than the one that is chosen."""
    of = {name: set(filled.values()) for name, (_, filled) in SCHEDULES.items()}
    own = set() if options.scheduler_type else of[options.scheduler]
    return set().union(*of.values()) - own


def _steps(length: float, total: int) -> int:
    """Steps that are given as such, or below 1 as a share of all."""
    return round(length * total) if length < 1 else int(length)
