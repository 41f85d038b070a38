"""The causal 3D video autoencoder of HunyuanVideo (arXiv:2412.03603, section 4.1).

Parameter names are those of the released checkpoint. Pixels are [B, 3, F, H, W] in -1..1, latents
[B, 16, T, H/8, W/8] with F = 4 (T - 1) + 1: the first frame has a latent of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..runtime.errors import FramePackError
from .vae_kernels import (
    Affine,
    Kernels,
    Window,
    convolve_bare,
    grown,
    kernels_for,
    norm_parameters,
)

NORM_EPS = 1e-6
# Replicate padding and cuDNN index a tensor with 32 bits.
MAX_ELEMENTS = 2**31 - 1
# Above this many tokens the attention mask (its square) would outweigh the activations.
MAX_MASKED_TOKENS = 4096


@dataclass(frozen=True)
class VAEConfig:
    """The shape of the autoencoder, in the names of diffusers' config.json; the released values."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 16
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.476986
    spatial_compression_ratio: int = 8
    temporal_compression_ratio: int = 4
    mid_block_add_attention: bool = True

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VAEConfig:
        """From a config.json; keys that do not shape the network are ignored."""
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        if "block_out_channels" in known:
            known["block_out_channels"] = tuple(known["block_out_channels"])
        config = cls(**known)
        if any(channels % config.norm_num_groups for channels in config.block_out_channels):
            raise FramePackError(
                f"config: block_out_channels {config.block_out_channels} cannot be divided into "
                f"norm_num_groups {config.norm_num_groups}; use the VAE's own config.json"
            )
        return config

    def strides(self) -> list[tuple[int, int, int]]:
        """The (time, height, width) stride that follows each encoder block, the last one's 1.

        Space shrinks from the first block on, time from the latest block on that still has a
        successor; the decoder grows by the same list.
        """
        blocks = len(self.block_out_channels)
        spatial = self.spatial_compression_ratio.bit_length() - 1
        first_temporal = blocks - self.temporal_compression_ratio.bit_length()
        result = []
        for i in range(blocks):
            space = 2 if i < spatial else 1
            time = 2 if first_temporal <= i < blocks - 1 else 1
            result.append((time, space, space))
        return result


