"""Autotuning: the fastest of several ways to compute the same, measured once and noted.

Which is the fastest differs by card, number type and size, so nothing is listed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..runtime.display import Display, say
from ..runtime.files import atomic_path, is_file

RUNS = 3
GAIN = 1.03  # by which a way must be faster than one before it, so that ties end the same way

chosen: dict[Hashable, Any] = {}
"""What this process has chosen, by all that the choice depends on; its users fill it."""

_file: Path | None = None  # of earlier processes' choices
_note = Display("the note of what is the fastest")


@dataclass(frozen=True)
class Way:
    """A way to compute something, and how far it may be from what is right, relative."""

    name: str
    run: Callable[[], Tensor]
    error: float


def remember_choices(path: Path) -> None:
    """Take choices of earlier processes from a file and keep new ones there.

    Two ways that are about as fast could otherwise be chosen differently when a run resumes, and
    its last sections would be rounded differently from its first.
    """
    global _file
    if path != _file:
        _file = path
        chosen.clear()


def fastest(
    what: str,
    case: str,
    ways: Sequence[Way],
    error: Callable[[Tensor], float],
    device: torch.device,
    alike: str = "",
    clock: Callable[[Callable[[], object]], float] | None = None,
) -> int:
    """The number of the fastest way that is right, or of the one that was chosen here before.

    A line says which, and what each took. error: of a way's answer, relative; the first way is
    taken where none is right. alike: cases that share a choice, `case` by default. clock: runs a
    function several times and returns milliseconds; by default the GPU's own.
    """
    names = list(dict.fromkeys(way.name for way in ways))
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    key = f"{card}, PyTorch {torch.__version__}, {alike or case}, of {', '.join(names)}"
    noted: dict[str, str] = {}
    with _note:
        if _file is not None and is_file(_file):
            noted = dict(json.loads(_file.read_text(encoding="utf-8")))
    if noted.get(key) in names:
        say(f"{what}: {noted[key]}, as it was chosen here before")
        return [way.name for way in ways].index(noted[key])
    # The clock's events are recorded on the current GPU, whichever the ways run on.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        best = _timed(what, case, ways, error, clock or milliseconds)
    with _note:
        if _file is not None:
            with atomic_path(_file) as temporary:
                text = json.dumps(noted | {key: ways[best].name}, indent=1)
                temporary.write_text(text, encoding="utf-8")
    return best


def _timed(
    what: str,
    case: str,
    ways: Sequence[Way],
    error: Callable[[Tensor], float],
    clock: Callable[[Callable[[], object]], float],
) -> int:
    best, shortest, tried = 0, float("inf"), []
    for number, way in enumerate(ways):
        try:
            off = error(way.run())
            if not off < way.error:
                tried.append(f"{way.name} is wrong by {off:.0%}")
                continue
            took = clock(way.run)
        except Exception as failure:  # packages refuse a card in ways of their own
            reason = next(iter(str(failure).splitlines()), type(failure).__name__)
            tried.append(f"{way.name} refuses ({reason[:60]})")
            continue
        tried.append(f"{way.name} {took:.2f} ms, error {off:.3f}")
        if took * GAIN < shortest:
            best, shortest = number, took
    say(f"{what}: {ways[best].name} is the fastest for {case} ({'; '.join(tried)})")
    return best


def milliseconds(run: Callable[[], object]) -> float:
    """The shortest of several runs on the current GPU."""
    times = []
    for _ in range(RUNS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return min(times)
