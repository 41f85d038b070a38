"""The blocks of the packed HunyuanVideo DiT; parameter names are the released checkpoint's.

Layer classes come from `ops` (torch.nn, or a host's replacements with the same constructors).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from .attention import Attention
from .fused import joined, modulate, normed_and_rotated
from .rope import Rope

EPS = 1e-6
TIME_CHANNELS = 256


def sinusoid(t: Tensor, channels: int = TIME_CHANNELS, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal embedding [B, channels] of t [B], cosines first, fp32 (arXiv 1706.03762)."""
    half = channels // 2
    # fp32 in this order: guidance reaches 10000, where another rounding shows in the output
    exponent = -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(exponent / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class SiluMLP(nn.Module):
    """Linear, SiLU, Linear: the embedder of a timestep, a guidance scale or a pooled vector."""

    def __init__(self, dim_in: int, dim: int, ops: Any, **factory: Any) -> None:
        super().__init__()
        self.linear_1 = ops.Linear(dim_in, dim, **factory)
        self.linear_2 = ops.Linear(dim, dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(silu(self.linear_1(x)))


class ConditionEmbedding(nn.Module):
    """The vector that modulates every block: timestep, pooled text and, if distilled, guidance."""

    def __init__(self, dim_pooled: int, dim: int, guidance: bool, ops: Any, **factory: Any) -> None:
        super().__init__()
        self.timestep_embedder = SiluMLP(TIME_CHANNELS, dim, ops, **factory)
        self.guidance_embedder = SiluMLP(TIME_CHANNELS, dim, ops, **factory) if guidance else None
        self.text_embedder = SiluMLP(dim_pooled, dim, ops, **factory)

    def forward(self, timestep: Tensor, pooled: Tensor, guidance: Tensor | None = None) -> Tensor:
        out = self.timestep_embedder(sinusoid(timestep).to(pooled.dtype))
        if self.guidance_embedder is not None:
            assert guidance is not None  # the DiT asks for it
            out = out + self.guidance_embedder(sinusoid(guidance).to(pooled.dtype))
        return out + self.text_embedder(pooled)


class Modulation(nn.Module):
    """`parts` vectors [B, 1, dim] from the condition vector [B, dim] (adaLN, arXiv 2212.09748)."""

    def __init__(self, dim: int, parts: int, ops: Any, **factory: Any) -> None:
        super().__init__()
        self.parts = parts
        self.linear = ops.Linear(dim, parts * dim, **factory)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return self.linear(silu(condition))[:, None].chunk(self.parts, dim=-1)


class _Gelu(nn.Module):
    def __init__(self, dim_in: int, dim_out: int, ops: Any, **factory: Any) -> None:
        super().__init__()
        self.proj = ops.Linear(dim_in, dim_out, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return gelu(self.proj(x), approximate="tanh")


class _Silu(_Gelu):
    def forward(self, x: Tensor) -> Tensor:
        return silu(self.proj(x))


class FeedForward(nn.Module):
    """Linear, activation, Linear. The list keeps the checkpoint's numbering (`net.0`, `net.2`)."""

    def __init__(self, dim: int, dim_hidden: int, activation: type, ops: Any, **factory: Any):
        super().__init__()
        hidden = activation(dim, dim_hidden, ops, **factory)
        self.net = nn.ModuleList([hidden, nn.Identity(), ops.Linear(dim_hidden, dim, **factory)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


def split_heads(x: Tensor, heads: int) -> Tensor:
    return rearrange(x, "b l (h d) -> b l h d", h=heads)


class SelfAttention(nn.Module):
    """Projections of one stream; `qk_norm` and `out` are absent where the checkpoint has none."""

    def __init__(
        self,
        dim: int,
        heads: int,
        attention: Attention,
        ops: Any,
        qk_norm: bool = True,
        out: bool = True,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.heads, self.attention = heads, attention
        self.to_q = ops.Linear(dim, dim, **factory)
        self.to_k = ops.Linear(dim, dim, **factory)
        self.to_v = ops.Linear(dim, dim, **factory)
        head_dim = dim // heads
        self.norm_q = ops.RMSNorm(head_dim, eps=EPS, **factory) if qk_norm else nn.Identity()
        self.norm_k = ops.RMSNorm(head_dim, eps=EPS, **factory) if qk_norm else nn.Identity()
        self.to_out = nn.ModuleList([ops.Linear(dim, dim, **factory)]) if out else None

    def qkv(self, x: Tensor, rope: Rope | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (split_heads(f(x), self.heads) for f in (self.to_q, self.to_k, self.to_v))
        q, k = (
            normed_and_rotated(x, norm, rope) for x, norm in ((q, self.norm_q), (k, self.norm_k))
        )
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return self.attention(q, k, v, key_mask)

    def forward(self, x: Tensor, rope: Rope | None, key_mask: Tensor | None) -> Tensor:
        x = self.attend(*self.qkv(x, rope), key_mask)
        return x if self.to_out is None else self.to_out[0](x)


class ParallelAttention(SelfAttention):
    """Attention without an output projection, and another layer beside it on the same input."""

    def forward(
        self, x: Tensor, beside: nn.Module, rope: Rope, key_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        begin = getattr(self.attention, "begin", None)
        if begin is None:
            return self.attend(*self.qkv(x, rope), key_mask), beside(x)
        finish = begin(*(part.transpose(1, 2) for part in self.qkv(x, rope)), key_mask)
        found = beside(x)  # meanwhile what other processes send arrives
        return finish(), found


class JointAttention(SelfAttention):
    """Attention over latent and text tokens together, each stream with its own projections."""

    def __init__(self, dim: int, heads: int, attention: Attention, ops: Any, **factory: Any):
        super().__init__(dim, heads, attention, ops, **factory)
        self.add_q_proj = ops.Linear(dim, dim, **factory)
        self.add_k_proj = ops.Linear(dim, dim, **factory)
        self.add_v_proj = ops.Linear(dim, dim, **factory)
        self.norm_added_q = ops.RMSNorm(dim // heads, eps=EPS, **factory)
        self.norm_added_k = ops.RMSNorm(dim // heads, eps=EPS, **factory)
        self.to_add_out = ops.Linear(dim, dim, **factory)

    def text_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = self.norm_added_q(split_heads(self.add_q_proj(x), self.heads))
        k = self.norm_added_k(split_heads(self.add_k_proj(x), self.heads))
        return q, k, split_heads(self.add_v_proj(x), self.heads)

    def forward(
        self, x: Tensor, text: Tensor, rope: Rope, key_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        # text does not rotate
        pairs = zip(self.qkv(x, rope.first(x.shape[1])), self.text_qkv(text), strict=True)
        q, k, v = (torch.cat(pair, dim=1) for pair in pairs)
        joint = self.attend(q, k, v, key_mask)
        assert self.to_out is not None
        x, text = joint.split([x.shape[1], text.shape[1]], dim=1)
        return self.to_out[0](x), self.to_add_out(text)


class DoubleBlock(nn.Module):
    """Two streams that share only their attention."""

    def __init__(
        self, dim: int, heads: int, dim_mlp: int, attention: Attention, ops: Any, **factory: Any
    ) -> None:
        super().__init__()
        self.norm1 = Modulation(dim, 6, ops, **factory)
        self.norm1_context = Modulation(dim, 6, ops, **factory)
        self.attn = JointAttention(dim, heads, attention, ops, **factory)
        self.ff = FeedForward(dim, dim_mlp, _Gelu, ops, **factory)
        self.ff_context = FeedForward(dim, dim_mlp, _Gelu, ops, **factory)
        self.norm = ops.LayerNorm(dim, eps=EPS, elementwise_affine=False, **factory)

    def modulated_input(self, x: Tensor, condition: Tensor) -> Tensor:
        """What the attention of this block sees of x: TeaCache compares it between steps."""
        shift, scale, *_ = self.norm1(condition)
        return modulate(self.norm, x, shift, scale)

    def forward(
        self, x: Tensor, text: Tensor, condition: Tensor, rope: Rope, key_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.norm1(condition)
        t_shift, t_scale, t_gate, t_shift_mlp, t_scale_mlp, t_gate_mlp = self.norm1_context(
            condition
        )
        attended, t_attended = self.attn(
            modulate(self.norm, x, shift, scale),
            modulate(self.norm, text, t_shift, t_scale),
            rope,
            key_mask,
        )
        x = torch.addcmul(x, attended, gate)
        text = torch.addcmul(text, t_attended, t_gate)
        x = torch.addcmul(x, self.ff(modulate(self.norm, x, shift_mlp, scale_mlp)), gate_mlp)
        text_ff = self.ff_context(modulate(self.norm, text, t_shift_mlp, t_scale_mlp))
        return x, torch.addcmul(text, text_ff, t_gate_mlp)


class SingleBlock(nn.Module):
    """One stream of latent and text tokens; attention and MLP run side by side."""

    def __init__(
        self, dim: int, heads: int, dim_mlp: int, attention: Attention, ops: Any, **factory: Any
    ) -> None:
        super().__init__()
        self.norm = Modulation(dim, 3, ops, **factory)
        self.attn = ParallelAttention(dim, heads, attention, ops, out=False, **factory)
        self.proj_mlp = ops.Linear(dim, dim_mlp, **factory)
        self.proj_out = ops.Linear(dim + dim_mlp, dim, **factory)
        self.layer_norm = ops.LayerNorm(dim, eps=EPS, elementwise_affine=False, **factory)

    def forward(self, x: Tensor, condition: Tensor, rope: Rope, key_mask: Tensor | None) -> Tensor:
        shift, scale, gate = self.norm(condition)
        normed = modulate(self.layer_norm, x, shift, scale)
        hidden = joined(*self.attn(normed, self.proj_mlp, rope, key_mask))
        return torch.addcmul(x, self.proj_out(hidden), gate)


class RefinerBlock(nn.Module):
    """A gated transformer block over the text alone."""

    def __init__(
        self, dim: int, heads: int, dim_mlp: int, attention: Attention, ops: Any, **factory: Any
    ) -> None:
        super().__init__()
        self.norm1 = ops.LayerNorm(dim, eps=EPS, **factory)
        self.attn = SelfAttention(dim, heads, attention, ops, qk_norm=False, **factory)
        self.norm2 = ops.LayerNorm(dim, eps=EPS, **factory)
        self.ff = FeedForward(dim, dim_mlp, _Silu, ops, **factory)
        self.norm_out = Modulation(dim, 2, ops, **factory)

    def forward(self, x: Tensor, condition: Tensor, key_mask: Tensor | None) -> Tensor:
        gate, gate_mlp = self.norm_out(condition)
        x = torch.addcmul(x, self.attn(self.norm1(x), None, key_mask), gate)
        return torch.addcmul(x, self.ff(self.norm2(x)), gate_mlp)


class _RefinerBlocks(nn.Module):
    def __init__(self, blocks: list[RefinerBlock]) -> None:
        super().__init__()
        self.refiner_blocks = nn.ModuleList(blocks)


class TokenRefiner(nn.Module):
    """LLaMA hidden states to text tokens, refined under the timestep and their own mean."""

    def __init__(
        self,
        dim_text: int,
        dim: int,
        heads: int,
        layers: int,
        attention: Attention,
        ops: Any,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.time_text_embed = ConditionEmbedding(dim_text, dim, False, ops, **factory)
        self.proj_in = ops.Linear(dim_text, dim, **factory)
        blocks = [
            RefinerBlock(dim, heads, 4 * dim, attention, ops, **factory) for _ in range(layers)
        ]
        self.token_refiner = _RefinerBlocks(blocks)

    def forward(self, text: Tensor, timestep: Tensor, key_mask: Tensor | None) -> Tensor:
        condition = self.time_text_embed(timestep, masked_mean(text, key_mask))
        x = self.proj_in(text)
        for block in self.token_refiner.refiner_blocks:
            x = block(x, condition, key_mask)
        return x


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean [B, C] over the real tokens of x [B, L, C]."""
    if mask is None:
        return x.mean(dim=1)
    weight = mask[..., None].float()
    return ((x * weight).sum(dim=1) / weight.sum(dim=1)).to(x.dtype)


class ImageProjection(nn.Module):
    """SigLIP tokens [B, N, C] to the width of the model."""

    def __init__(self, dim_image: int, dim: int, ops: Any, **factory: Any) -> None:
        super().__init__()
        self.up = ops.Linear(dim_image, 3 * dim, **factory)
        self.down = ops.Linear(3 * dim, dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(silu(self.up(x)))