class CausalConv3d(nn.Module):
    """A convolution that sees no later frame: edges are replicated, in time on the left only.

    `chunk_size` bounds how many output frames are computed at once; results do not depend on it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: tuple[int, int, int] = (1, 1, 1),
        *,
        ops: Any,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.kernel = kernel
        self.time_stride = stride[0]
        self.chunk_size: int | None = None
        self.conv = ops.Conv3d(
            in_channels, out_channels, kernel, stride=stride, dtype=dtype, device=device
        )

    def forward(self, x: Tensor, growth: tuple[int, int, int] = (1, 1, 1)) -> Tensor:
        """The convolution of x, first grown where asked for."""
        kernels = fused_kernels(x)
        if kernels is None:
            return self._convolve(_Padded(grown(x, growth), self.kernel), False)[0]
        y, bias = self.bare(x, kernels, growth=growth)
        return kernels.add_(y, None, bias)

    def of_normed(self, x: Tensor, norm: nn.Module) -> Tensor:
        """The convolution of SiLU of the norm of x."""
        kernels = fused_kernels(x)
        if kernels is None:
            return self(F.silu(norm(x), inplace=True))
        y, bias = self.bare(x, kernels, norm)
        return kernels.add_(y, None, bias)

    def bare(
        self,
        x: Tensor,
        kernels: Kernels,
        norm: nn.Module | None = None,
        late: Tensor | None = None,
        growth: tuple[int, int, int] = (1, 1, 1),
    ) -> tuple[Tensor, Tensor | None]:
        """The same by fused kernels, and a bias that is yet to be added; late: that of x."""
        source = _Fused(x, self.kernel, kernels, norm, late, growth)
        return self._convolve(source, kernels.late_bias)

    def _convolve(self, source: _Padded, late_bias: bool) -> tuple[Tensor, Tensor | None]:
        convolve = partial(convolve_bare, self.conv) if late_bias else self._with_bias
        frames = (source.shape[2] - 1) // self.time_stride + 1
        step = min(self.chunk_size or frames, self._indexable_frames(source.shape))
        if step >= frames:
            return convolve(self._window(source, 0, frames))
        out = bias = None
        for start in range(0, frames, step):
            stop = min(start + step, frames)
            piece, bias = convolve(self._window(source, start, stop))
            if out is None:
                out = _empty_frames(piece, frames)
            out[:, :, start:stop] = piece
        assert out is not None
        return out, bias

    def _with_bias(self, x: Tensor) -> tuple[Tensor, None]:
        return self.conv(x), None

    def _window(self, source: _Padded, start: int, stop: int) -> Tensor:
        """The padded input frames that output frames start..stop are computed from."""
        first = start * self.time_stride - (self.kernel - 1)
        return source.frames(first, (stop - 1) * self.time_stride + 1)

    def _indexable_frames(self, shape: torch.Size) -> int:
        batch, channels, _, height, width = shape
        frame = batch * max(channels, self.conv.out_channels)
        frame *= (height + self.kernel) * (width + self.kernel)
        return max(1, (MAX_ELEMENTS // frame - self.kernel) // self.time_stride)


class _Padded:
    """Windows of frames with replicated edges."""

    def __init__(self, x: Tensor, kernel: int) -> None:
        self.x, self.kernel, self.shape = x, kernel, x.shape

    def frames(self, first: int, stop: int) -> Tensor:
        """Frames first..stop; those before 0 repeat the first one."""
        window = self.x[:, :, max(first, 0) : stop]
        if self.kernel == 1:
            return window
        side = self.kernel // 2
        return F.pad(window, (side, side, side, side, max(-first, 0), 0), mode="replicate")


class _Fused(_Padded):
    """The same of normalised or grown frames, each window written once."""

    def __init__(
        self,
        x: Tensor,
        kernel: int,
        kernels: Kernels,
        norm: nn.Module | None,
        late: Tensor | None,
        growth: tuple[int, int, int],
    ) -> None:
        super().__init__(kernels.layout(x), kernel)
        self.kernels, self.growth = kernels, growth
        self.affine = None if norm is None else _affine(norm, self.x, late, kernels)
        time, height, width = (n * g for n, g in zip(x.shape[2:], growth, strict=True))
        self.shape = torch.Size((*x.shape[:2], time - growth[0] + 1, height, width))

    def frames(self, first: int, stop: int) -> Tensor:
        if self.kernel == 1 and self.affine is None:
            return self.x[:, :, max(first, 0) : stop]
        window = Window(first, stop, self.kernel // 2, self.growth)
        return self.kernels.padded(self.x, window, self.affine, silu=True)


def fused_kernels(x: Tensor) -> Kernels | None:
    """The kernels for x; None where gradients are wanted or PyTorch's own layers do best."""
    return None if torch.is_grad_enabled() else kernels_for(x)


def _affine(norm: Any, x: Tensor, late: Tensor | None, kernels: Kernels) -> Affine:
    """A group norm of x + late as one factor and one summand for each sample and channel, fp32."""
    mean, variance = kernels.moments(x, norm.num_groups, late)
    weight, bias = norm_parameters(norm, x.device)
    each = weight.shape[0] // norm.num_groups
    scale = torch.rsqrt(variance + norm.eps).repeat_interleave(each, dim=1) * weight
    mean = mean.repeat_interleave(each, dim=1)
    return Affine(scale, bias + ((0 if late is None else late) - mean) * scale)


