"""Loss and rate for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..runtime.errors import FramePackError
from .loop import StepReport


def tensorboard_logger(folder: Path) -> Callable[[StepReport], None]:
    """What an `on_step` calls; names are those of musubi-tuner's logs."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise FramePackError(
            "log_with: TensorBoard is not installed; run: pip install tensorboard"
        ) from None
    writer = SummaryWriter(str(folder))

    def log(report: StepReport) -> None:
        writer.add_scalar("loss/current", report.loss, report.step)
        writer.add_scalar("lr/unet", report.rate, report.step)
        writer.add_scalar("grad_norm", report.grad_norm, report.step)
        if report.validation is not None:
            writer.add_scalar("loss/validation", report.validation, report.step)
        writer.flush()

    return log
