"""The VAE and its tiling against plain torch and hand-worked cases."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from einops import reduce, repeat
from torch import Tensor, nn

from framepack_core.models import vae as vae_module
from framepack_core.models.vae import (
    AutoencoderKL,
    CausalConv3d,
    ResnetBlock,
    VAEConfig,
    draw,
    frame_causal_attention,
)
from framepack_core.models.vae_kernels import grown
from framepack_core.models.vae_tiling import (
    Tiles,
    Tiling,
    tiled_decode,
    tiled_encode,
    tiled_moments,
)
from framepack_core.runtime.errors import FramePackError

TINY = VAEConfig(latent_channels=4, block_out_channels=(4, 4, 8, 8), norm_num_groups=2)
FACTORY = {"ops": nn, "dtype": torch.float64, "device": None}
# The released fp32 file is 985.9 MB; all of it but the header is parameters.
RELEASED_MEGABYTES = 985.9


def make_vae(dtype: torch.dtype = torch.float64) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(TINY, dtype=dtype).requires_grad_(False)


def noise(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1


# --- layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 2, 2)])
def test_causal_conv_pads_by_replication_and_never_looks_ahead(stride):
    conv = CausalConv3d(2, 3, stride=stride, **FACTORY)
    x = noise(1, 2, 5, 6, 4)
    padded = x[:, :, [0, 0, 0, 1, 2, 3, 4]][..., [0, 0, 1, 2, 3, 4, 5, 5], :]
    padded = padded[..., [0, 0, 1, 2, 3, 3]]
    expected = F.conv3d(padded, conv.conv.weight, conv.conv.bias, stride=stride)
    torch.testing.assert_close(conv(x), expected)
    later = x.clone()
    later[:, :, 3:] += 1
    seen = 3 if stride[0] == 1 else 2
    assert torch.equal(conv(later)[:, :, :seen], conv(x)[:, :, :seen])
    assert not torch.equal(conv(later)[:, :, seen:], conv(x)[:, :, seen:])


@pytest.mark.parametrize("limit", [0, 10**9], ids=["by_frame", "masked"])
def test_attention_sees_its_own_and_earlier_frames(monkeypatch, limit):
    monkeypatch.setattr(vae_module, "MAX_MASKED_TOKENS", limit)
    frames, tokens = 3, 4
    q, k, v = (noise(2, 1, frames * tokens, 5, seed=i) for i in range(3))
    expected = torch.empty_like(q)
    for i in range(frames * tokens):
        seen = (i // tokens + 1) * tokens
        scores = q[:, :, i : i + 1] @ k[:, :, :seen].mT / math.sqrt(5)
        expected[:, :, i : i + 1] = scores.softmax(-1) @ v[:, :, :seen]
    torch.testing.assert_close(frame_causal_attention(q, k, v, frames), expected)


def test_growth_gives_every_frame_but_the_first_twice():
    x = torch.arange(3.0).view(1, 1, 3, 1, 1).expand(1, 1, 3, 2, 3)
    big = grown(x, (2, 2, 2))
    assert big.shape == (1, 1, 5, 4, 6)
    assert big[0, 0, :, 3, 5].tolist() == [0, 1, 1, 2, 2]


def test_resnet_gradients_survive_the_in_place_activation():
    torch.manual_seed(0)
    block = ResnetBlock(2, 4, 2, **FACTORY)
    assert torch.autograd.gradcheck(block, noise(1, 2, 2, 3, 2).requires_grad_())


# --- the whole network ----------------------------------------------------------------------------


def test_default_network_has_the_released_shapes():
    vae = AutoencoderKL(VAEConfig(), device="meta")
    shapes = {name: tuple(p.shape) for name, p in vae.state_dict().items()}
    size = sum(p.numel() for p in vae.parameters()) * 4 / 1e6
    assert size == pytest.approx(RELEASED_MEGABYTES, abs=0.05)
    assert shapes["encoder.conv_out.conv.weight"] == (32, 512, 3, 3, 3)
    assert shapes["encoder.down_blocks.2.resnets.0.conv_shortcut.conv.weight"][:2] == (512, 256)
    assert shapes["decoder.up_blocks.3.resnets.0.conv1.conv.weight"][:2] == (128, 256)
    assert shapes["decoder.mid_block.attentions.0.to_out.0.weight"] == (512, 512)
    assert VAEConfig().strides() == [(1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 1, 1)]


def test_config_ignores_what_does_not_shape_the_network():
    values = {"_class_name": "X", "act_fn": "silu", "block_out_channels": [32, 64]}
    assert VAEConfig.from_dict(values) == VAEConfig(block_out_channels=(32, 64))


@pytest.mark.parametrize("frames, latents", [(1, 1), (5, 2), (9, 3)])
def test_shapes_there_and_back(frames, latents):
    vae = make_vae()
    encoded = vae.encode(noise(2, 3, frames, 16, 24))
    assert encoded.shape == (2, 4, latents, 2, 3)
    assert vae.decode(encoded).shape == (2, 3, frames, 16, 24)


def test_encode_scales_the_mean_or_a_seeded_draw():
    vae, pixels = make_vae(torch.float32), noise(1, 3, 5, 16, 16).float()
    mean, logvar = vae.moments(pixels).chunk(2, dim=1)
    torch.testing.assert_close(vae.encode(pixels), mean * 0.476986)
    drawn = vae.encode(pixels, generator=torch.Generator().manual_seed(7))
    epsilon = torch.randn(mean.shape, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(drawn, (mean + logvar.exp().sqrt() * epsilon) * 0.476986)


def test_draw_clamps_the_variance():
    moments = torch.tensor([0.0, 1000.0]).view(1, 2, 1, 1, 1)
    assert draw(moments, torch.ones(1)).item() == pytest.approx(math.exp(10))


@pytest.mark.parametrize("chunk_size", [1, 2, 4])
def test_chunks_change_nothing(chunk_size):
    vae, pixels = make_vae(), noise(1, 3, 9, 16, 16)
    latents = vae.encode(pixels)
    decoded = vae.decode(latents)
    vae.chunk_size = chunk_size
    torch.testing.assert_close(vae.encode(pixels), latents, rtol=0, atol=1e-12)
    torch.testing.assert_close(vae.decode(latents), decoded, rtol=0, atol=1e-12)


def test_chunks_change_no_gradient():
    vae, latents = make_vae(), noise(1, 4, 2, 2, 2).requires_grad_()
    (whole,) = torch.autograd.grad(vae.decode(latents).square().sum(), latents)
    vae.chunk_size = 2
    (chunked,) = torch.autograd.grad(vae.decode(latents).square().sum(), latents)
    torch.testing.assert_close(chunked, whole)


def test_what_cannot_be_indexed_is_chunked_unasked(monkeypatch):
    conv, x = CausalConv3d(2, 3, **FACTORY), noise(1, 2, 7, 4, 4)
    whole, sizes = conv(x), []
    conv.conv.register_forward_pre_hook(lambda _, args: sizes.append(args[0].numel()))
    monkeypatch.setattr(vae_module, "MAX_ELEMENTS", 3 * 7 * 7 * 6)
    torch.testing.assert_close(conv(x), whole)
    assert len(sizes) > 1 and max(sizes) <= 3 * 7 * 7 * 6


def test_bad_input_is_named():
    vae = make_vae()
    with pytest.raises(FramePackError, match="trim it to 5 frames"):
        vae.encode(noise(1, 3, 8, 16, 16))
    with pytest.raises(FramePackError, match="crop it to 16x8"):
        vae.encode(noise(1, 3, 5, 9, 20))
    with pytest.raises(FramePackError, match=r"\(3, 5, 16, 16\)"):
        vae.encode(noise(3, 5, 16, 16))
    with pytest.raises(FramePackError, match=r"\[batch, 4, frames"):
        vae.decode(noise(1, 16, 1, 2, 2))
    with pytest.raises(FramePackError, match="chunk size 0"):
        vae.chunk_size = 0


# --- tiling ---------------------------------------------------------------------------------------


class BlockVAE:
    """A stand-in whose latents are block means: local, so tiles must reassemble exactly."""

    config = SimpleNamespace(spatial_compression_ratio=8, temporal_compression_ratio=4)

    def check_pixels(self, pixels: Tensor) -> None:
        assert pixels.shape[2] % 4 == 1

    def moments(self, pixels: Tensor) -> Tensor:
        small = reduce(pixels, "b c f (h 8) (w 8) -> b c f h w", "mean")
        later = reduce(small[:, :, 1:], "b c (t 4) h w -> b c t h w", "mean")
        return torch.cat([small[:, :, :1], later], dim=2)

    def decode(self, latents: Tensor) -> Tensor:
        grown = repeat(latents, "b c t h w -> b c (t 4) (h 8) (w 8)")
        return grown[:, :, 3:]


TILINGS = {
    "quarter": Tiling.square(32),
    "half": Tiling(Tiles(16, 8), Tiles(16, 8)),
    "no_overlap": Tiling.square(16, overlap=0),
    "oblong": Tiling(Tiles(32, 16), Tiles(24, 16)),
    "one_axis": Tiling(width=Tiles(16, 8)),
    "time": Tiling(frames=Tiles(8, 4)),
    "all": Tiling(Tiles(16, 8), Tiles(16, 8), Tiles(16, 12)),
}


@pytest.mark.parametrize("name", TILINGS)
@pytest.mark.parametrize("frames, height, width", [(1, 40, 56), (17, 48, 40), (37, 16, 64)])
def test_tiles_of_a_local_vae_reassemble_exactly(name, frames, height, width):
    vae, pixels = BlockVAE(), noise(1, 2, frames, height, width)
    latents = vae.moments(pixels)
    torch.testing.assert_close(tiled_moments(vae, pixels, TILINGS[name]), latents)
    torch.testing.assert_close(tiled_decode(vae, latents, TILINGS[name]), vae.decode(latents))


def test_a_tile_that_holds_everything_changes_nothing():
    vae, pixels = make_vae(), noise(1, 3, 5, 24, 32)
    latents = vae.encode(pixels)
    assert torch.equal(tiled_encode(vae, pixels, 32), latents)
    assert torch.equal(tiled_decode(vae, latents, 32), vae.decode(latents))


def test_tiles_of_a_flat_clip_equal_the_whole():
    vae = make_vae()
    pixels = noise(1, 3, 5, 1, 1).expand(1, 3, 5, 40, 56)
    latents = noise(1, 4, 2, 1, 1).expand(1, 4, 2, 5, 7)
    torch.testing.assert_close(tiled_encode(vae, pixels, 32), vae.encode(pixels))
    torch.testing.assert_close(tiled_decode(vae, latents, 32), vae.decode(latents))


def test_overlap_is_a_linear_fade():
    vae, calls = BlockVAE(), []

    def numbered(latents: Tensor) -> Tensor:
        calls.append(latents)
        return torch.full((1, 1, 1, 8, 8 * latents.shape[-1]), float(len(calls) - 1))

    vae.decode = numbered
    row = tiled_decode(vae, torch.zeros(1, 1, 1, 1, 3), Tiling(width=Tiles(16, 8)))[0, 0, 0, 0]
    fade = [i / 8 for i in range(8)]
    assert row.tolist() == [0.0] * 8 + fade + [1 + f for f in fade]


def test_square_tiles_overlap_by_whole_latents():
    assert Tiling.square(256).width == Tiles(256, 192)
    assert Tiling.square(128).height == Tiles(128, 96)
    assert Tiling.square(144).width == Tiles(144, 112)


def test_tiles_that_split_a_latent_are_refused():
    with pytest.raises(FramePackError, match="tiles of 36 every"):
        tiled_decode(make_vae(), noise(1, 4, 1, 8, 8), 36)
    with pytest.raises(FramePackError, match="multiples of 4"):
        tiled_decode(make_vae(), noise(1, 4, 9, 1, 1), Tiling(frames=Tiles(16, 6)))


def test_tiled_draw_is_seeded():
    vae, pixels = make_vae(), noise(1, 3, 1, 40, 40)
    first, again, other = (
        tiled_encode(vae, pixels, 32, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_config_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(FramePackError, match="cannot be divided into norm_num_groups 8"):
        VAEConfig.from_dict({"block_out_channels": [4, 8, 8, 8], "norm_num_groups": 8})
