"""`framepack lora inspect`: what LoRA files are, and what of them fits the transformer."""

from __future__ import annotations

from pathlib import Path

from ..headless.model_files import find_models
from ..lora.files import inspect_lora
from ..lora.names import Shapes
from ..models.build import dit_config, dit_shapes
from ..models.dit import DiTConfig
from ..runtime.display import say
from ..runtime.errors import FramePackError
from .commands import Inspect, NamedTransformer


def run(command: Inspect) -> None:
    """Print a report of each file; raise if one of them cannot be applied."""
    shapes = dit_shapes(_config(command.transformer))
    refused = [str(path) for path in command.file if not _report(path, shapes)]
    if refused:
        raise FramePackError(
            f"{len(refused)} of {len(command.file)} files cannot be applied: {', '.join(refused)}"
        )


def _config(transformer: NamedTransformer) -> DiTConfig:
    """The model to compare with: the one that was named, else the released one."""
    if not (transformer.dit or transformer.snapshot):
        return DiTConfig()
    return dit_config(find_models(transformer, ["dit"], transformer.f1)["dit"])


def _report(path: Path, shapes: Shapes) -> bool:
    """Print what a file is; whether it can be applied."""
    try:
        report = inspect_lora(path, shapes)
    except FramePackError as error:
        say(f"LoRA {path.name}\n  cannot be read: {error}")
        return False
    say(report.describe())
    return report.problem is None
