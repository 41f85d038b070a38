"""`framepack lora inspect`: what LoRA files are, and what of them fits the transformer."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from ..headless.models import find_models
from ..lora.files import inspect_lora
from ..lora.names import Shapes
from ..models.build import dit_config, dit_shapes
from ..models.dit import DiTConfig
from ..runtime.display import say
from ..runtime.errors import FramePackError


def run(args: Namespace) -> None:
    """Print a report of each file; raise if one of them cannot be applied."""
    shapes = dit_shapes(_config(args))
    refused = [path for path in args.file if not _report(path, shapes)]
    if refused:
        raise FramePackError(
            f"{len(refused)} of {len(args.file)} files cannot be applied: {', '.join(refused)}"
        )


def _config(args: Namespace) -> DiTConfig:
    """The model to compare with: the one that was named, else the released one."""
    if not (args.dit or args.snapshot):
        return DiTConfig()
    return dit_config(find_models(args, ["dit"])["dit"])


def _report(path: str, shapes: Shapes) -> bool:
    """Print what a file is; whether it can be applied."""
    try:
        report = inspect_lora(Path(path), shapes)
    except FramePackError as error:
        say(f"LoRA {Path(path).name}\n  cannot be read: {error}")
        return False
    say(report.describe())
    return report.problem is None
