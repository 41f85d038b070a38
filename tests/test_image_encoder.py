"""The SigLIP encoder and its preprocessing against transformers and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import SiglipVisionConfig, SiglipVisionModel

from framepack_core.models.image import (
    HEAD_PREFIX,
    SIGLIP_CONFIG,
    ImageEncoder,
    SiglipVision,
    preprocess,
    siglip_model,
)

TINY = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}


def picture(height: int, width: int) -> np.ndarray:
    """Noise of half the range, so that no overshoot is clipped."""
    return np.random.default_rng(0).integers(64, 192, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def reference() -> SiglipVisionModel:
    """transformers' own model, head and all."""
    torch.manual_seed(0)
    return SiglipVisionModel(SiglipVisionConfig.from_dict(TINY)).eval()


def build(reference: SiglipVisionModel, dtype: torch.dtype = torch.float32) -> SiglipVision:
    prefix = "vision_model."
    named = {prefix + k.removeprefix(prefix): v for k, v in reference.state_dict().items()}
    model = siglip_model(TINY)
    model.load_state_dict(
        {k: v.to(dtype) for k, v in named.items() if not k.startswith(HEAD_PREFIX)}, assign=True
    )
    return model.to("cpu")


def test_the_range_is_minus_one_to_one():
    black, white = (np.full((28, 28, 3), value, dtype=np.uint8) for value in (0, 255))
    assert preprocess(black, 28).unique().item() == -1
    assert preprocess(white, 28).unique().item() == 1


@pytest.mark.parametrize("height, width", [(60, 90), (13, 17)])
def test_resizing_is_antialiased_bicubic(height, width):
    image = picture(height, width)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    expected = F.interpolate(planes, (28, 28), mode="bicubic", antialias=True)
    got = preprocess(image, 28)
    assert got.shape == (1, 3, 28, 28) and got.dtype == torch.float32
    torch.testing.assert_close((got + 1) * 127.5, expected, rtol=0, atol=1.5)  # PIL rounds twice


def test_encode_gives_the_normed_patches(reference):
    image = picture(40, 30)
    with torch.no_grad():
        expected = reference(preprocess(image, 28)).last_hidden_state
    encoded = ImageEncoder(build(reference), 28).encode(image)
    assert encoded.shape == (1, 4, 16)
    torch.testing.assert_close(encoded, expected)


def test_encode_keeps_the_dtype(reference):
    encoded = ImageEncoder(build(reference, torch.bfloat16), 28).encode(picture(28, 28))
    assert encoded.dtype == torch.bfloat16


def test_only_parameters_wait_on_the_meta_device():
    model = siglip_model(TINY)
    assert all(p.is_meta for p in model.parameters())
    assert not any(b.is_meta for b in model.buffers())


def test_released_size_is_the_published_one_without_its_head():
    width, inner = 1152, 4304
    attention, mlp = 4 * (width + 1) * width, 2 * width * inner + inner + width
    head = attention + mlp + 3 * width  # probe and a LayerNorm
    model = siglip_model(SIGLIP_CONFIG)
    assert sum(p.numel() for p in model.parameters()) + head == 428_225_600
    assert model.vision_model.embeddings.position_embedding.weight.shape == (729, width)
