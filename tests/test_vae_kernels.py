"""The VAE's fused passes against PyTorch's own norm, growth and padding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from interpreted import INNER, again_interpreted
from torch import Tensor, nn

from framepack_core.models import vae as vae_module
from framepack_core.models.vae import AutoencoderKL, VAEConfig
from framepack_core.models.vae_kernels import (
    PIECES,
    PLAIN,
    Affine,
    Kernels,
    Window,
    convolve_bare,
    grown,
    kernels_for,
    norm_parameters,
    trial_error,
)

ROOT = Path(__file__).resolve().parents[1]
TINY = VAEConfig(latent_channels=4, block_out_channels=(4, 4, 8, 8), norm_num_groups=2)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The tests below run again on Triton's kernels, in its interpreter: see the last one.
def kernels() -> Kernels:
    if not INNER:
        return PLAIN
    from framepack_core.models.vae_triton import TRITON

    return TRITON


@pytest.mark.parametrize("frames", [1, PIECES, 3 * PIECES + 5])
def test_moments_are_those_of_the_whole_group(frames: int) -> None:
    x = (3 + noise(2, 6, frames, 3, 2)).float()
    mean, variance = kernels().moments(kernels().layout(x), 3)
    grouped = x.double().reshape(2, 3, -1)
    torch.testing.assert_close(mean.double(), grouped.mean(-1), rtol=1e-5, atol=1e-5)
    expected = grouped.var(-1, correction=0)
    torch.testing.assert_close(variance.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_late_bias_counts_for_moments_and_sums() -> None:
    tested = kernels()
    if not tested.late_bias:
        return
    x, other, bias = noise(2, 6, 3, 3, 2).float(), noise(2, 6, 3, 3, 2, seed=1).float(), noise(6)
    bias = 3 * bias.float()
    whole = x + bias[:, None, None, None]
    moments = tested.moments(tested.layout(x), 3, bias), tested.moments(tested.layout(whole), 3)
    torch.testing.assert_close(*moments)
    torch.testing.assert_close(tested.add_(tested.layout(x).clone(), None, bias), whole)
    summed = tested.add_(tested.layout(x).clone(), tested.layout(other), bias)
    torch.testing.assert_close(summed, whole + other)


def test_a_bare_convolution_leaves_its_bias_to_others() -> None:
    class Host(nn.Conv3d):
        """Like ComfyUI's, whose weight is elsewhere."""

        def _conv_forward(self, x: Tensor, weight: Tensor, bias, autopad=None) -> Tensor:
            assert autopad == "causal"
            return super()._conv_forward(x, weight, bias)

        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(x, 2 * self.weight, bias, autopad="causal")

    for conv in (nn.Conv3d(2, 3, 1), Host(2, 3, 1)):
        x, bias = noise(1, 2, 2, 2, 2).float(), noise(3).float()
        with torch.no_grad():
            expected = conv(x)
            bare, found = convolve_bare(conv, x)
            torch.testing.assert_close(bare + found[:, None, None, None], expected)
            assert torch.equal(conv(x), expected)


@pytest.mark.parametrize("first, stop", [(-2, 3), (-2, 1), (1, 5), (3, 4), (0, 5)])
@pytest.mark.parametrize("growth", [(1, 1, 1), (1, 2, 2), (2, 2, 2)])
@pytest.mark.parametrize("side, silu", [(1, True), (0, False)])
def test_a_window_is_normalised_grown_and_padded(first, stop, growth, side, silu) -> None:
    x = noise(2, 3, 5, 4, 3).float()
    affine = Affine(noise(2, 3, seed=1).float(), noise(2, 3, seed=2).float())
    scale, shift = (a[:, :, None, None, None] for a in affine)
    expected = x * scale + shift
    expected = grown(F.silu(expected) if silu else expected, growth)[:, :, max(first, 0) : stop]
    edges = (side, side, side, side, max(-first, 0), 0)
    expected = F.pad(expected, edges, mode="replicate")
    found = kernels().padded(
        kernels().layout(x), Window(first, stop, side, growth), affine, silu=silu
    )
    torch.testing.assert_close(found, expected)
    bare = kernels().padded(kernels().layout(x), Window(first, stop, side, growth), None, silu=silu)
    window = grown(x, growth)[:, :, max(first, 0) : stop]
    assert torch.equal(bare, F.pad(window, edges, mode="replicate"))


@pytest.mark.parametrize("chunk", [None, 2])
def test_the_network_is_the_same_with_them(monkeypatch: pytest.MonkeyPatch, chunk) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(TINY).requires_grad_(False)
    latents, pixels = noise(1, 4, 2, 2, 3).float(), noise(1, 3, 5, 16, 8).float()
    vae.chunk_size = chunk
    with torch.no_grad():
        expected = vae.decode(latents), vae.moments(pixels)
        monkeypatch.setattr(vae_module, "kernels_for", lambda _x: kernels())
        found = vae.decode(latents), vae.moments(pixels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_parameters_of_a_hosts_norm_are_read_off_its_output() -> None:
    class HostNorm(nn.GroupNorm):
        """Like a host's layer whose weight is not where it looks."""

        def forward(self, x: Tensor) -> Tensor:
            return F.group_norm(x, self.num_groups, weight, bias, self.eps)

    weight, bias = noise(6, seed=3).float(), noise(6, seed=4).float()
    norm = HostNorm(3, 6, eps=1e-3)
    found = norm_parameters(norm, torch.device("cpu"))
    torch.testing.assert_close(found, (weight, bias))
    plain = nn.GroupNorm(3, 6)
    assert norm_parameters(plain, torch.device("cpu"))[0].tolist() == plain.weight.tolist()


def test_a_cpu_keeps_pytorchs_own() -> None:
    assert kernels_for(noise(1, 2, 1, 1, 1)) is None


def test_the_trial_sees_a_wrong_kernel() -> None:
    def shifted(*args, **options) -> Tensor:
        return PLAIN.padded(*args, **options) + 0.1

    wrong = replace(PLAIN, padded=shifted)
    device = torch.device("cpu")
    assert trial_error(PLAIN, device) == 0 and trial_error(wrong, device) > 0.01


# The interpreter takes seconds for a window: those that grow in all directions say the most.
SOME = "not window or growth2"


@pytest.mark.timeout(900)  # Triton's interpreter is slow
@pytest.mark.skipif(INNER, reason="this is the inner run")
def test_tritons_kernels_pass_the_same_tests() -> None:
    again_interpreted(__file__, "-k", SOME)
