"""`framepack ledger`: what is kept of finished sections, and less of it."""

from __future__ import annotations

from argparse import Namespace

from ..runtime.display import say
from ..runtime.errors import FramePackError
from ..runtime.files import is_folder
from ..sampling.ledger import FOLDER, Ledger


def run(args: Namespace) -> None:
    """List the kept sections, or remove those longest unused until the limit holds."""
    folder = args.ledger or args.save_path / FOLDER
    if not is_folder(folder):
        raise FramePackError(f"ledger {folder}: no such folder; name --ledger or --save_path")
    ledger = Ledger(folder) if args.limit is None else Ledger(folder, int(args.limit * 10**9))
    if args.action == "prune":
        say(f"{ledger.prune()} sections removed")
    say(ledger.describe())
