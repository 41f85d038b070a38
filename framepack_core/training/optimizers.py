"""Optimisers by name, and the sets of weights that some of them keep."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import Optimizer

from ..runtime.errors import FramePackError
from .config import ADAFACTOR, OPTIMIZERS, OptimizerOptions

# The learning rate is ours to schedule, unless it is left to Adafactor itself.
RATE_GIVEN = {"relative_step": False, "scale_parameter": False, "warmup_init": False}


def make_optimizer(options: OptimizerOptions, parameters: Iterable[Any]) -> Optimizer:
    """An optimiser of parameters or groups of them, by short name, torch's name or class path.

    Raises FramePackError naming the package to install, or the argument that does not fit.
    """
    name, args = options.optimizer, options.optimizer_args
    own, package = OPTIMIZERS.get(name.lower(), (name, name.partition(".")[0]))
    path = own if "." in own else f"torch.optim.{own}"
    if "." not in own and not hasattr(torch.optim, own):
        raise FramePackError(
            f"optimizer: {name!r} is unknown; use {', '.join(OPTIMIZERS)} or a class path such as "
            "torch.optim.SGD"
        )
    kind = import_class(path, package, "optimizer")
    given: dict[str, Any] = {"lr": options.learning_rate, **args}
    if name.lower() == ADAFACTOR:
        given = _adafactor(options)
    try:
        return kind(list(parameters), **given)
    except (TypeError, ValueError) as error:
        raise FramePackError(f"optimizer_args: {name} does not take them ({error})") from None


def _adafactor(options: OptimizerOptions) -> dict[str, Any]:
    """Its arguments; with a relative step it finds the rate itself, as in musubi-tuner."""
    args = options.optimizer_args
    relative = args.get("relative_step", options.scheduler == ADAFACTOR) or args.get("warmup_init")
    if relative:
        return {**args, "lr": None, "relative_step": True}
    return {"lr": options.learning_rate, **RATE_GIVEN, **args}


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


def import_class(path: str, package: str, what: str) -> Any:
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