def _empty_frames(piece: Tensor, frames: int) -> Tensor:
    """Memory for as many frames like those of a piece, in its layout."""
    shape = (*piece.shape[:2], frames, *piece.shape[3:])
    last = piece.is_contiguous(memory_format=torch.channels_last_3d)
    layout = torch.channels_last_3d if last else torch.contiguous_format
    return torch.empty(shape, dtype=piece.dtype, device=piece.device, memory_format=layout)


class ResnetBlock(nn.Module):
    """Two (norm, SiLU, conv) with a residual, projected where the channels change."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, **factory: Any) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels, groups, **factory)
        self.conv1 = CausalConv3d(in_channels, out_channels, **factory)
        self.norm2 = _norm(out_channels, groups, **factory)
        self.conv2 = CausalConv3d(out_channels, out_channels, **factory)
        self.conv_shortcut = (
            CausalConv3d(in_channels, out_channels, kernel=1, **factory)
            if in_channels != out_channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        kernels = fused_kernels(x)
        if kernels is not None:
            return self._fused(x, kernels)
        h = self.conv2.of_normed(self.conv1.of_normed(x, self.norm1), self.norm2)
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))

    def _fused(self, x: Tensor, kernels: Kernels) -> Tensor:
        h, late = self.conv1.bare(x, kernels, self.norm1)
        h, bias = self.conv2.bare(h, kernels, self.norm2, late)
        if self.conv_shortcut is not None:
            x, more = self.conv_shortcut.bare(x, kernels)
            bias = _sum(bias, more)
        return kernels.add_(h, x, bias)


class FrameCausalAttention(nn.Module):
    """Single-head attention in which a token sees its own frame and the earlier ones."""

    def __init__(self, channels: int, groups: int, **factory: Any) -> None:
        super().__init__()
        ops, placed = factory["ops"], {k: v for k, v in factory.items() if k != "ops"}
        self.group_norm = _norm(channels, groups, **factory)
        self.to_q = ops.Linear(channels, channels, **placed)
        self.to_k = ops.Linear(channels, channels, **placed)
        self.to_v = ops.Linear(channels, channels, **placed)
        self.to_out = nn.ModuleList([ops.Linear(channels, channels, **placed)])

    def forward(self, x: Tensor) -> Tensor:
        _, _, frames, height, _ = x.shape
        tokens = rearrange(self.group_norm(x), "b c t h w -> b 1 (t h w) c")
        q, k, v = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        attended = self.to_out[0](frame_causal_attention(q, k, v, frames))
        return x + rearrange(attended, "b 1 (t h w) c -> b c t h w", t=frames, h=height)


def frame_causal_attention(q: Tensor, k: Tensor, v: Tensor, frames: int) -> Tensor:
    """Attention over [B, heads, frames * tokens, D] with the causal mask between frames."""
    length = q.shape[2]
    size = length // frames
    if length <= MAX_MASKED_TOKENS:
        frame = torch.arange(length, device=q.device) // size
        return F.scaled_dot_product_attention(q, k, v, attn_mask=frame[:, None] >= frame)
    attended = [
        F.scaled_dot_product_attention(q[:, :, end - size : end], k[:, :, :end], v[:, :, :end])
        for end in range(size, length + 1, size)
    ]
    return torch.cat(attended, dim=2)


class MidBlock(nn.Module):
    """Resnet, attention, resnet at the lowest resolution."""

    def __init__(self, channels: int, groups: int, attention: bool, **factory: Any) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(channels, channels, groups, **factory) for _ in range(2)
        )
        self.attentions = nn.ModuleList(
            FrameCausalAttention(channels, groups, **factory) for _ in range(int(attention))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Downsample(nn.Module):
    """A strided causal convolution."""

    def __init__(self, channels: int, stride: tuple[int, int, int], **factory: Any) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, stride=stride, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest-neighbour growth, the first frame in space only, then a causal convolution."""

    def __init__(self, channels: int, stride: tuple[int, int, int], **factory: Any) -> None:
        super().__init__()
        self.stride = stride
        self.conv = CausalConv3d(channels, channels, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, self.stride)


