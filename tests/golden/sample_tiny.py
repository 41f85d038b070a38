"""The whole sampler on the tiny DiT: plain, CFG with rescale, initial latent with strength."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from framepack_core.models.dit import FramePackDiT
from framepack_core.models.prompt import TextCondition
from framepack_core.sampling.flow import CFG, FlowDenoiser, Guided, x_at
from framepack_core.sampling.schedule import dynamic_shift, flow_sigmas
from framepack_core.sampling.unipc import sample_unipc

from .dit_tiny import ATOL, RTOL, context_of, inputs_of, load_model, noise_floor, text_of
from .result import Case, compare


def check(folder: Path) -> Iterator[Case]:
    model = load_model(folder)
    spec = json.loads((folder / "sample_tiny.json").read_text())
    tensors = load_file(folder / "sample_tiny.safetensors")
    for case in spec["cases"]:
        given = inputs_of(load_file(folder / case["inputs"]))
        prefix = f"{case['name']}."
        of_case = {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}
        yield from _check_case(case, model, given, of_case)


def _check_case(
    case: dict[str, Any], model: FramePackDiT, given: dict[str, Tensor], expected: dict[str, Tensor]
) -> Iterator[Case]:
    name, steps = case["name"], case["num_inference_steps"]
    size = ((case["frames"] + 3) // 4, case["height"] // 8, case["width"] // 8)
    noise = torch.randn(1, 16, *size, generator=torch.Generator("cpu").manual_seed(case["seed"]))
    yield compare(f"{name}.noise", noise, expected["noise"], 0.0, 0.0)

    shift = case.get("shift") or dynamic_shift(*noise.shape[2:])
    sigmas = flow_sigmas(steps, shift)
    x = noise
    if "strength" in case:
        sigmas = sigmas * case["strength"]
        x = x_at(sigmas[:1], expected["initial_latent"], noise)

    guidance = case["distilled_guidance_scale"]
    image = given["image_embeddings"]
    guided = Guided(text_of(given), image, guidance)
    cfg = None
    if case.get("real_guidance_scale", 1.0) != 1.0:
        negative = TextCondition(
            expected["negative_prompt_embeds"],
            expected["negative_prompt_poolers"],
            expected["negative_prompt_embeds_mask"].bool(),
        )
        cfg = CFG(
            Guided(negative, image, guidance),
            case["real_guidance_scale"],
            case.get("guidance_rescale", 0.0),
        )
    denoiser = FlowDenoiser(model)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return denoiser.denoise(
            x,
            sigma,
            guided,
            latent_indices=given["latent_indices"],
            context=context_of(given),
            cfg=cfg,
        )

    def run() -> Tensor:
        """Every denoised step, the last of which is the result."""
        outputs: list[Tensor] = []
        sample_unipc(denoise, x, sigmas, on_step=lambda _i, _x, out: outputs.append(out))
        return torch.stack(outputs)

    denoised, atol = run(), ATOL + noise_floor(run)
    yield compare(f"{name}.denoised", denoised[:-1], expected["denoised"], RTOL, atol)
    yield compare(f"{name}.result", denoised[-1], expected["result"], RTOL, atol)
