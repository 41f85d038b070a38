"""A watchdog: processes that work together notice when one of them ends, and end too.

Each tells of itself in a store that all can reach, and looks at what the others tell. Collective
operations wait for as long as it takes, so nothing else would end a process that waits for one
which is gone.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, NoReturn

import psutil
import torch.distributed as dist

EVERY = 1.0  # seconds between looks
SILENCE = 20.0  # seconds after which a process that tells nothing is taken for gone
ERROR, STOPPED = 2, 143  # exit codes
BEAT, FAILED, LEFT = "beat", "failed", "left"
WAS_STOPPED = "was stopped"


class Watch:
    """This process tells that it is there, and ends when another is not.

    What the sentence about that adds, such as what of the work is kept, is said by `noting`.
    """

    def __init__(self, store: Any, rank: int, count: int) -> None:
        self._notes: list[Callable[[], str]] = []
        self.rank, self.count = rank, count
        self._store = store
        self._peers = {other: _Peer(time.monotonic()) for other in range(count) if other != rank}
        self._told, self._lock = BEAT, threading.Lock()
        self._stopping = _Signals()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._beats = 0
        self._tell(BEAT)

    def start(self) -> None:
        """Begin once all processes have told of themselves."""
        self._thread.start()

    @contextmanager
    def noting(self, note: Callable[[], str]) -> Iterator[None]:
        """Add to the sentence, meanwhile, what a function says; the innermost one counts."""
        self._notes.append(note)
        try:
            yield
        finally:
            self._notes.pop()

    def fail(self, what: str = "") -> None:
        """Tell the others that this process ends; they tell users what it did, if anything."""
        with suppress(Exception):  # where the store is gone, so are the others
            self._tell(FAILED, what)

    @property
    def failed(self) -> bool:
        """Whether this process has told that it ends."""
        return self._told == FAILED

    def leave(self) -> None:
        """All is done: no other process is watched any more."""
        self._tell(LEFT)
        self._stopping.release()

    def wait_to_end(self) -> None:
        """Give the watch time to find out who is gone, and to end this process."""
        time.sleep(SILENCE + 5 * EVERY)

    def _tell(self, state: str, what: str = "") -> None:
        with self._lock:
            if state == BEAT and self._told != BEAT:
                return
            self._told, self._beats = state, self._beats + 1
            told = f"{_place()} {os.getpid()} {self._beats} {state} {what}"
            self._store.set(str(self.rank), told)

    def _run(self) -> None:
        while self._told == BEAT:
            stopped = self._stopping.wait(EVERY)
            if self._told != BEAT:
                return
            try:
                self._tell(BEAT)
                for rank, peer in self._peers.items():
                    peer.hear(self._store.get(str(rank)).decode())
                gone = self._gone()
            except Exception:  # it ends with the process that keeps it, the first or the launcher
                gone = self._gone() or (0, "is out of reach")
            if stopped and gone in (None, *((rank, WAS_STOPPED) for rank in self._peers)):
                self.fail(WAS_STOPPED)  # all of them were told to, or the others end too
                _exit(STOPPED)
            if gone is not None:
                self._end(*gone)

    def _gone(self) -> tuple[int, str] | None:
        """The first process that has ended, and what is known of it."""
        for rank, peer in self._peers.items():
            if peer.state == FAILED:
                return rank, peer.what
            if peer.state == BEAT and peer.place == _place() and not _lives(peer.process):
                return rank, "was killed or has crashed"
            if peer.state == BEAT and time.monotonic() - peer.heard > SILENCE:
                return rank, f"has not been heard of for {SILENCE:.0f} seconds"
        return None

    def _end(self, rank: int, what: str) -> NoReturn:
        """End this process; the first of those that are left says why, if that is not said yet."""
        time.sleep(EVERY)  # for an error of this process itself, or one that it prints already
        first = min(other for other in range(self.count) if other != rank)
        if self.rank == first and self._told == BEAT and what:
            with suppress(Exception):
                note = next(filter(None, (note() for note in reversed(self._notes))), "")
                sys.stderr.write(
                    f"error: process {rank} of {self.count} {what}{note and f'; {note}'}\n"
                )
        _exit(ERROR)


@dataclass
class _Peer:
    """What another process has told, and when it was last heard of."""

    heard: float
    place: str = ""
    process: int = 0
    beats: str = ""
    state: str = ""
    what: str = ""

    def hear(self, told: str) -> None:
        before = self.beats
        self.place, process, self.beats, self.state, self.what = told.split(" ", 4)
        self.process = int(process)
        if self.beats != before:
            self.heard = time.monotonic()


class _Signals:
    """SIGTERM as something to wait for: a handler in Python would wait for a collective operation.

    A launcher sends it to all processes when one has ended.
    """

    def __init__(self) -> None:
        read, write = os.pipe()
        if os.name == "posix":  # which Python asks for there
            os.set_blocking(write, False)
        self._came = threading.Event()
        self._before = signal.signal(signal.SIGTERM, _ignore)
        self._woken_before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(read,), daemon=True).start()

    def _listen(self, read: int) -> None:
        while signal.SIGTERM not in os.read(read, 1024):
            pass
        self._came.set()

    def wait(self, seconds: float) -> bool:
        """Whether the signal came within some seconds."""
        return self._came.wait(seconds)

    def release(self) -> None:
        """Leave the signal to what it did before."""
        signal.set_wakeup_fd(self._woken_before)
        signal.signal(signal.SIGTERM, self._before)


def _ignore(_signal: int, _frame: FrameType | None) -> None:
    """The watch ends the process."""


def _place() -> str:
    """Where process numbers mean the same: the machine, or the container on it."""
    space = ""
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return f"{platform.node()}/{space}".replace(" ", "")


def _lives(process: int) -> bool:
    try:
        return psutil.Process(process).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _exit(code: int) -> NoReturn:
    """End at once: the main thread may wait for what never comes."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code)


def connect() -> Any:
    """A connection of its own to the store by which processes have met."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    stores: Any = dist
    store = stores.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=SILENCE))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return stores.PrefixStore(f"framepack/{attempt}", store)
