"""Finished sections on disk: a cancelled or killed run resumes after the last one.

An entry is named by a key over all that its section depends on: the run's settings, its own and the
keys of the sections made before it. So the same run finds its sections again, a change finds those
made before it mattered, and a run with a section rolled again or added at the end shares the rest.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models.fastest import remember_choices
from ..runtime.errors import FramePackError
from ..runtime.files import atomic_path, is_file, size_text
from ..runtime.fingerprint import fingerprint
from ..weights.files import open_weights, save_weights
from .latents import LATENT_KEY
from .plan import Plan

SUFFIX = ".safetensors"
DAMAGED = ".damaged"
RUNS = "runs.json"
CHOICES = "attention.json"
FINISH = "finish"  # a file that asks runs to end early; only when it was written counts
LEDGER_FORMAT = 1  # of keys and entries; another number starts afresh
LIMIT = 2 * 10**9  # bytes of all entries; latents are small, so this is months of runs
KEPT_RUNS = 50
HALF_WRITTEN = ".*.part.*"  # the names of atomic_path
DAY = 24 * 3600  # seconds
NOT_OF_RUN = ("sections", "whole")  # of a plan: a run has those that are made
KEY_LENGTH = 32  # of 64 digits of a digest: enough, and names stay readable


@dataclass(frozen=True)
class Entry:
    """One finished section on disk, or what was one before it was damaged."""

    path: Path
    size: int
    modified: float

    @property
    def damaged(self) -> bool:
        return self.path.name.endswith(DAMAGED)


@dataclass(frozen=True)
class RunRecord:
    """A run as the ledger remembers it: digests of its settings, and the keys of its sections.

    numbers: the settings that are numbers, as they were, to be told apart by people.
    """

    opened: float
    settings: Mapping[str, str]
    numbers: Mapping[str, float]
    keys: Sequence[str]

    @classmethod
    def read(cls, record: Any) -> RunRecord:
        """From JSON; raises TypeError, ValueError or KeyError for what is something else."""
        settings = {str(name): str(digest) for name, digest in dict(record["settings"]).items()}
        numbers = {str(name): float(n) for name, n in dict(record["numbers"]).items()}
        return cls(float(record["opened"]), settings, numbers, [str(key) for key in record["keys"]])

    def describe(self, entries: Mapping[str, Entry]) -> str:
        """What is left of it, of entries by key, as a line; empty if nothing is."""
        kept = [entries[key] for key in self.keys if key in entries]
        if not kept:
            return ""
        opened = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.opened))
        size = size_text(sum(entry.size for entry in kept))
        numbers = ", ".join(f"{name} {number:.15g}" for name, number in self.numbers.items())
        return f"  {opened}: {len(kept)} of {len(self.keys)} sections, {size}; {numbers}"

    def changes(self, now: RunRecord) -> list[str]:
        """Names of the settings that differ, numbers with both values."""
        names = [*now.settings, *(name for name in self.settings if name not in now.settings)]
        return [
            name + self._values(name, now)
            for name in names
            if self.settings.get(name) != now.settings.get(name)
        ]

    def _values(self, name: str, now: RunRecord) -> str:
        if name not in self.numbers or name not in now.numbers:
            return ""
        return f" ({self.numbers[name]:.15g}, now {now.numbers[name]:.15g})"


@dataclass(frozen=True)
class Ledger:
    """A folder of finished sections, pruned to `limit` bytes, the longest unused first.

    `say` is told what a user should know: what is there already, what changed, what is damaged.
    """

    folder: Path
    limit: int = LIMIT
    say: Callable[[str], None] = field(default=lambda _message: None, compare=False)

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise FramePackError(
                f"ledger: a limit of {self.limit} bytes is not a size; use 0 or more"
            )

    def open(self, plan: Plan, settings: Mapping[str, Any]) -> LedgerRun:
        """The run of a plan; `settings` hold all that its sections depend on besides the plan.

        A value may be anything `fingerprint` takes; names are what a user is told of changes.
        What was the fastest for runs of this folder is taken again.
        """
        remember_choices(self.folder / CHOICES)
        return LedgerRun(self, plan, settings)

    def entries(self) -> list[Entry]:
        """What is stored, the longest unused first."""
        found = []
        for path in self.folder.glob(f"*{SUFFIX}*"):
            if path.name.endswith((SUFFIX, SUFFIX + DAMAGED)) and not path.name.startswith("."):
                with suppress(FileNotFoundError):  # another process has removed it meanwhile
                    status = path.stat()
                    found.append(Entry(path, status.st_size, status.st_mtime))
        return sorted(found, key=lambda entry: entry.modified)

    def describe(self) -> str:
        """What is stored: one line, then one for each run of which something is left."""
        entries = self.entries()
        total = sum(entry.size for entry in entries)
        damaged = sum(entry.damaged for entry in entries)
        aside = f", {damaged} of them damaged and set aside" if damaged else ""
        title = (
            f"ledger {self.folder}: {len(entries)} sections{aside}, {size_text(total)} of at most "
            f"{size_text(self.limit)}"
        )
        whole = {entry.path.stem: entry for entry in entries if not entry.damaged}
        runs = filter(None, (run.describe(whole) for run in self.runs()))
        return "\n".join([title, *runs])

    def prune(self, keep: frozenset[Path] = frozenset()) -> int:
        """Remove entries until the limit holds; returns how many. Those in `keep` stay.

        What a killed process has left half-written goes too, once no other can be at it still.
        """
        for path in self.folder.glob(HALF_WRITTEN):
            with suppress(FileNotFoundError):  # another process has finished it meanwhile
                if time.time() - path.stat().st_mtime > DAY:
                    path.unlink()
        entries = self.entries()
        excess, removed = sum(entry.size for entry in entries) - self.limit, 0
        for entry in entries:
            if excess <= 0:
                break
            if entry.path not in keep:
                entry.path.unlink(missing_ok=True)
                excess, removed = excess - entry.size, removed + 1
        return removed

    def finish(self) -> None:
        """Ask the runs that keep their sections here to end after the section in progress."""
        with atomic_path(self.folder / FINISH) as temporary:
            temporary.touch()

    def finish_asked(self) -> Callable[[], bool]:
        """Whether runs have been asked to end since this call."""
        before = self._finish_written()
        return lambda: self._finish_written() not in (None, before)

    def _finish_written(self) -> int | None:
        with suppress(OSError):
            return (self.folder / FINISH).stat().st_mtime_ns
        return None

    def runs(self) -> list[RunRecord]:
        """The latest runs, the last one first; what cannot be read counts as nothing."""
        try:
            records = json.loads((self.folder / RUNS).read_text(encoding="utf-8"))
            return [RunRecord.read(record) for record in records]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return []

    def remember(self, run: RunRecord) -> None:
        """Put a run before the others."""
        others = [other for other in self.runs() if other.keys != run.keys]
        records = [vars(record) for record in [run, *others][:KEPT_RUNS]]
        with atomic_path(self.folder / RUNS) as temporary:
            temporary.write_text(json.dumps(records), encoding="utf-8")


OpenLedger = Callable[[Plan, Mapping[str, Any]], "LedgerRun"]
"""The run of a plan with settings of its own, to be added to those that are known already."""


class LedgerRun:
    """The sections of one run; `load` what is there, `store` what was made."""

    def __init__(self, ledger: Ledger, plan: Plan, settings: Mapping[str, Any]) -> None:
        self.ledger, self.plan = ledger, plan
        self._record = _record(plan, settings)
        self._paths = [ledger.folder / f"{key}{SUFFIX}" for key in self._record.keys]
        self._explain()

    @property
    def finished(self) -> int:
        """How many sections, from the first made, are stored."""
        return next(
            (i for i, path in enumerate(self._paths) if not is_file(path)), len(self._paths)
        )

    def load(self, order: int, shape: torch.Size | tuple[int, ...]) -> Tensor | None:
        """Latents of the order-th section made, or None if it is still to be made.

        A damaged entry is set aside under another name, and a message says so.
        """
        path = self._paths[order]
        if not is_file(path):
            return None
        try:
            latents = open_weights(path)[LATENT_KEY].to(torch.float32, copy=True)
            if latents.shape != tuple(shape) or not torch.isfinite(latents).all():
                raise FramePackError(f"{path} holds something else")
        except (FramePackError, KeyError) as error:
            with suppress(FileNotFoundError):
                path.replace(path.with_name(path.name + DAMAGED))
            self.ledger.say(
                f"ledger: {path.name} is damaged ({error}); it is set aside as "
                f"{path.name}{DAMAGED} and its section made again"
            )
            return None
        with suppress(FileNotFoundError):  # pruned by another process just now
            os.utime(path)
        return latents

    def store(self, order: int, latents: Tensor) -> None:
        """Write a finished section; it is there whole or not at all."""
        section = self.plan.sections[order]
        about = {"section": section.index, "order": order, "made": time.strftime("%F %T")}
        metadata = {"ledger": json.dumps(about)}
        save_weights(self._paths[order], {LATENT_KEY: latents.detach().float().cpu()}, metadata)
        self.ledger.prune(keep=frozenset(self._paths))

    def _explain(self) -> None:
        """Say how far this run is, or which settings keep an earlier one from being resumed."""
        total, finished = len(self._paths), self.finished
        if finished:
            rest = "nothing is left to make" if finished == total else "resuming after them"
            self.ledger.say(f"ledger: {finished} of {total} sections are there already; {rest}")
        elif earlier := self.ledger.runs():
            changed = min((run.changes(self._record) for run in earlier), key=len)
            if changed:
                self.ledger.say(
                    f"ledger: starts afresh, as no earlier run fits; the most similar one had "
                    f"another {', '.join(changed)}"
                )
        self.ledger.remember(self._record)


def _record(plan: Plan, settings: Mapping[str, Any]) -> RunRecord:
    run = {f.name: getattr(plan, f.name) for f in fields(Plan) if f.name not in NOT_OF_RUN}
    run["end"] = plan.goal
    digests = {name: fingerprint(value) for name, value in settings.items()}
    before = fingerprint([LEDGER_FORMAT, run, digests])
    keys = []
    for section in plan.sections:
        before = fingerprint([before, section])
        keys.append(before[:KEY_LENGTH])
    of_plan = {name.replace("_", " "): fingerprint(value) for name, value in run.items()}
    of_plan["section plan"] = fingerprint(plan.sections)
    numbers = {
        name: value
        for name, value in settings.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return RunRecord(time.time(), digests | of_plan, numbers, keys)
