"""Overlap blending of pixel clips, and the overlaps that must be refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from framepack_core.sampling.decode import blend
from golden.result import Case, compare, exact


def check(folder: Path) -> Iterator[Case]:
    spec = json.loads((folder / "soft_append.json").read_text())
    tensors = load_file(folder / "soft_append.safetensors")
    for case in spec["cases"]:
        name = str(case["case"])
        history, current, expected = (tensors[f"{name}.{k}"] for k in ("history", "current", "out"))
        actual = blend(history, current, case["overlap"])
        atol = 1e-6 if expected.dtype == torch.float32 else 1e-2
        yield compare(name, actual, expected, rtol=0, atol=atol)
        yield exact(f"{name}.dtype", actual.dtype, expected.dtype)
    for case in spec["errors"]:
        first, second, overlap = (case[k] for k in ("history_frames", "current_frames", "overlap"))
        yield exact(f"refused.{first}.{second}.{overlap}", _refuses(first, second, overlap), True)


def _refuses(first: int, second: int, overlap: int) -> bool:
    try:
        blend(torch.zeros(1, 3, first, 2, 2), torch.zeros(1, 3, second, 2, 2), overlap)
    except ValueError:
        return True
    return False
