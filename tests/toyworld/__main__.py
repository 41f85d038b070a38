"""One program of the workshop: `python tests/toyworld NAME ...`, such as `evaluate --cases 64`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

PROGRAMS = (
    *("make", "pretrain", "train_lora", "train_f1_end", "train_text"),
    *("evaluate", "evaluate_guidance", "evaluate_anchor", "evaluate_loop", "evaluate_lora"),
    *("evaluate_f1_end", "evaluate_text", "evaluate_draft"),
)


def main() -> None:
    tests = Path(__file__).resolve().parents[1]
    sys.path[:1] = [str(tests), str(tests.parent)]  # in place of this folder
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in PROGRAMS:
        raise SystemExit(f"usage: python tests/toyworld {{{','.join(PROGRAMS)}}} ...")
    sys.argv = [f"toyworld {name}", *sys.argv[2:]]
    importlib.import_module(f"toyworld.{name}").main()


if __name__ == "__main__":
    main()
