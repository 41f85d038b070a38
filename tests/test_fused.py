"""The fused operations of a block against PyTorch's; Triton's kernels run in its interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from interpreted import INNER, again_interpreted
from torch import Tensor, nn
from torch.nn.functional import gelu

from framepack_core.models import fused
from framepack_core.models.fused import joined, modulate, normed_and_rotated, trial_error, usable
from framepack_core.models.rope import Rope, apply_rope

ROOT = Path(__file__).resolve().parents[1]
inner = pytest.mark.skipif(not INNER, reason="runs inside of the last test")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rotation(batch: int, length: int, size: int) -> Rope:
    angles = noise(batch, length, 1, size // 2, seed=9)
    cos, sin = angles.cos().repeat_interleave(2, -1), angles.sin()
    return Rope(cos, torch.stack([-sin, sin], dim=-1).flatten(-2))


def test_a_cpu_gradients_and_fp32_keep_pytorchs_operations() -> None:
    x = noise(1, 4, 8)
    assert not usable(x) and not usable(x.bfloat16())
    norm, shift, scale = nn.LayerNorm(8, elementwise_affine=False), noise(1, 1, 8), noise(1, 1, 8)
    expected = torch.addcmul(shift, norm(x), 1 + scale)
    assert torch.equal(modulate(norm, x, shift, scale), expected)
    hidden = noise(1, 4, 12)
    whole = torch.cat([x, gelu(hidden, approximate="tanh")], dim=-1)
    assert torch.equal(joined(x, hidden), whole)


def test_without_rotation_only_the_norm_acts() -> None:
    x, norm = noise(1, 4, 2, 8), nn.RMSNorm(8, eps=1e-6)
    assert torch.equal(normed_and_rotated(x, norm, None), norm(x))
    rope = rotation(1, 4, 8)
    assert torch.equal(normed_and_rotated(x, norm, rope), apply_rope(norm(x), rope))


@inner
@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("size", [16, 64])
def test_norm_and_rotation(samples: int, size: int) -> None:
    class HostNorm(nn.RMSNorm):
        """A host's layer, with a LoRA: its weight alone does not say what it does."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 1.5

    x, norm = noise(2, 37, 3, size), HostNorm(size, eps=1e-6)
    norm.weight.data = noise(size, seed=1)
    rope = rotation(samples, 37, size)
    found = fused._rms_rope(x, norm, rope)
    torch.testing.assert_close(found, apply_rope(norm(x), rope), rtol=1e-5, atol=1e-5)


@inner
def test_modulation_and_activation() -> None:
    x, shift, scale = noise(2, 5, 24), noise(2, 1, 24, seed=1), noise(2, 1, 24, seed=2)
    norm = nn.LayerNorm(24, eps=1e-6, elementwise_affine=False)
    expected = torch.addcmul(shift, norm(x), 1 + scale)
    found = fused._adaln(norm, x, shift, scale)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    hidden = 3 * noise(2, 5, 70, seed=3)
    found = fused._gelu_joined(x, hidden)
    assert torch.equal(found[..., :24], x)
    expected = gelu(hidden, approximate="tanh")
    torch.testing.assert_close(found[..., 24:], expected, rtol=1e-5, atol=1e-5)


@inner
def test_the_trial_agrees_and_sees_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    assert trial_error(device) < fused.TOLERANCE
    right = fused._gelu_joined
    monkeypatch.setattr(fused, "_gelu_joined", lambda a, h: right(a, h) * 1.1)
    assert trial_error(device) > fused.TOLERANCE


@pytest.mark.timeout(900)  # Triton's interpreter is slow
@pytest.mark.skipif(INNER, reason="this is the inner run")
def test_tritons_kernels_agree_in_its_interpreter() -> None:
    again_interpreted(__file__)