class DownBlock(nn.Module):
    """Resnets, then a smaller grid where `stride` asks for one."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        layers: int,
        groups: int,
        stride: tuple[int, int, int],
        **factory: Any,
    ) -> None:
        super().__init__()
        self.resnets = _resnets(in_channels, out_channels, layers, groups, **factory)
        self.downsamplers = nn.ModuleList(
            Downsample(out_channels, stride, **factory) for _ in range(int(max(stride) > 1))
        )

    def layers(self) -> list[nn.Module]:
        return [*self.resnets, *self.downsamplers]


class UpBlock(nn.Module):
    """Resnets, then a larger grid where `stride` asks for one."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        layers: int,
        groups: int,
        stride: tuple[int, int, int],
        **factory: Any,
    ) -> None:
        super().__init__()
        self.resnets = _resnets(in_channels, out_channels, layers, groups, **factory)
        self.upsamplers = nn.ModuleList(
            Upsample(out_channels, stride, **factory) for _ in range(int(max(stride) > 1))
        )

    def layers(self) -> list[nn.Module]:
        return [*self.resnets, *self.upsamplers]


class Encoder(nn.Module):
    """Pixels to the channels of a mean and a log-variance."""

    def __init__(self, config: VAEConfig, **factory: Any) -> None:
        super().__init__()
        channels, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = CausalConv3d(config.in_channels, channels[0], **factory)
        inputs = (channels[0], *channels[:-1])
        self.down_blocks = nn.ModuleList(
            DownBlock(inner, outer, config.layers_per_block, groups, stride, **factory)
            for inner, outer, stride in zip(inputs, channels, config.strides(), strict=True)
        )
        self.mid_block = MidBlock(channels[-1], groups, config.mid_block_add_attention, **factory)
        self.conv_norm_out = _norm(channels[-1], groups, **factory)
        self.conv_out = CausalConv3d(channels[-1], 2 * config.latent_channels, **factory)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for layer in _layers(self.down_blocks):
            x = layer(x)
        x = self.mid_block(x)
        return self.conv_out.of_normed(x, self.conv_norm_out)


class Decoder(nn.Module):
    """Latents to pixels."""

    def __init__(self, config: VAEConfig, **factory: Any) -> None:
        super().__init__()
        channels, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = CausalConv3d(config.latent_channels, channels[0], **factory)
        self.mid_block = MidBlock(channels[0], groups, config.mid_block_add_attention, **factory)
        inputs = (channels[0], *channels[:-1])
        layers = config.layers_per_block + 1
        self.up_blocks = nn.ModuleList(
            UpBlock(inner, outer, layers, groups, stride, **factory)
            for inner, outer, stride in zip(inputs, channels, config.strides(), strict=True)
        )
        self.conv_norm_out = _norm(channels[-1], groups, **factory)
        self.conv_out = CausalConv3d(channels[-1], config.out_channels, **factory)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for layer in _layers(self.up_blocks):
            x = layer(x)
        return self.conv_out.of_normed(x, self.conv_norm_out)


