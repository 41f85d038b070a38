"""Whole pictures through both resizers: Lanczos to the byte, area shrinking within one level."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from framepack_core.runtime.images import resize_and_crop
from golden.result import Case, compare

RULES = {"original": "lanczos", "musubi_from_array": "auto"}


def check(folder: Path) -> Iterator[Case]:
    spec = json.loads((folder / "resize_pixels.json").read_text())
    tensors = load_file(folder / "resize_pixels.safetensors")
    for case in spec["cases"]:
        image = tensors[f"{case['case']}.image"].numpy()
        width, height = case["target_w_h"]
        for rule, resample in RULES.items():
            actual = torch.from_numpy(
                resize_and_crop(image, width, height, resample=resample).copy()
            )
            name = f"{case['case']}.{rule}"
            yield compare(name, actual, tensors[name], rtol=0, atol=1)
