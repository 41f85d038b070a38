"""Finished sections on disk: a run that was cancelled or killed goes on after the last one.

An entry is named by a key over all that its section depends on: the run's settings, its own and the
keys of the sections made before it. So the same run finds its sections again, a change finds those
made before it mattered, and a run with a section rolled again or added at the end shares the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..runtime.errors import FramePackError
from ..runtime.files import atomic_path, size_text
from ..weights.files import open_weights, save_weights
from .plan import Plan

KEY = "latent"
SUFFIX = ".safetensors"
DAMAGED = ".damaged"
RUNS = "runs.json"
FORMAT = 1  # of keys and entries; another number starts afresh
LIMIT = 2 * 10**9  # bytes of all entries; latents are small, so this is months of runs
KEPT_RUNS = 50
SAMPLES = 64  # places at which the content of a large file is looked at
SAMPLE_BYTES = 1 << 16


def fingerprint(value: Any) -> str:
    """A digest of settings: numbers, texts, tensors by content, paths by the file behind them."""
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    """Every part goes in with its kind and length, so that no two values read alike."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous()
        digest.update(f"tensor {data.dtype} {tuple(data.shape)} ".encode())
        digest.update(data.view(torch.uint8).numpy() if data.ndim else data.numpy().tobytes())
    elif isinstance(value, Path):
        _feed_file(digest, value)
    elif is_dataclass(value) and not isinstance(value, type):
        _feed(digest, {f.name: getattr(value, f.name) for f in fields(value)})
    elif isinstance(value, Mapping):
        digest.update(f"map {len(value)} ".encode())
        for name in sorted(value):
            _feed(digest, name)
            _feed(digest, value[name])
    elif isinstance(value, tuple | list):
        digest.update(f"list {len(value)} ".encode())
        for item in value:
            _feed(digest, item)
    elif value is None or isinstance(value, bool | int | float | str):
        text = repr(value).encode()
        digest.update(f"{type(value).__name__} {len(text)} ".encode() + text)
    else:
        raise TypeError(f"no fingerprint of a {type(value).__name__}")


