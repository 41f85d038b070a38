"""Rotary tables at 1x, 2x and 4x, and one application."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from framepack_core.models.rope import Rope, apply_rope, pack_rope, rope_table

from .result import Case, compare

TOLERANCE = (0.0, 1e-5)


def check(folder: Path) -> Iterator[Case]:
    spec = json.loads((folder / "rope.json").read_text())
    tensors = load_file(folder / "rope.safetensors")
    for case in spec["cases"]:
        expected = tensors[case["name"]]
        table = rope_table(
            torch.tensor(case["frame_indices"]),
            case["grid_h"],
            case["grid_w"],
            tuple(case["axes_dim"]),
            case["theta"],
            pool=int(case["level"].removesuffix("x")),
            scale=case["h_w_scaling_factor"],
        )
        halves = torch.cat([x.repeat_interleave(2, dim=-1) for x in table], dim=-1)
        actual = halves.transpose(1, 2).unflatten(-1, expected.shape[2:])
        yield compare(case["name"], actual, expected, *TOLERANCE)
    cos, sin = tensors["apply.freqs"].chunk(2, dim=-1)
    table = pack_rope([Rope(cos[..., ::2], sin[..., ::2])], plain_tokens=0)
    yield compare("apply", apply_rope(tensors["apply.x"], table), tensors["apply.out"], *TOLERANCE)
