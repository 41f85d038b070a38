"""TeaCache and MagCache on the tiny DiT: which steps run, the distances, the results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from framepack_core.models.dit import FramePackDiT
from framepack_core.sampling.flow import FlowDenoiser, Guided
from framepack_core.sampling.schedule import dynamic_shift, flow_sigmas
from framepack_core.sampling.step_cache import (
    TEACACHE_POLYNOMIAL,
    MagCache,
    MagCacheConfig,
    MagCalibration,
    StepCacheFactory,
    TeaCache,
)
from framepack_core.sampling.unipc import sample_unipc

from .dit_tiny import ATOL, RTOL, context_of, inputs_of, load_model, noise_floor, text_of
from .result import Case, compare, exact


def check(folder: Path) -> Iterator[Case]:
    model = load_model(folder)
    spec = json.loads((folder / "step_skip.json").read_text())
    tensors = load_file(folder / "step_skip.safetensors")
    run = _Run(model, folder)
    for case in spec["teacache"]["cases"]:
        yield from _check_tea(run, spec["teacache"]["note"], case, tensors)
    for case in spec["magcache"]["cases"]:
        yield from _check_mag(run, spec["magcache"]["note"], case, tensors)
    yield from _check_calibration(run, spec["magcache"])


class _Run:
    """The sampling loop on a named case of dit_tiny."""

    def __init__(self, model: FramePackDiT, folder: Path) -> None:
        self.model, self.folder = model, folder

    def inputs(self, note: str) -> dict[str, Tensor]:
        name = re.search(r"case (\w+)", note)[1]
        return inputs_of(load_file(self.folder / f"dit_tiny_{name}.safetensors"))

    def __call__(self, note: str, steps: int, factory: StepCacheFactory) -> tuple[Tensor, Any]:
        given = self.inputs(note)
        seed = int(re.search(r"seed (\d+)", note)[1])
        noise = torch.randn(
            given["hidden_states"].shape, generator=torch.Generator("cpu").manual_seed(seed)
        )
        sigmas = flow_sigmas(steps, dynamic_shift(*noise.shape[2:]))
        cache = factory(sigmas)
        guided = Guided(
            text_of(given), given["image_embeddings"], given["guidance"].max().item() / 1000
        )
        denoiser = FlowDenoiser(self.model)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            return denoiser.denoise(
                x,
                sigma,
                guided,
                latent_indices=given["latent_indices"],
                context=context_of(given),
                step_cache=cache,
            )

        return sample_unipc(denoise, noise, sigmas), cache

    def check(
        self, name: str, note: str, steps: int, factory: StepCacheFactory, expected: Tensor
    ) -> tuple[Case, Any]:
        """The result's case, and the cache that was used."""
        result, cache = self(note, steps, factory)
        floor = noise_floor(lambda: self(note, steps, factory)[0])
        result = result[:, : expected.shape[1]]
        return compare(f"{name}.result", result, expected, RTOL, ATOL + floor), cache


def _check_tea(
    run: _Run, note: str, case: dict[str, Any], tensors: dict[str, Tensor]
) -> Iterator[Case]:
    name = f"tea.{case['steps']}.{case['threshold']}"
    expected = tensors[f"{name}.result"]
    result, cache = run.check(
        name, note, case["steps"], lambda s: TeaCache(s, case["threshold"]), expected
    )
    yield exact(f"{name}.coefficients", list(TEACACHE_POLYNOMIAL), case["coefficients"])
    yield exact(f"{name}.computed", [int(c) for c in cache.computed], case["computed"])
    yield result


def _check_mag(
    run: _Run, note: str, case: dict[str, Any], tensors: dict[str, Tensor]
) -> Iterator[Case]:
    name = case["result"].removesuffix(".result")
    given = case["ratios_given"]
    config = MagCacheConfig(
        case["threshold"],
        case["K"],
        case["retention_ratio"],
        **({} if given is None else {"ratios": tuple(given)}),
    )
    result, cache = run.check(
        name, note, case["steps"], lambda s: MagCache(s, config), tensors[case["result"]]
    )
    yield exact(f"{name}.ratios", cache.ratios, case["ratios_used"])
    yield exact(f"{name}.computed", [int(c) for c in cache.computed], case["computed"])
    yield result


def _check_calibration(run: _Run, spec: dict[str, Any]) -> Iterator[Case]:
    expected = spec["calibration"]
    _, cache = run(spec["note"], expected["steps"], MagCalibration)
    for key in ("norm_ratio", "norm_std", "cos_dis"):
        actual = torch.tensor(getattr(cache, key))
        yield compare(f"calibration.{key}", actual, torch.tensor(expected[key]), 0.0, 2e-5)
