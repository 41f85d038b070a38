"""Digests by which a run is known again: equal where nothing that matters differs."""

from __future__ import annotations

import hashlib
import inspect
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

FILE_CHUNKS = 64  # places at which the content of a large file is looked at
CHUNK_BYTES = 1 << 16
READ_BYTES = 1 << 23  # of a file that is read wholly, at a time


def fingerprint(value: Any) -> str:
    """A digest of settings: numbers, texts, tensors by content, paths by the file behind them.

    Functions count by name, those made inside others also by their source and what they hold on to:
    so every version of Python gives the same digest. Raises TypeError for anything else, as nothing
    can vouch for it.
    """
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Of the whole content, as sha256sum prints it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    """Every part goes in with its kind and length, so that no two values read alike."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous()
        digest.update(f"tensor {data.dtype} {tuple(data.shape)} ".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, Path):
        _feed_file(digest, value)
    elif is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: getattr(value, f.name) for f in fields(value)}
        _feed(digest, [type(value).__qualname__, parts])
    elif isinstance(value, BaseModel):
        parts = {name: getattr(value, name) for name in type(value).model_fields}
        _feed(digest, [type(value).__qualname__, parts])
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
    elif isinstance(value, torch.dtype | torch.device):
        _feed(digest, str(value))
    elif isinstance(value, partial):
        _feed(digest, [value.func, value.args, value.keywords])
    elif isinstance(value, FunctionType | type):
        _feed(digest, [value.__module__, value.__qualname__, *_function_state(value)])
    else:
        raise TypeError(f"no fingerprint of a {type(value).__name__}")


def _function_state(value: FunctionType | type) -> list[Any]:
    """All that tells apart functions made by one piece of code; nothing where the name says it."""
    name = value.__qualname__
    if getattr(sys.modules.get(value.__module__), name, None) is value:
        return []
    if isinstance(value, type):
        raise TypeError(f"no fingerprint of the class {name}, made in a function")
    try:
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
    except ValueError:  # an empty cell
        raise TypeError(f"no fingerprint of {name} before all of it is set") from None
    try:
        source = inspect.getsource(value)
    except OSError:
        raise TypeError(f"no fingerprint of {name}, whose source is not at hand") from None
    if value.__name__ == "<lambda>" and source.count("lambda") > 1:
        raise TypeError(f"no fingerprint of {name}, one of several lambdas in its lines")
    return [cells, value.__defaults__, value.__kwdefaults__, textwrap.dedent(source)]


def _feed_file(digest: Any, path: Path) -> None:
    """Size and content of a file; of a large one the beginning and evenly spaced samples."""
    size = path.stat().st_size
    digest.update(f"file {size} ".encode())
    with path.open("rb") as file:
        if size <= FILE_CHUNKS * CHUNK_BYTES:
            digest.update(file.read())
            return
        for i in range(FILE_CHUNKS):
            file.seek(i * (size - CHUNK_BYTES) // (FILE_CHUNKS - 1))
            digest.update(file.read(CHUNK_BYTES))