class AutoencoderKL(nn.Module):
    """The whole autoencoder; latents that enter or leave it are scaled for the DiT."""

    def __init__(
        self,
        config: VAEConfig,
        *,
        ops: Any = nn,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        placed: dict[str, Any] = {"dtype": dtype, "device": device}
        latent = config.latent_channels
        self.encoder = Encoder(config, ops=ops, **placed)
        self.decoder = Decoder(config, ops=ops, **placed)
        self.quant_conv = ops.Conv3d(2 * latent, 2 * latent, 1, **placed)
        self.post_quant_conv = ops.Conv3d(latent, latent, 1, **placed)
        self._chunk_size: int | None = None

    @property
    def chunk_size(self) -> int | None:
        """Frames that a convolution computes at once (None: all); less memory, the same result."""
        return self._chunk_size

    @chunk_size.setter
    def chunk_size(self, frames: int | None) -> None:
        if frames is not None and frames < 1:
            raise FramePackError(f"VAE chunk size {frames}: give at least 1 frame, or leave it out")
        self._chunk_size = frames
        for module in self.modules():
            if isinstance(module, CausalConv3d):
                module.chunk_size = frames

    def encode(self, pixels: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Scaled latents of [B, 3, F, H, W] in -1..1: the mean, or a draw from a CPU generator."""
        return self.latents(self.moments(pixels), generator=generator)

    def moments(self, pixels: Tensor) -> Tensor:
        """[B, 2 C, T, h, w]: mean and log-variance of the unscaled latents; F must be 4k+1."""
        self.check_pixels(pixels)
        return self.quant_conv(self.encoder(pixels))

    def latents(self, moments: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Scaled latents from `moments`: the mean, or a draw from a CPU generator."""
        if generator is None:
            return moments.chunk(2, dim=1)[0] * self.config.scaling_factor
        shape = moments.shape[0], moments.shape[1] // 2, *moments.shape[2:]
        noise = torch.randn(shape, generator=generator).to(moments)
        return draw(moments, noise) * self.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [B, 3, 4T-3, 8h, 8w], about -1..1, of scaled latents [B, C, T, h, w]."""
        if latents.ndim != 5 or latents.shape[1] != self.config.latent_channels:
            raise FramePackError(
                f"latents of shape {tuple(latents.shape)} cannot be decoded: "
                f"[batch, {self.config.latent_channels}, frames, height, width] is needed"
            )
        return self.decoder(self.post_quant_conv(latents / self.config.scaling_factor))

    def check_pixels(self, pixels: Tensor) -> None:
        """Raise FramePackError unless there are 4k+1 frames with sides that are multiples of 8."""
        if pixels.ndim != 5 or pixels.shape[1] != self.config.in_channels:
            raise FramePackError(
                f"pixels of shape {tuple(pixels.shape)} cannot be encoded: "
                f"[batch, {self.config.in_channels}, frames, height, width] is needed"
            )
        frames, height, width = pixels.shape[2:]
        if not pixels.numel():
            raise FramePackError("there is no picture to encode: the batch is empty; connect one")
        time, space = self.config.temporal_compression_ratio, self.config.spatial_compression_ratio
        if frames % time != 1 % time:
            below = (frames - 1) // time * time + 1
            raise FramePackError(
                f"a clip of {frames} frames cannot be encoded: its length must be {time}k+1, "
                f"trim it to {below} frames"
            )
        if height % space or width % space:
            raise FramePackError(
                f"a picture of {width}x{height} cannot be encoded: both sides must be multiples "
                f"of {space}, crop it to {width // space * space}x{height // space * space}"
            )


def draw(moments: Tensor, noise: Tensor) -> Tensor:
    """Unscaled latents mean + exp(logvar / 2) * noise (arXiv:1312.6114, section 2.4)."""
    mean, logvar = moments.chunk(2, dim=1)
    return mean + torch.exp(logvar.clamp(-30, 20) / 2) * noise


def _norm(
    channels: int,
    groups: int,
    *,
    ops: Any,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> nn.Module:
    return ops.GroupNorm(groups, channels, eps=NORM_EPS, dtype=dtype, device=device)


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return one if other is None else other
    return one + other


def _layers(blocks: Iterable[Any]) -> Iterator[nn.Module]:
    """Of all blocks in one loop: a call of a block would hold on to its input until it ends."""
    for block in blocks:
        yield from block.layers()


def _resnets(
    in_channels: int, out_channels: int, layers: int, groups: int, **factory: Any
) -> nn.ModuleList:
    inputs = (in_channels, *(out_channels,) * (layers - 1))
    return nn.ModuleList(ResnetBlock(c, out_channels, groups, **factory) for c in inputs)
