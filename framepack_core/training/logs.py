"""Loss and rate for TensorBoard and Weights & Biases, under the names of musubi-tuner's logs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from ..runtime.display import Display
from ..runtime.errors import FramePackError
from .loop import StepReport

Log = Callable[[StepReport], None]


def scalars(report: StepReport) -> dict[str, float]:
    """What is logged of an update."""
    values = {
        "loss/current": report.loss,
        "lr/unet": report.rate,
        "grad_norm": report.grad_norm,
        "loss/validation": report.validation,
    }
    return {name: value for name, value in values.items() if value is not None}


@contextmanager
def tensorboard(folder: Path) -> Iterator[Log]:
    """What an `on_step` calls; raises FramePackError where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise _missing("tensorboard") from None
    with SummaryWriter(str(folder)) as writer:

        def log(report: StepReport) -> None:
            for name, value in scalars(report).items():
                writer.add_scalar(name, value, report.step)
            writer.flush()

        yield log


@contextmanager
def wandb(folder: Path) -> Iterator[Log]:
    """Likewise; a run of the project "framepack" by the folder's name."""
    try:
        import wandb as client
    except ImportError:
        raise _missing("wandb") from None
    folder.mkdir(parents=True, exist_ok=True)
    with client.init(project="framepack", name=folder.name, dir=str(folder)) as run:
        yield lambda report: run.log(scalars(report), step=report.step)


LOGGERS: dict[str, Callable[[Path], AbstractContextManager[Log]]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
}


@contextmanager
def open_log(name: str, folder: Path) -> Iterator[Log]:
    """One of LOGGERS as a display; raises FramePackError only where its package is missing."""
    shown, stack = Display(f"logging to {name}"), ExitStack()
    log: Log = lambda _report: None  # noqa: E731
    try:
        log = stack.enter_context(LOGGERS[name](folder))
    except FramePackError:
        raise
    except Exception as error:
        shown.report(error)

    def show(report: StepReport) -> None:
        with shown:
            log(report)

    try:
        yield show
    finally:
        with shown:
            stack.__exit__(*sys.exc_info())  # W&B marks a run that was ended by an error


def _missing(package: str) -> FramePackError:
    return FramePackError(f"log_with: {package} is not installed; run: pip install {package}")
