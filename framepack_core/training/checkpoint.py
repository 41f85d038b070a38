"""Everything a stopped run resumes from, in one file that is there whole or not at all."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from ..runtime.errors import FramePackError
from ..runtime.files import atomic_path, is_file, is_folder
from ..runtime.options import merged, mutable_on_resume
from .adapters import Adapters
from .config import TrainConfig

STATE_FORMAT = 1
# What states of version 0.1 call settings that have another name now.
RENAMED = {
    "accumulation": "gradient_accumulation_steps",
    "end_frame": "end_frame_prob",
    "own_numbers": "quantized_matmul",
}
# What settings that are digests stand for, and how a resumed run gets the same again.
DIGESTS = {
    "base": "another base model; load the one that it was trained on, with the same LoRAs",
    "data": "other clips; put them back as they were",
}


@dataclass
class Progress:
    """How far a run is: updates done, and a record of each."""

    step: int = 0
    log: list[dict[str, float]] = field(default_factory=list)


def save_state(
    path: Path,
    progress: Progress,
    adapters: Adapters,
    optimizer: Optimizer,
    settings: dict[str, Any],
) -> None:
    """Write a run's state."""
    state = {
        "format": STATE_FORMAT,
        "step": progress.step,
        "log": progress.log,
        "adapter": {name: p.detach().cpu() for name, p in adapters.named_tensors().items()},
        "optimizer": optimizer.state_dict(),
        "settings": json.dumps(settings, default=str),
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_state(
    path: Path, adapters: Adapters, optimizer: Optimizer, settings: dict[str, Any]
) -> Progress:
    """Take a run's state over; raises FramePackError if it is of another run or damaged."""
    state, earlier = _read_state(path)
    _check_settings(path, earlier, json.loads(json.dumps(settings, default=str)))
    adapters.load_tensors(state["adapter"])
    optimizer.load_state_dict(state["optimizer"])
    return Progress(state["step"], state["log"])


def seed_of_state(path: Path) -> int:
    """The seed of the run that a state is of; raises FramePackError if it is none."""
    return int(_read_state(path)[1]["seed"])


def require_state(path: Path) -> None:
    """Raise FramePackError where there is no file to resume from."""
    if is_folder(path):
        raise FramePackError(
            f"{path} is a folder, as musubi-tuner's states are, which cannot be resumed here; "
            "train its LoRA further with --network_weights"
        )
    if not is_file(path):
        raise FramePackError(
            f"{path} is not there: there is nothing to resume; start without resume, or give the "
            "output_dir and output_name of the run"
        )


def _read_state(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a file holds, and of it the settings by their names now."""
    require_state(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["format"] != STATE_FORMAT:
            raise FramePackError(f"{path} is of another version; start without resume")
        return state, _with_current_names(json.loads(state["settings"]))
    except (RuntimeError, KeyError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FramePackError(
            f"{path} is damaged ({reason}); train on from the last adapter file instead"
        ) from None


def _with_current_names(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a state; one that it does not know yet had what is the default now."""
    defaults = TrainConfig().model_dump(mode="json")
    return merged(defaults, {RENAMED.get(name, name): value for name, value in settings.items()})


def _check_settings(path: Path, earlier: dict[str, Any], now: dict[str, Any]) -> None:
    for name in sorted((set(earlier) | set(now)) - mutable_on_resume(TrainConfig)):
        was, given = earlier.get(name), now.get(name)
        if was != given:
            wrong = DIGESTS.get(name, f"{name} = {was}, not {given}; set it back")
            raise FramePackError(
                f"resume: {path} was trained with {wrong}, or start a new run under another "
                "output_name"
            )


def write_log(path: Path, log: list[dict[str, float]]) -> None:
    """The whole log as lines of JSON."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in log), encoding="utf-8")


def append_log(path: Path, entry: dict[str, float]) -> None:
    """One more line, the first of a folder's files if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
