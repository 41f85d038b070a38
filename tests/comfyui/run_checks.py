"""Run all functions named check_* in one ComfyUI process: ROOT BASE REPORT [CHECK...].

The report says how each ended and what it measured; it is written after each of them.
"""

from __future__ import annotations

import importlib
import json
import time
import traceback
from pathlib import Path
from unittest import SkipTest

import inside  # first: it makes ComfyUI importable

# isort: split
import torch


def main() -> None:
    report_path, *chosen = inside.ARGUMENTS
    inside.start()
    files = sorted(Path(__file__).parent.glob("checks_*.py"))
    modules = [importlib.import_module(file.stem) for file in files]
    checks = {
        name.removeprefix("check_"): function
        for module in modules
        for name, function in vars(module).items()
        if name.startswith("check_")
    }
    report = {}
    for name, check in checks.items():
        if chosen and name not in chosen:
            continue
        start = time.monotonic()
        try:
            with torch.inference_mode():  # as ComfyUI's executor does
                outcome = {"ok": True, "measured": check()}
        except SkipTest as reason:
            outcome = {"ok": True, "skipped": str(reason)}
        except (Exception, SystemExit):  # a command that refuses its arguments exits
            outcome = {"ok": False, "error": traceback.format_exc()}
        report[name] = outcome | {"seconds": round(time.monotonic() - start, 2)}
        write(Path(report_path), json.dumps(report, indent=1, default=str))


def write(path: Path, text: str) -> None:
    """Whole at any time, as this process may be ended while it writes."""
    path.with_suffix(".part").write_text(text, encoding="utf-8")
    path.with_suffix(".part").replace(path)


main()
