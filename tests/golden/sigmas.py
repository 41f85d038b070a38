"""Schedules by size, steps and shift."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from framepack_core.sampling.schedule import dynamic_shift, flow_sigmas

from .result import Case, compare

TOLERANCE = (1e-6, 0.0)


def check(folder: Path) -> Iterator[Case]:
    for case in json.loads((folder / "sigmas.json").read_text())["cases"]:
        shift = case["shift"] if case["shift"] is not None else dynamic_shift(*case["latent_thw"])
        name = f"{case['frames']}x{case['height']}x{case['width']}.{case['steps']}.{case['shift']}"
        expected_shift = torch.tensor([case["effective_shift"]])
        yield compare(f"{name}.shift", torch.tensor([shift]), expected_shift, *TOLERANCE)
        sigmas = flow_sigmas(case["steps"], shift)
        yield compare(f"{name}.sigmas", sigmas, torch.tensor(case["sigmas"]), *TOLERANCE)
        timesteps = 1000 * sigmas[:-1]
        expected = torch.tensor(case["timesteps_fp32"])
        yield compare(f"{name}.timesteps", timesteps, expected, *TOLERANCE)
