"""Loss and rate for TensorBoard and Weights & Biases, under the names of musubi-tuner's logs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from ..parsing.json_toml import read_table
from ..runtime.display import Display
from ..runtime.errors import FramePackError
from .config import TrainConfig
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
def tensorboard(config: TrainConfig) -> Iterator[Log]:
    """What an `on_step` calls; raises FramePackError where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise _missing("tensorboard") from None
    with SummaryWriter(str(_folder(config) / config.log_tracker_name)) as writer:
        if config.log_config:
            writer.add_text("config", json.dumps(config.shared, default=str, indent=2))

        def log(report: StepReport) -> None:
            for name, value in scalars(report).items():
                writer.add_scalar(name, value, report.step)
            writer.flush()

        yield log


@contextmanager
def wandb(config: TrainConfig) -> Iterator[Log]:
    """Likewise."""
    try:
        import wandb as client
    except ImportError:
        raise _missing("wandb") from None
    folder, key = _folder(config), config.wandb_api_key
    more = {} if config.log_tracker_config is None else read_table(config.log_tracker_config)
    folder.mkdir(parents=True, exist_ok=True)
    if key is not None:
        client.login(key=key.get_secret_value())
    given = {
        "project": config.log_tracker_name or "framepack",
        "name": config.wandb_run_name or folder.name,
        "dir": str(folder),
        "config": config.shared if config.log_config else None,
        **more.get("wandb", {}),
    }
    with client.init(**given) as run:
        yield lambda report: run.log(scalars(report), step=report.step)


def _folder(config: TrainConfig) -> Path:
    """Where a run's logs are."""
    folder = config.logging_dir or config.output_dir / "logs"
    return folder / f"{config.log_prefix}{config.output_name}"


LOGGERS: dict[str, Callable[[TrainConfig], AbstractContextManager[Log]]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
}


@contextmanager
def open_log(name: str, config: TrainConfig) -> Iterator[Log]:
    """One of LOGGERS as a display; raises FramePackError only for what a user can fix."""
    shown, stack = Display(f"logging to {name}"), ExitStack()
    log: Log = lambda _report: None  # noqa: E731
    try:
        log = stack.enter_context(LOGGERS[name](config))
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
