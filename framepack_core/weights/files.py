"""Reading and writing files of tensors without ever holding a second copy of them.

The format is safetensors (huggingface/safetensors, README "Format"): the length of the header as
8 little-endian bytes, the header as JSON, then the bytes of the tensors. Its header is read and
checked here, before anything large is touched, so that a bad file is one clear error. `.pt` and
`.bin` files go through torch.load, tensors only; `.gguf` files through the package gguf.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ..runtime.errors import FramePackError
from ..runtime.files import atomic_path, is_file, size_text

MAX_HEADER = 100_000_000
MAP_NORESERVE = 0x4000  # older Pythons have no name for it
CHUNK = 1 << 23  # bytes read at a time where a tensor is converted
METADATA = "__metadata__"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "F8_E8M0": torch.uint8,  # powers of two, which PyTorch knows since 2.7
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
SAFETENSORS = (".safetensors", ".sft")
TORCH = (".pt", ".pth", ".bin", ".ckpt")
GGUF = (".gguf",)
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# What people save by mistake under a model's name, by its first bytes.
LOOK_ALIKES = {
    b"GGUF": "is a GGUF file: rename it to .gguf",
    b"version ": "is a Git LFS pointer, not the file itself: run `git lfs pull` or download it",
    b"<!DOCTYP": "is a web page, not a model: use the page's download link",
    b"<html": "is a web page, not a model: use the page's download link",
}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a file: its type, its shape and where its bytes are (None: in torch's hands)."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Header:
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


class _File(Protocol):
    path: Path
    header: Header

    def view(self, name: str) -> Tensor: ...

    def copy_to(self, name: str, target: Tensor) -> None: ...


class WeightFiles(Mapping[str, Tensor]):
    """The tensors of one or several files by name, read when they are asked for.

    `files[name]` is a view of the file on disk: it costs no memory until used, and the system may
    drop its pages again. Clone it before writing to it: a write never reaches the file, and on
    Windows it crashes.
    """

    def __init__(self, files: Iterable[_File]) -> None:
        self._owner: dict[str, _File] = {}
        self.paths: list[Path] = []
        self.metadata: dict[str, str] = {}
        for file in files:
            self.paths.append(file.path)
            self.metadata.update(file.header.metadata)
            for name in file.header.tensors:
                self._add(name, file)

    def __getitem__(self, name: str) -> Tensor:
        return self._owner[name].view(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._owner)

    def __len__(self) -> int:
        return len(self._owner)

    def info(self, name: str) -> TensorInfo:
        return self._owner[name].header.tensors[name]

    def load(
        self,
        name: str,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        *,
        copy: bool = False,
    ) -> Tensor:
        """The tensor for use: a view of the file if nothing has to change, else a copy.

        dtype None keeps the file's type; integers and booleans keep it always. `copy` forbids the
        view, whose pages would count as the process's memory once they are touched.
        """
        own = self.info(name).dtype
        dtype = dtype if dtype is not None and own.is_floating_point else own
        if dtype == own and torch.device(device).type == "cpu" and not copy:
            return self[name]
        tensor = torch.empty(self.info(name).shape, dtype=dtype, device=device)
        self._owner[name].copy_to(name, tensor)
        return tensor

    def _add(self, name: str, file: _File) -> None:
        if name in self._owner:
            raise FramePackError(
                f"{file.path} and {self._owner[name].path} both hold the tensor {name}: "
                "they are not parts of one model; name one of them"
            )
        self._owner[name] = file


def open_weights(paths: Path | str | Iterable[Path | str]) -> WeightFiles:
    """Open one file or all the shards of a model; safetensors, or `.pt`/`.bin` of tensors only.

    Raises FramePackError for a file that is missing, truncated or of another format.
    """
    if isinstance(paths, (str, Path)):
        paths = [paths]
    return WeightFiles(_open(Path(path)) for path in paths)


def read_header(path: Path | str) -> Header:
    """Names, types, shapes and metadata of a safetensors file, checked against its size."""
    path = Path(path)
    size = _size(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise FramePackError(f"{path} {_not_weights(path, size)}")
            entries = json.loads(file.read(length), object_pairs_hook=_once)
        metadata = entries.pop(METADATA, None) or {}
        metadata = {str(key): str(value) for key, value in metadata.items()}
        tensors = {name: _tensor_info(path, name, e, 8 + length) for name, e in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FramePackError(
            f"{path} has a damaged safetensors header ({error}): download it again"
        ) from None
    _check_extent(path, tensors, 8 + length, size)
    return Header(tensors, metadata)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The entries of a header; of two under one name json would take the last and be silent."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name} is in it twice")
        found[name] = value
    return found


def save_weights(
    path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file at once or not at all; equal input gives equal bytes.

    Raises FramePackError where the disk is full, naming what is left intact.
    """
    infos = {name: TensorInfo(x.dtype, tuple(x.shape)) for name, x in tensors.items()}
    with writing_weights(path, infos, metadata) as write:
        for name, tensor in tensors.items():
            write(name, tensor)


