"""UniPC trajectories on an analytic model, and CFG with rescale."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from framepack_core.models.dit import DiTInputs
from framepack_core.models.prompt import TextCondition
from framepack_core.sampling.flow import CFG, FlowDenoiser, Guided
from framepack_core.sampling.unipc import sample_unipc

from .result import Case, compare, exact

FP32 = (1e-4, 1e-5)
BF16 = (0.0, 2e-2)


def check(folder: Path) -> Iterator[Case]:
    spec = json.loads((folder / "unipc.json").read_text())
    tensors = load_file(folder / "unipc.safetensors")
    for run in spec["runs"]:
        yield from _check_run(run, tensors)
    for case in spec["wrapper"]["cases"]:
        yield from _check_wrapper(case, tensors)


def _check_run(run: dict[str, Any], tensors: dict[str, Tensor]) -> Iterator[Case]:
    name = f"{run['variant']}.{run['steps']}"
    xs, outputs, called = [], [], []

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        called.append(sigma[0].item())
        mixed = torch.einsum("ij,bj...->bi...", tensors["A"], x)
        bias = tensors["b"].view(-1, *[1] * (x.ndim - 2))
        return torch.tanh(mixed) + bias * sigma.view(-1, *[1] * (x.ndim - 1))

    def keep(_i: int, x: Tensor, denoised: Tensor) -> None:
        xs.append(x)
        outputs.append(denoised)

    result = sample_unipc(
        model,
        tensors["noise"],
        tensors[f"sigmas.{run['steps']}"],
        variant=run["variant"],
        on_step=keep,
    )
    stored = run["stored_step_indices"]
    yield exact(f"{name}.calls", called, run["model_calls_at_sigma"])
    yield compare(f"{name}.result", result, tensors[f"{name}.result"], *FP32)
    actual = torch.stack([outputs[i] for i in stored])
    yield compare(f"{name}.denoised", actual, tensors[f"{name}.denoised"], *FP32)
    actual = torch.stack([xs[i] for i in stored])
    yield compare(f"{name}.x", actual, tensors[f"{name}.x"], *FP32)


class _AnalyticModel:
    """Stands in for the DiT: v = 0.9 tanh(W x) + 0.3 t / 1000 + p, p read from the prompt."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self.weight, self.dtype = weight, dtype
        self.timesteps: list[Tensor] = []

    def __call__(self, inputs: DiTInputs, _transform: Any) -> Tensor:
        x, timestep, text = inputs.latents, inputs.timestep, inputs.text
        self.timesteps.append(timestep)
        mixed = torch.einsum("ij,bj...->bi...", self.weight.to(self.dtype), x)
        time = (timestep / 1000).to(self.dtype).view(-1, *[1] * (x.ndim - 1))
        return 0.9 * torch.tanh(mixed) + 0.3 * time + text.pooled.to(self.dtype)


def _check_wrapper(case: dict[str, Any], tensors: dict[str, Tensor]) -> Iterator[Case]:
    dtype = getattr(torch, case["dtype"])
    model = _AnalyticModel(tensors["wrap.W"], dtype)
    denoiser = FlowDenoiser(model, dtype)
    positive, negative = (
        Guided(TextCondition(torch.empty(0), torch.tensor(p))) for p in (0.4, -0.2)
    )
    cfg = None
    if case["cfg_scale"] != 1.0:
        cfg = CFG(negative, case["cfg_scale"], case["cfg_rescale"])
    x0 = denoiser.denoise(tensors["wrap.x"], torch.tensor(case["sigma"]), positive, cfg=cfg)
    name = f"{case['out'].removesuffix('.x0')}.{case['implementation']}"
    tolerance = FP32 if dtype == torch.float32 else BF16
    yield compare(name, x0, tensors[case["out"]], *tolerance)
    yield exact(f"{name}.dtype", str(x0.dtype)[6:], case["out_dtype"])
    yield exact(f"{name}.calls", len(model.timesteps), case["model_calls"])
    # The original rounds timesteps to the type of the model; neither musubi-tuner nor we do.
    rounded = dtype if case["implementation"] == "original" else torch.float32
    timesteps = model.timesteps[0].to(rounded).float()
    yield compare(f"{name}.timesteps", timesteps, torch.tensor(case["timesteps_given"]), 1e-6, 0)
