"""A DiT with LoRAs merged in, or in another type, written tensor by tensor."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..lora.apply import LoraUse, MergeLoras
from ..runtime.errors import FramePackError
from ..runtime.files import atomic_path, is_folder, size_text
from ..runtime.fingerprint import file_sha256
from ..weights.files import GGUF, SAFETENSORS, TensorInfo, writing_weights
from ..weights.formats import PARTS, Gguf
from ..weights.gguf import writing_gguf
from ..weights.precisions import Precision
from ..weights.state import ModelState, OnEncoded
from .build import open_dit
from .dit import DiTConfig

MERGED = "framepack_merged"  # metadata: what went into a merged model, as JSON
STEM = "diffusion_pytorch_model"
_CLASS = {"_class_name": "HunyuanVideoTransformer3DModelPacked"}

Progress = Callable[[int, int], None]


def save_dit(
    source: Path | str,
    destination: Path | str,
    loras: Sequence[LoraUse] = (),
    *,
    dtype: torch.dtype = torch.bfloat16,
    precision: Precision = "full",
    max_shard_bytes: int | None = None,
    device: torch.device | str = "cpu",
    on_tensor: Progress | None = None,
    on_encoded: OnEncoded | None = None,
) -> list[Path]:
    """Write the DiT of `source` with LoRAs merged; returns the files, an index of shards last.

    destination is a .safetensors file or, with max_shard_bytes, a folder that gets shards, index
    and config.json. precision is as for `load_dit`. One tensor at a time is in memory, plus what
    merging it takes; on_tensor hears how many of how many are written, on_encoded of
    each weight that is quantised. Raises FramePackError where
    the disk is full: finished shards stay, no half-written file does.
    """
    config, state = open_dit(
        source,
        dtype=dtype,
        device=device,
        precision=precision,
        transform=MergeLoras(loras),
        fp32=(),
        copy=True,
    )
    state = replace(state, on_encoded=on_encoded)
    merged = merged_from(Path(source).name, loras)
    return write_dit(config, state, destination, merged, max_shard_bytes, on_tensor)


def write_dit(
    config: DiTConfig,
    state: ModelState,
    destination: Path | str,
    merged: Mapping[str, Any],
    max_shard_bytes: int | None = None,
    on_tensor: Progress | None = None,
) -> list[Path]:
    """Write a DiT whose tensors come one at a time; `merged` says in the metadata what it is.

    The other arguments, the result and the errors are those of `save_dit`.
    """
    destination, sharded = Path(destination), max_shard_bytes is not None
    formats = {encoding.format for encoding in state.encodings().values()}
    blocks = next((format for format in formats if isinstance(format, Gguf)), None)
    suffixes = SAFETENSORS if blocks is None else GGUF
    if destination.suffix.lower() not in suffixes and not (sharded and blocks is None):
        raise FramePackError(
            f"{destination} must be named {suffixes[0]}"
            + ("; or ask for shards" if blocks is None else " and be one file, as it is GGUF")
        )
    check_free(destination, sharded)
    infos = state.infos()
    _check_space(destination, infos)
    paths = _paths(destination, _shards(infos, max_shard_bytes), sharded)
    metadata = {
        "format": "pt",
        "config": json.dumps(config.to_dict(), sort_keys=True),
        MERGED: json.dumps(merged, sort_keys=True),
    }
    tensors = enumerate(state, 1)
    for path, names in paths.items():
        here = {name: infos[name] for name in names}
        with (
            writing_weights(path, here, metadata)
            if blocks is None
            else writing_gguf(path, here, blocks, metadata)
        ) as write:
            for number, (name, tensor) in itertools.islice(tensors, len(names)):
                write(name, tensor)
                if on_tensor is not None:
                    on_tensor(number, len(infos))
    if not sharded:
        return list(paths)
    size = sum(info.nbytes for info in infos.values())
    described = _write_json(destination / "config.json", _CLASS | config.to_dict())
    return [*paths, described, _write_index(destination, paths, size)]


def merged_from(base: str, loras: Sequence[LoraUse]) -> dict[str, Any]:
    """What the metadata say of a model made from a base, by its name, and LoRAs."""
    return {"base": base, "loras": [_described(use) for use in loras]}


def _described(use: LoraUse) -> dict[str, Any]:
    return {
        "file": use.lora.path.name,
        "sha256": file_sha256(use.lora.path),
        "strength": use.strength,
        "modules": len(use.lora.modules),
    }


def _shards(infos: Mapping[str, TensorInfo], limit: int | None) -> list[list[str]]:
    """The names in order, in groups of at most `limit` bytes; parts of a weight stay together."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, info in infos.items():
        full = limit is not None and size + info.nbytes > limit
        if full and shards[-1] and not name.endswith(tuple(f".{part}" for part in PARTS)):
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += info.nbytes
    return shards


def _paths(destination: Path, shards: Sequence[list[str]], sharded: bool) -> dict[Path, list[str]]:
    """Which file gets which tensors."""
    if not sharded:
        return {destination: shards[0]}
    count = len(shards)
    return {
        destination / f"{STEM}-{i:05d}-of-{count:05d}.safetensors": names
        for i, names in enumerate(shards, 1)
    }


def check_free(destination: Path, sharded: bool) -> None:
    """Write over nothing: neither the model and LoRAs that are read meanwhile nor another file."""
    if sharded and is_folder(destination) and any(destination.iterdir()):
        raise FramePackError(f"{destination} is not empty: choose a new folder for the model")
    if os.path.lexists(destination) and not (sharded and is_folder(destination)):
        raise FramePackError(f"{destination} is there already: choose another name for the model")


def _check_space(destination: Path, infos: Mapping[str, TensorInfo]) -> None:
    folder = next(parent for parent in destination.resolve().parents if is_folder(parent))
    needed = sum(info.nbytes for info in infos.values())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise FramePackError(
            f"{destination} needs {size_text(needed)} but the disk has {size_text(free)} free; "
            "free some space or choose another folder"
        )


def _write_index(folder: Path, paths: Mapping[Path, list[str]], size: int) -> Path:
    index = folder / f"{STEM}.safetensors.index.json"
    weight_map = {name: path.name for path, names in paths.items() for name in names}
    content = {"metadata": {"total_size": size}, "weight_map": weight_map}
    return _write_json(index, content)


def _write_json(path: Path, content: Mapping[str, Any]) -> Path:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return path
