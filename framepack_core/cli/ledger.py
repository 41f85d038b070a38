"""`framepack ledger`: what is kept of finished sections, and less of it."""

from __future__ import annotations

from ..runtime.display import say
from ..runtime.errors import FramePackError
from ..runtime.files import is_folder
from ..sampling.ledger import Ledger
from .commands import Ledgers


def run(command: Ledgers) -> None:
    """List the kept sections, or remove those longest unused until the limit holds."""
    folder, limit = command.ledger_folder, command.limit
    if not is_folder(folder):
        raise FramePackError(f"ledger {folder}: no such folder; name --ledger or --save_path")
    ledger = Ledger(folder) if limit is None else Ledger(folder, int(limit * 10**9))
    if command.action == "prune":
        say(f"{ledger.prune()} sections removed")
    say(ledger.describe())
