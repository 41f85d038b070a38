"""What is shown of a run: a display that fails is reported once, by name, and the run continues.

Work is what a run was started for: latents, videos and pictures, caches, LoRAs with their state,
the ledger. An error there ends the run, or one line of a batch.

A display is what tells of work: progress bars and texts, previews, charts, clips of finished
sections, messages to open pages, TensorBoard, Weights & Biases and the log of losses, notes on
drift, printed lines, and the samples that are made while a LoRA is trained, files though they are.
What can be seen to be wrong with one before the work begins (a logger that is not installed, a
sample prompt without its picture) is an error like any other; later it is a warning.

`Display` holds that rule, and `say`, `warn` and `Bar` are the only ones that print, warn and draw
bars. No work is done within a display, and what stops a run (Ctrl-C, a host's cancel button) passes
through it.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

logger = logging.getLogger(__name__)

PACKAGE = __name__.removesuffix(".runtime.display")  # inside a host it is part of another package
REPLACED = "backslashreplace"  # as on Python's stderr: what was meant stays recognisable


class _Host:
    """What the one who runs this code says of its runs."""

    def __init__(self) -> None:
        self.stopping: tuple[type[BaseException], ...] = ()
        self.run: Callable[[], object] = lambda: None
        self.silent = False
        self._run: object = None
        self._reported: set[tuple[str, type[BaseException]]] = set()

    def is_new(self, display: str, kind: type[BaseException]) -> bool:
        """Whether a display has not yet failed like this in the run that is under way."""
        if self.run() != self._run:
            self.begin()
        known = (display, kind) in self._reported
        self._reported.add((display, kind))
        return not known

    def begin(self) -> None:
        self._run = self.run()
        self._reported.clear()


_host = _Host()


def hosted(
    stopping: tuple[type[BaseException], ...] = (), run: Callable[[], object] = lambda: None
) -> None:
    """Say how a host cancels a run and how it tells its runs apart.

    stopping: exceptions that pass through every display. run: names the run that is under way; in
    another one all failures are reported again.
    """
    _host.stopping, _host.run = stopping, run


def silence() -> None:
    """Show nothing from now on, in a process whose work another one shows."""
    _host.silent = True


class Display:
    """Something that is shown: a `with` block that no failure leaves.

    name: says in the warning what failed. In a run one warning is given for each type of exception,
    so that a display that fails at each of ten thousand steps is heard of once. kind: shared by
    displays of which one speaks for all; the name, by default.
    """

    def __init__(self, name: str, kind: str = "") -> None:
        self.name, self.kind = name, kind or name

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception) or isinstance(error, _host.stopping):
            return False
        self.report(error)
        return True

    def report(self, error: Exception) -> None:
        """Warn of a failure, unless one of its type was reported before."""
        if not _host.is_new(self.kind, type(error)):
            return
        first = next(iter(str(error).splitlines()), "")
        reason = f"{type(error).__name__}: {first}" if first else type(error).__name__
        warn(f"{self.name} failed, the run continues without it ({reason})")


def warn(message: str) -> None:
    """A warning in the host's log, or a line on stderr."""
    if not _host.silent:
        with suppress(Exception):  # where the log itself fails, nobody can be told
            logger.warning(message)


# --- lines and bars -------------------------------------------------------------------------------

_bars: list[Bar] = []


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line, above progress bars; letters that the stream cannot hold become their codes.

    stream: stdout by default. Where nobody reads it any more the line is lost, not the run.
    """
    stream = sys.stdout if stream is None else stream
    if stream is None or _host.silent:  # pythonw.exe has none
        return
    for bar in list(_bars):
        bar.clear()
    with Display(f"printing to {getattr(stream, 'name', 'a stream')}"):
        _write_line(text, stream)
    for bar in list(_bars):
        bar.refresh()


def say_error(text: str) -> None:
    """Say on stderr what is wrong."""
    if sys.stderr is not None:
        say(f"error: {text}", sys.stderr)


def _write_line(text: str, stream: TextIO) -> None:
    try:
        stream.write(f"{text}\n")
    except UnicodeEncodeError:
        encoding = stream.encoding
        stream.write(f"{text.encode(encoding, REPLACED).decode(encoding)}\n")
    stream.flush()


class Bar:
    """A progress bar on stderr; after a failure it is gone."""

    def __init__(
        self,
        title: str,
        total: int | None = None,
        unit: str = "step",
        *,
        done: int = 0,
        disable: bool = False,
    ) -> None:
        self._display = Display(f"progress bar {title!r}", "progress bars")
        self._bar: tqdm | None = None
        if disable or sys.stderr is None or _host.silent:
            return
        with self._display:
            self._bar = tqdm(desc=title, total=total, unit=unit, initial=done)
            _bars.append(self)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_error: object) -> None:
        self._with(tqdm.close)
        self._drop()

    def move(
        self, steps: int = 1, *, total: int | None = None, title: str = "", note: str = ""
    ) -> None:
        """So many more steps are done; what else is given replaces what is shown."""

        def change(bar: tqdm) -> None:
            bar.total = total or bar.total
            if title:
                bar.set_description(title, refresh=False)
            if note:
                bar.set_postfix_str(note, refresh=False)
            bar.update(steps)

        self._with(change)

    def move_to(self, done: int, total: int, *, before: int = 0, note: str = "") -> None:
        """So many are done, of which some had been done before the bar began."""

        if self._bar is not None:
            self._bar.initial = before
            self.move(done - self._bar.n, total=total, note=note)

    def clear(self) -> None:
        """Take it off the screen, for a line to be printed."""
        self._with(tqdm.clear)

    def refresh(self) -> None:
        """Draw it again."""
        self._with(tqdm.refresh)

    def _with(self, action: Callable[[tqdm], object]) -> None:
        if self._bar is None:
            return
        with self._display:
            action(self._bar)
            return
        self._drop()

    def _drop(self) -> None:
        if self in _bars:
            _bars.remove(self)
        if self._bar is not None:
            self._bar.disable = True  # or it would draw itself once more when it is collected
            self._bar = None


# --- a command ------------------------------------------------------------------------------------


class _Lines(logging.Handler):
    """Log records as lines on stderr, above progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:
            say(f"{record.levelname.lower()}: {record.getMessage()}", sys.stderr)


@contextmanager
def console() -> Iterator[None]:
    """Around a command: warnings are lines on stderr, and a reader that left changes nothing."""
    _host.begin()
    package, lines = logging.getLogger(PACKAGE), _Lines()
    propagated, package.propagate = package.propagate, False
    package.addHandler(lines)
    try:
        yield
    finally:
        package.removeHandler(lines)
        package.propagate = propagated
        _leave(sys.stdout)
        _leave(sys.stderr)


def _leave(stream: TextIO | None) -> None:
    """Python writes what is left at its exit, and would end with an error where nobody reads it."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
