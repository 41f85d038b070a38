"""Files and folders: written whole or not at all, read as text, listed in natural order."""

from __future__ import annotations

import codecs
import errno
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from .errors import FramePackError

DISK_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A temporary name in the folder of `path` to write to; it becomes `path` if all goes well.

    On an error it is removed, and a `path` from before stays as it was. Missing folders are made.
    Raises FramePackError where the disk is full or the folder cannot be written.
    """
    path = Path(path)
    # The suffix stays last: writers such as PyAV choose the format by it.
    temporary = path.with_name(f".{uuid4().hex}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if _concerns_another_file(error, path, temporary):
            raise
        raise FramePackError(_explain(path, error)) from error
    finally:
        with suppress(OSError):  # the first error is the one to tell
            temporary.unlink()


def read_text(path: Path | str) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises FramePackError naming the file, and the encoding that it is in where that shows.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise FramePackError(f"{path}: cannot be read ({reason})") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        found = "UTF-16, not UTF-8" if is_utf16 else f"not UTF-8 (byte {error.start})"
        raise FramePackError(
            f"{path}: {found}; save it as UTF-8 (in an editor: Save as, encoding UTF-8)"
        ) from None


def split_lines(text: str) -> list[str]:
    """The lines of a text, which only "\\n" and "\\r\\n" end.

    str.splitlines() also cuts at U+2028, form feeds and others, which pasted text can hold.
    """
    return [line.removesuffix("\r") for line in text.split("\n")]


NAME_BYTES = 255  # of one part of a path, on most file systems


def check_file_name(name: str, what: str) -> None:
    """Refuse a name that no file can have; `what` is what an error calls it."""
    if "/" in name or "\\" in name:
        raise FramePackError(f"{what} {name!r}: a name holds neither / nor \\; folders are apart")
    room = len(f".{uuid4().hex}.part")  # while it is written
    if "\0" in name or len(os.fsencode(name)) > NAME_BYTES - room:
        shown = name if len(name) <= 40 else f"{name[:37]}..."
        raise FramePackError(
            f"{what} {shown!r}: no file can have this name; use at most {NAME_BYTES - room} bytes"
        )


def free_path(path: Path) -> Path:
    """The path, or if something is there the first that is free of stem_2, stem_3 and so on."""
    found, number = path, 1
    while os.path.lexists(found):
        number += 1
        found = path.with_name(f"{path.stem}_{number}{path.suffix}")
    return found


def is_file(path: Path | str) -> bool:
    """Whether it is a file; False, never an error, for a text that cannot be a path at all.

    Path.is_file() raises for names of more than 255 bytes.
    """
    return os.path.isfile(path)


def is_folder(path: Path | str) -> bool:
    """Whether it is a folder; False, never an error, for a text that cannot be a path at all."""
    return os.path.isdir(path)


def natural_key(name: str) -> tuple[list[str | int], str]:
    """A sort key in which numbers within a name count by their value: 2 before 10."""
    # re.split() alternates between text and digits, so that equal places hold equal types.
    parts = enumerate(re.split(r"([0-9]+)", name))
    return [int(part) if i % 2 else part for i, part in parts], name


def list_folder(folder: Path) -> list[Path]:
    """The files and folders of a folder in natural order, without hidden ones (.DS_Store, ._a.mp4).

    Raises FramePackError where it is not there or may not be read.
    """
    try:
        found = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FramePackError(f"{folder}: this folder cannot be read ({reason})") from None
    return sorted(found, key=lambda path: natural_key(path.name))


def size_text(size: int) -> str:
    """A number of bytes as people read it: 999 bytes, 1.2 MB, 9.9 GB."""
    if size < 1000:
        return f"{size} bytes"
    number = float(size)
    for unit in ("kB", "MB"):
        number /= 1000
        if number < 1000:
            return f"{number:.1f} {unit}"
    return f"{number / 1000:.1f} GB"


def shell_word(path: Path) -> str:
    """A path in a command that is shown to be copied: in quotes where a shell would split it."""
    text = str(path)
    if sys.platform != "win32":
        return shlex.quote(text)
    return text if re.fullmatch(r"[\w\\/:.~+-]+", text) else f'"{text}"'


def _flush(path: Path) -> None:
    """Force the content to disk: a rename may outlive a power cut that the content does not."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _concerns_another_file(error: OSError, path: Path, temporary: Path) -> bool:
    """Whether the body failed on something else, for instance on a file that it reads."""
    if error.errno in DISK_FULL or error.filename is None:
        return False
    name = Path(str(error.filename))
    return name not in (temporary, path) and name not in path.parents


def _explain(path: Path, error: OSError) -> str:
    kept = (
        "the file from before is unchanged"
        if os.path.exists(path)
        else "nothing was left half-written"
    )
    reason = error.strerror or str(error)
    if error.errno not in DISK_FULL:
        return f"cannot write {path}: {reason}; {kept}; choose another folder"
    free = size_text(shutil.disk_usage(path.parent).free)
    return (
        f"cannot write {path}: {reason} ({free} free); {kept}, and files finished earlier are "
        "safe; free some space and run again"
    )