def _feed_file(digest: Any, path: Path) -> None:
    """Size and content of a file; of a large one the beginning and evenly spaced samples."""
    size = path.stat().st_size
    digest.update(f"file {size} ".encode())
    with path.open("rb") as file:
        if size <= SAMPLES * SAMPLE_BYTES:
            digest.update(file.read())
            return
        for i in range(SAMPLES):
            file.seek(i * (size - SAMPLE_BYTES) // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))


@dataclass(frozen=True)
class Entry:
    """One finished section on disk."""

    path: Path
    size: int
    modified: float


class Ledger:
    """A folder of finished sections, pruned to `limit` bytes, the longest unused first."""

    def __init__(self, folder: Path | str, limit: int = LIMIT) -> None:
        if limit < 0:
            raise FramePackError(f"ledger: a limit of {limit} bytes is not a size; use 0 or more")
        self.folder, self.limit = Path(folder), limit

    def open(self, plan: Plan, settings: Mapping[str, Any]) -> LedgerRun:
        """The run of a plan; `settings` hold all that its sections depend on besides the plan.

        A value may be anything `fingerprint` takes; names are what `changes` reports.
        """
        return LedgerRun(self, plan, {name: fingerprint(v) for name, v in settings.items()})

    def entries(self) -> list[Entry]:
        """What is stored, the longest unused first."""
        found = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            if not path.name.startswith("."):
                status = path.stat()
                found.append(Entry(path, status.st_size, status.st_mtime))
        return sorted(found, key=lambda entry: entry.modified)

    def describe(self) -> str:
        entries = self.entries()
        total = sum(entry.size for entry in entries)
        return (
            f"ledger {self.folder}: {len(entries)} sections, {size_text(total)} of at most "
            f"{size_text(self.limit)}"
        )

    def prune(self, keep: frozenset[Path] = frozenset()) -> int:
        """Remove entries until the limit holds; returns how many. Those in `keep` stay."""
        entries = self.entries()
        excess, removed = sum(entry.size for entry in entries) - self.limit, 0
        for entry in entries:
            if excess <= 0:
                break
            if entry.path not in keep:
                entry.path.unlink(missing_ok=True)
                excess, removed = excess - entry.size, removed + 1
        return removed

    def runs(self) -> list[dict[str, Any]]:
        """Settings of the latest runs, by their digests; what cannot be read counts as nothing."""
        try:
            runs = json.loads((self.folder / RUNS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return [run for run in runs if isinstance(run, dict)] if isinstance(runs, list) else []

    def remember(self, run: dict[str, Any]) -> None:
        """Put a run's settings before the others."""
        runs = [run, *(other for other in self.runs() if other != run)][:KEPT_RUNS]
        with atomic_path(self.folder / RUNS) as temporary:
            temporary.write_text(json.dumps(runs), encoding="utf-8")


class LedgerRun:
    """The sections of one run; `load` what is there, `store` what was made."""

    def __init__(self, ledger: Ledger, plan: Plan, settings: dict[str, str]) -> None:
        self.ledger, self.plan, self.settings = ledger, plan, settings
        self.messages: list[str] = []
        self._paths = [ledger.folder / f"{key}{SUFFIX}" for key in self._keys()]
        self._explain()

    def _keys(self) -> Iterator[str]:
        run = {f.name: getattr(self.plan, f.name) for f in fields(Plan) if f.name != "sections"}
        before = fingerprint([FORMAT, run, self.settings])
        for section in self.plan.sections:
            before = fingerprint([before, section])
            yield before

    @property
    def finished(self) -> int:
        """How many sections, from the first made, are stored."""
        return next(
            (i for i, path in enumerate(self._paths) if not path.is_file()), len(self._paths)
        )

    def load(self, order: int, shape: torch.Size | tuple[int, ...]) -> Tensor | None:
        """Latents of the order-th section made, or None if it is still to be made.

        A damaged entry is set aside under another name, and a message says so.
        """
        path = self._paths[order]
        if not path.is_file():
            return None
        try:
            latents = open_weights(path)[KEY].to(torch.float32, copy=True)
            if latents.shape != tuple(shape) or not torch.isfinite(latents).all():
                raise FramePackError(f"{path} holds something else")
        except (FramePackError, KeyError) as error:
            path.replace(path.with_name(path.name + DAMAGED))
            self.messages.append(
                f"ledger: {path.name} is damaged ({error}); it is set aside as "
                f"{path.name}{DAMAGED} and its section made again"
            )
            return None
        os.utime(path)
        return latents

    def store(self, order: int, latents: Tensor) -> None:
        """Write a finished section; it is there whole or not at all."""
        section = self.plan.sections[order]
        about = {"section": section.index, "order": order, "made": time.strftime("%F %T")}
        metadata = {"ledger": json.dumps(about)}
        save_weights(self._paths[order], {KEY: latents.detach().float().cpu()}, metadata)
        self.ledger.prune(keep=frozenset(self._paths))

    def _explain(self) -> None:
        """Say how far this run is, or which settings keep an earlier one from going on."""
        described = {"mode": self.plan.mode, "settings": self.settings}
        total = len(self._paths)
        if self.finished:
            self.messages.append(f"ledger: {self.finished} of {total} sections are there already")
        elif earlier := self.ledger.runs():
            changed = _changes(earlier[0], described)
            if changed:
                self.messages.append(
                    f"ledger: nothing of the last run fits, since it had another "
                    f"{', '.join(changed)}; all {total} sections are made"
                )
        self.ledger.remember(described)


def _changes(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the settings that differ; nothing where the earlier run cannot be compared."""
    before = earlier.get("settings")
    if not isinstance(before, Mapping):
        return []
    names = [*now["settings"], *(name for name in before if name not in now["settings"])]
    changed = [name for name in names if before.get(name) != now["settings"].get(name)]
    return [*(["mode"] if earlier.get("mode") != now["mode"] else []), *changed]
