"""Tiny models with fixed weights, shared by the tests."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from framepack_core.models.dit import DiTConfig, FramePackDiT
from framepack_core.models.packing import Context
from framepack_core.models.prompt import TextCondition
from framepack_core.sampling.flow import Guided

CONFIG = DiTConfig(
    num_attention_heads=2,
    attention_head_dim=16,
    num_layers=1,
    num_single_layers=2,
    num_refiner_layers=1,
    text_embed_dim=12,
    pooled_projection_dim=10,
    rope_axes_dim=(4, 6, 6),
    image_proj_dim=8,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def tiny_dit(seed: int = 0) -> FramePackDiT:
    """Random weights large enough that every input shows in the output."""
    model = FramePackDiT(CONFIG).requires_grad_(False)
    g = generator(seed)
    for parameter in model.parameters():
        parameter.normal_(0, 0.2, generator=g)
    return model.eval()


def guided(batch: int = 1, words: int = 5, seed: int = 0, mask: Tensor | None = None) -> Guided:
    text = TextCondition(
        randn(batch, words, CONFIG.text_embed_dim, seed=seed),
        randn(batch, CONFIG.pooled_projection_dim, seed=seed + 1),
        mask,
    )
    return Guided(text, randn(batch, 3, CONFIG.image_proj_dim, seed=seed + 2))


def context(batch: int = 1, size: int = 4, seed: int = 10) -> Context:
    return Context(
        randn(batch, 16, 2, size, size, seed=seed),
        torch.tensor([[0, 10]]),
        randn(batch, 16, 2, size, size, seed=seed + 1),
        torch.tensor([[11, 12]]),
        randn(batch, 16, 16, size, size, seed=seed + 2),
        torch.arange(13, 29)[None],
    )


def multiply_in_fp8() -> None:
    """Skip a test that multiplies in fp8 on a CPU, which PyTorch before 2.7 cannot."""
    one, scale = torch.ones(16, 16).to(torch.float8_e4m3fn), torch.ones(16, 1)
    try:
        torch._scaled_mm(one, one.t(), scale, scale.t(), out_dtype=torch.bfloat16)
    except (NotImplementedError, RuntimeError) as error:
        pytest.skip(f"no products in fp8 here: {str(error).splitlines()[0]}")