@contextmanager
def writing_weights(
    path: Path | str, infos: Mapping[str, TensorInfo], metadata: Mapping[str, str] | None = None
) -> Iterator[Callable[[str, Tensor], None]]:
    """Write a safetensors file one tensor at a time, in any order: `write(name, tensor)`.

    All of `infos` must be written, as announced; the file appears once they are.
    """
    header, starts = _layout(infos, metadata)
    left = set(infos)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(header)

        def write(name: str, tensor: Tensor) -> None:
            if (tensor.dtype, tuple(tensor.shape)) != (infos[name].dtype, infos[name].shape):
                raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}: {infos[name]}")
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            file.seek(starts[name])
            file.write(flat.view(torch.uint8).numpy().data)
            left.discard(name)

        yield write
        if left:
            raise ValueError(f"not written: {sorted(left)}")


def _layout(
    infos: Mapping[str, TensorInfo], metadata: Mapping[str, str] | None
) -> tuple[bytes, dict[str, int]]:
    """The header of a file, and where in the file each tensor starts."""
    entries: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
    starts: dict[str, int] = {}
    start = 0
    # Widest types first, as in files of the reference writer, keeps every tensor aligned.
    for name in sorted(infos, key=lambda name: (-infos[name].dtype.itemsize, name)):
        info = infos[name]
        starts[name], stop = start, start + info.nbytes
        entries[name] = {
            "dtype": DTYPE_NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + start for name, start in starts.items()}


