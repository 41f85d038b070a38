"""`framepack generate`: an image and a prompt to a video or an edited frame."""

from __future__ import annotations

from functools import partial

from ..headless.crew import together
from ..headless.encodings import Encodings
from ..headless.jobs import Job, make
from ..headless.models import Models
from ..headless.request import decide
from . import batch, decode, interactive
from .commands import Generate


def run(command: Generate) -> None:
    """Make what the options ask for and print where it is."""
    if command.latent_path:
        decode.run(command)
    elif command.from_file:
        batch.run(command)
    elif command.interactive:
        interactive.run(command)
    else:
        together(command, partial(_make, command))


def _make(command: Generate, models: Models) -> None:
    encodings = Encodings(models.device, command.prompt.custom_system_prompt)
    make(Job.prepare(decide(command)), models, encodings)
