"""Our values of the cases that differ on purpose, as reviewed: `reviewed/<kind>.json`.

An entry holds for its inputs in whatever folder they stand. Inputs without an entry are held to
their rule only, which no case goes without.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from .result import Case, Deviation

FOLDER = Path(__file__).parent / "reviewed"
RTOL, ATOL = 1e-4, 1e-6


def judged(kind: str, case: Case) -> Case:
    """The case, failed if there is a reviewed entry for its inputs with other values."""
    deviation = case.deviation
    if not case.ok or deviation is None:
        return case
    entry = _entries(kind).get(key(deviation))
    if entry is None:
        return case
    for name in ("reference", "ours"):
        found = getattr(deviation, name)
        if not near(found, entry[name]):
            error = f"{name}:{found!r},reviewed:{entry[name]!r}".replace(" ", "")[:160]
            return replace(case, ok=False, error=error)
    return case


def is_reviewed(kind: str, deviation: Deviation) -> bool:
    return key(deviation) in _entries(kind)


def key(deviation: Deviation) -> str:
    return json.dumps([deviation.tag, deviation.inputs], sort_keys=True)


def near(a: Any, b: Any) -> bool:
    """Equal, numbers within a tolerance."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(near(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(near, a, b))
    if isinstance(a, float) and isinstance(b, int | float) and not isinstance(b, bool):
        return math.isclose(a, b, rel_tol=RTOL, abs_tol=ATOL)
    return type(a) is type(b) and a == b


def write(kind: str, deviations: list[Deviation]) -> None:
    """Replace the entries of a kind; the change of the file is what has to be reviewed."""
    entries = {key(deviation): asdict(deviation) for deviation in deviations}
    FOLDER.mkdir(exist_ok=True)
    rows = ",\n".join(" " + json.dumps(entry, ensure_ascii=False) for entry in entries.values())
    (FOLDER / f"{kind}.json").write_text(f"[\n{rows}\n]\n", encoding="utf-8")


@cache
def _entries(kind: str) -> dict[str, dict[str, Any]]:
    path = FOLDER / f"{kind}.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return {json.dumps([row["tag"], row["inputs"]], sort_keys=True): row for row in rows}
