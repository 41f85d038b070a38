"""The packed DiT: outputs of every case, and the intermediates where a file holds them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from torch import Tensor

from framepack_core.models.dit import DiTConfig, DiTInputs, FramePackDiT, Tokens
from framepack_core.models.packing import Context
from framepack_core.models.prompt import TextCondition

from .result import Case, compare

RTOL, ATOL = 1e-4, 1e-5
TEXT_SIDE = ("context_embedder", "double.last.encoder")


def load_model(folder: Path) -> FramePackDiT:
    """The tiny DiT of the folder in fp32."""
    config = json.loads((folder / "dit_tiny_config.json").read_text())
    model = FramePackDiT(DiTConfig.from_dict(config))
    weights = load_file(folder / "dit_tiny_weights.safetensors")
    model.load_state_dict({name: x.float() for name, x in weights.items()}, strict=True)
    return model.eval().requires_grad_(False)


def noise_floor(run: Callable[[], Tensor]) -> float:
    """How far the last fp32 bits that the references do not pin down move a result.

    The sinusoid multiplies guidance (up to 10000) by exp(-ln(10000) i / 128), whose last bit
    differs between machines (the goldens' README allows for it), and UniPC's phi functions are
    computed by the references in fp32, where they cancel at small steps; ours are fp64. The result
    is compared with one where each such value is off by one fp32 unit in the last place.
    """
    plain = run()
    exp, expm1 = torch.exp, math.expm1

    def up(x: Tensor) -> Tensor:
        return torch.nextafter(x.float(), torch.tensor(torch.inf))

    with (
        patch.object(torch, "exp", lambda x: up(exp(x))),
        patch.object(math, "expm1", lambda x: up(torch.tensor(expm1(x))).item()),
    ):
        return (run() - plain).abs().max().item()


def inputs_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix("in."): v for k, v in tensors.items() if k.startswith("in.")}


def context_of(given: dict[str, Tensor]) -> Context:
    return Context(
        given.get("clean_latents"),
        given.get("clean_latent_indices"),
        given.get("clean_latents_2x"),
        given.get("clean_latent_2x_indices"),
        given.get("clean_latents_4x"),
        given.get("clean_latent_4x_indices"),
    )


def text_of(given: dict[str, Tensor]) -> TextCondition:
    return TextCondition(
        given["encoder_hidden_states"],
        given["pooled_projections"],
        given["encoder_attention_mask"].bool(),
    )


def dit_inputs(given: dict[str, Tensor], rope_scale: float = 1.0) -> DiTInputs:
    """What our forward takes, from the tensors of a case."""
    return DiTInputs(
        latents=given["hidden_states"],
        timestep=given["timestep"],
        text=text_of(given),
        guidance=given["guidance"],
        image_embeds=given.get("image_embeddings"),
        latent_indices=given.get("latent_indices"),
        context=context_of(given),
        rope_scale=rope_scale,
    )


def check(folder: Path) -> Iterator[Case]:
    model = load_model(folder)
    cases = json.loads((folder / "dit_tiny.json").read_text())["cases"]
    for name, case in cases.items():
        tensors = load_file(folder / f"dit_tiny_{name}.safetensors")
        given = inputs_of(tensors)
        if "in.hidden_states" not in tensors:
            given = inputs_of(load_file(folder / _inputs_file(name))) | given
        scale = _rope_scale(case, given)
        run = partial(model, dit_inputs(given, scale))
        yield compare(name, run(), tensors["out"], RTOL, ATOL + noise_floor(run))
        intermediates = folder / f"dit_tiny_{name}_intermediates.safetensors"
        if intermediates.exists():
            yield from _check_intermediates(name, model, given, load_file(intermediates))


def _inputs_file(name: str) -> str:
    return f"dit_tiny_{name.removesuffix('_off')}_on.safetensors"


def _rope_scale(case: dict, given: dict[str, Tensor]) -> float:
    threshold = case.get("rope_scaling_timestep_threshold")
    if threshold is None or given["timestep"].max() < threshold:
        return 1.0
    return case["rope_scaling_factor"]


def _check_intermediates(
    name: str, model: FramePackDiT, given: dict[str, Tensor], expected: dict[str, Tensor]
) -> Iterator[Case]:
    actual = _intermediates(model, given)
    for key, tensor in expected.items():
        floor = noise_floor(lambda key=key: _intermediates(model, given)[key])
        if key in TEXT_SIDE:  # padded rows reach no output, and we drop them
            tensor = tensor[:, : actual[key].shape[1]]
        yield compare(f"{name}.{key}", actual[key], tensor, RTOL, ATOL + floor)


def _intermediates(model: FramePackDiT, given: dict[str, Tensor]) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}

    def keep(key: str, pick: Callable[[Any], Tensor] = lambda out: out) -> Callable[..., None]:
        return lambda _module, _args, out: seen.__setitem__(key, pick(out))

    def hidden_part(out: Tensor) -> Tensor:
        return out[:, : seen["sequence"].shape[1]]

    first, last = model.transformer_blocks[0], model.transformer_blocks[-1]
    hooks = [
        module.register_forward_hook(hook)
        for module, hook in (
            (model.context_embedder, keep("context_embedder")),
            (model.context_embedder.time_text_embed, keep("context_embedder.temb")),
            (model.image_projection, keep("image_projection")),
            (first, keep("double.0.hidden", lambda out: out[0])),
            (last, keep("double.last.encoder", lambda out: out[1])),
            (model.single_transformer_blocks[-1], keep("single.last.hidden", hidden_part)),
        )
    ]
    tokens: Tokens = model.embed(dit_inputs(given))
    seen["sequence"], seen["temb"] = tokens.latent, tokens.condition
    length = tokens.latent.shape[1]
    cos = tokens.rope.cos[:, :length, 0]
    signs = torch.tensor([-1.0, 1.0]).repeat(cos.shape[-1] // 2)
    seen["rope_freqs"] = torch.cat([cos, tokens.rope.sin[:, :length, 0] * signs], dim=-1)
    model.transform(tokens)
    for hook in hooks:
        hook.remove()
    return seen
