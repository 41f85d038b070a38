"""Learning rates as functions of the step, and optimisers by name."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..runtime.errors import FramePackError
from .config import OPTIMIZERS, Scheduler, TrainConfig

RESTARTS = 4
POWER = 2.0
DEFAULTS: dict[str, dict[str, Any]] = {
    # The learning rate is ours to schedule.
    "adafactor": {"relative_step": False, "scale_parameter": False, "warmup_init": False},
}


def rate_factor(scheduler: Scheduler, step: int, total: int, warmup: float = 0) -> float:
    """What the learning rate of a step, 0 first, is multiplied with."""
    warmup = round(warmup * total) if warmup < 1 else int(warmup)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if scheduler == "linear":
        return 1 - done
    if scheduler == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    if scheduler == "cosine_with_restarts":
        return 0.5 * (1 + math.cos(math.pi * (done * RESTARTS % 1)))
    if scheduler == "polynomial":
        return (1 - done) ** POWER
    if scheduler == "rex":  # arXiv 2107.04197
        return (1 - done) / (0.5 + 0.5 * (1 - done))
    return 1.0


def learning_rates(config: TrainConfig, total: int) -> Callable[[int], float]:
    """The learning rate of an update, 0 first, of `total`."""
    rate = config.learning_rate
    if config.scheduler_type:
        factor = library_rates(config.scheduler_type, config.scheduler_args)
        return lambda step: rate * factor(step)
    return lambda step: rate * rate_factor(config.scheduler, step, total, config.warmup)


def make_optimizer(
    name: str, parameters: Iterable[nn.Parameter], rate: float, args: Mapping[str, Any]
) -> Optimizer:
    """An optimiser by short name or by class path such as "torch.optim.SGD".

    Raises FramePackError naming the package to install, or the argument that does not fit.
    """
    path, package = OPTIMIZERS.get(name.lower(), (name, name.partition(".")[0]))
    if "." not in path:
        raise FramePackError(
            f"optimizer: {name!r} is unknown; use {', '.join(OPTIMIZERS)} or a class path such as "
            "torch.optim.SGD"
        )
    kind = _import(path, package, "optimizer")
    try:
        return kind(list(parameters), lr=rate, **{**DEFAULTS.get(name.lower(), {}), **args})
    except (TypeError, ValueError) as error:
        raise FramePackError(f"optimizer_args: {name} does not take them ({error})") from None


def set_mode(optimizer: Optimizer, *, training: bool) -> None:
    """Schedule-free optimisers keep two sets of weights, one to train and one to use."""
    change = getattr(optimizer, "train" if training else "eval", None)
    if change is not None:
        change()


@contextmanager
def weights_in_use(optimizer: Optimizer) -> Iterator[None]:
    """The set of weights that is to be used, between updates."""
    set_mode(optimizer, training=False)
    try:
        yield
    finally:
        set_mode(optimizer, training=True)


def library_rates(path: str, args: Mapping[str, Any]) -> Callable[[int], float]:
    """As `rate_factor`, by a scheduler of torch's kind that counts steps, named by class path.

    It runs beside an optimiser of its own, from the first step on, so that nothing of it needs to
    be saved.
    """
    kind = _import(path, path.partition(".")[0], "lr_scheduler_type")
    dummy = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    factors: list[float] = []

    def factor(step: int) -> float:
        while len(factors) <= step:
            factors.append(dummy.param_groups[0]["lr"])
            dummy.step()
            scheduler.step()
        return factors[step]

    try:
        scheduler = kind(dummy, **args)
        factor(1)  # or one whose steps need more than their number would fail in the training
    except (TypeError, ValueError) as error:
        raise FramePackError(f"lr_scheduler_args: {path} does not take them ({error})") from None
    return factor


def _import(path: str, package: str, what: str) -> Any:
    """The class of a dotted path."""
    module, _, attribute = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, ValueError) as error:
        raise FramePackError(
            f"{what}: {path} needs the package {package} ({error}); run: pip install {package}"
        ) from None
    except AttributeError:
        raise FramePackError(f"{what}: {module} has no {attribute}; check the name") from None