class _Safetensors:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = read_header(path)
        self._map: mmap.mmap | None = None
        self._buffer: Tensor | None = None

    def view(self, name: str) -> Tensor:
        info = self.header.tensors[name]
        if info.nbytes == 0:
            return torch.empty(info.shape, dtype=info.dtype)
        if self._map is None:
            self._map = _map_file(self.path)
        count = math.prod(info.shape)
        with warnings.catch_warnings():  # of a read-only map, which is meant
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            start = info.start or 0
            flat = torch.frombuffer(self._map, dtype=info.dtype, count=count, offset=start)
        return flat.view(info.shape)

    def copy_to(self, name: str, target: Tensor) -> None:
        """Fill a tensor of any type and device, piece by piece through a small buffer.

        Not through the map, whose pages would stay in the resident set once touched.
        """
        info = self.header.tensors[name]
        if self._buffer is None:  # kept: one buffer a tensor would leave the heap full of holes
            self._buffer = torch.empty(CHUNK, dtype=torch.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(info.start or 0)
            for part in target.view(-1).split(CHUNK // info.dtype.itemsize):
                piece = self._buffer[: len(part) * info.dtype.itemsize]
                _read_into(file, memoryview(cast(Any, piece.numpy())), self.path)
                part.copy_(piece.view(info.dtype))


class _TorchFile:
    """What torch.save wrote: a dict of tensors, perhaps inside a `state_dict` entry."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors = _torch_load(path)
        infos = {k: TensorInfo(t.dtype, tuple(t.shape)) for k, t in self._tensors.items()}
        self.header = Header(infos, {})

    def view(self, name: str) -> Tensor:
        return self._tensors[name]

    def copy_to(self, name: str, target: Tensor) -> None:
        target.copy_(self._tensors[name])


def _open(path: Path) -> _File:
    if path.suffix.lower() in SAFETENSORS:
        return _Safetensors(path)
    size = _size(path)
    if path.suffix.lower() in GGUF and _first_bytes(path).startswith(b"GGUF"):
        from .gguf import GgufFile  # which needs this module

        return GgufFile(path)
    if path.suffix.lower() in TORCH and _is_torch(_first_bytes(path)):
        return _TorchFile(path)
    raise FramePackError(f"{path} {_not_weights(path, size)}")


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


def _is_torch(start: bytes) -> bool:
    """A zip (PK) since torch 1.6, a pickle of protocol 2 before."""
    return start[:2] in (b"PK", b"\x80\x02")


def _size(path: Path) -> int:
    if not is_file(path):
        raise FramePackError(f"{path} does not exist: check the path")
    return path.stat().st_size


def _not_weights(path: Path, size: int) -> str:
    """What is wrong with a file that does not start as its name says, and what to do."""
    if size == 0:
        return "is empty: download it again"
    start = _first_bytes(path)
    for magic, reason in LOOK_ALIKES.items():
        if start.startswith(magic):
            return reason
    if path.suffix.lower() in SAFETENSORS:
        if _is_torch(start):
            return "is a PyTorch file named .safetensors: rename it to .pt"
        if int.from_bytes(start, "little") <= MAX_HEADER:
            return f"ends inside its header ({size_text(size)}): download it again"
    return f"is not a file of weights ({', '.join(SAFETENSORS + TORCH + GGUF)}): check the path"


def _tensor_info(path: Path, name: str, entry: dict[str, Any], base: int) -> TensorInfo:
    if entry["dtype"] not in DTYPES:
        raise FramePackError(
            f"{path}: tensor {name} has the type {entry['dtype']}, which is not supported: "
            "use the bf16 or fp16 file of this model"
        )
    start, stop = entry["data_offsets"]
    info = TensorInfo(DTYPES[entry["dtype"]], tuple(entry["shape"]), base + start)
    whole = all(isinstance(n, int) for n in (start, stop, *info.shape))
    if not whole or min(0, start, *info.shape) < 0 or stop - start != info.nbytes:
        raise ValueError(f"{name} of shape {list(info.shape)} at bytes {start} to {stop}")
    return info


def _check_extent(path: Path, tensors: dict[str, TensorInfo], base: int, size: int) -> None:
    """The tensors must lie back to back from the header to the end of the file."""
    stop = base
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if info.start != stop:
            fault = "overlaps the tensor before it" if (info.start or 0) < stop else "leaves a gap"
            raise FramePackError(
                f"{path} has a damaged safetensors header ({name} {fault}): download it again"
            )
        stop += info.nbytes
    if size < stop:
        raise FramePackError(
            f"{path} is {size_text(size)} but its header says {size_text(stop)}: "
            "the download is incomplete, download it again"
        )
    if size > stop:
        raise FramePackError(
            f"{path} is {size_text(size)} but its header says {size_text(stop)}: "
            "something was added to it, download it again"
        )


def _map_file(path: Path) -> mmap.mmap:
    """Map a whole file in a way that takes no memory by itself.

    Linux refuses a private map larger than memory and swap together unless told not to reserve for
    it. Windows has no such flag and counts a private map against the page file in full, so there
    the map is read-only.
    """
    try:
        with path.open("rb") as file:
            if os.name == "nt":
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            flags = mmap.MAP_PRIVATE | (MAP_NORESERVE if sys.platform == "linux" else 0)
            return mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    except OSError as error:
        raise FramePackError(
            f"cannot map {path} ({size_text(path.stat().st_size)}) into memory: {error.strerror}; "
            "put it on a local disk, or raise the limit on virtual memory (ulimit -v)"
        ) from error


def _read_into(file: Any, buffer: memoryview, path: Path) -> None:
    done = 0
    while done < len(buffer):
        count = file.readinto(buffer[done:])
        if not count:
            raise FramePackError(f"{path} became shorter while it was read: download it again")
        done += count


def _torch_load(path: Path) -> dict[str, Tensor]:
    zipped = _first_bytes(path).startswith(b"PK")  # only the zip form can be mapped
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise FramePackError(
            f"{path} holds more than tensors and could run code, so it was not opened: "
            "use the safetensors file of this model"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # any at all: torch reads on wherever a damaged file leads it
        raise FramePackError(
            f"{path} cannot be read ({str(error).partition(chr(10))[0]}): "
            "the download is incomplete, download it again"
        ) from error
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise FramePackError(f"{path} is not a dict of tensors: use the model's weight file")
    return content
