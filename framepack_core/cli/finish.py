"""`framepack finish`: runs end after the section in progress, each with a whole video."""

from __future__ import annotations

from ..runtime.display import say
from ..runtime.errors import FramePackError
from ..runtime.files import is_folder
from ..sampling.ledger import Ledger
from .commands import Finish


def run(command: Finish) -> None:
    """Ask the runs that keep their sections in a ledger to end."""
    folder = command.ledger_folder
    if not is_folder(folder):
        raise FramePackError(
            f"ledger {folder}: no such folder, so no run keeps its sections there; name --ledger "
            "or --save_path as the run does"
        )
    Ledger(folder).finish()
    say(f"runs that keep their sections in {folder} finish after the section in progress")
