"""The FramePack DiT: HunyuanVideo with packed history (arXiv 2504.12626, arXiv 2412.03603)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..runtime.errors import FramePackError
from .attention import Attention, sdpa
from .fused import modulate
from .layers import (
    EPS,
    ConditionEmbedding,
    DoubleBlock,
    ImageProjection,
    Modulation,
    SingleBlock,
    TokenRefiner,
)
from .packing import PATCH, CleanPatchEmbed, Context, PatchEmbed, pack, unpack
from .prompt import TextCondition
from .rope import Rope, pack_rope


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of the model, named as in the released config.json."""

    in_channels: int = 16
    out_channels: int = 16
    num_attention_heads: int = 24
    attention_head_dim: int = 128
    num_layers: int = 20
    num_single_layers: int = 40
    num_refiner_layers: int = 2
    mlp_ratio: float = 4.0
    guidance_embeds: bool = True
    text_embed_dim: int = 4096
    pooled_projection_dim: int = 768
    rope_theta: float = 256.0
    rope_axes_dim: tuple[int, int, int] = (16, 56, 56)
    has_image_proj: bool = True
    image_proj_dim: int = 1152
    has_clean_x_embedder: bool = True

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DiTConfig:
        """Read config.json; its other keys (class name, versions) are ignored."""
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        if (values.get("patch_size", 2), values.get("patch_size_t", 1)) != (PATCH, 1):
            raise FramePackError("config: only patch_size 2 and patch_size_t 1 are FramePack's")
        if "rope_axes_dim" in known:
            known["rope_axes_dim"] = tuple(known["rope_axes_dim"])
        config = cls(**known)
        if sum(config.rope_axes_dim) != config.attention_head_dim:
            raise FramePackError(
                f"config: rope_axes_dim {config.rope_axes_dim} must add up to "
                f"attention_head_dim {config.attention_head_dim}"
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"patch_size": PATCH, "patch_size_t": 1, "qk_norm": "rms_norm"}

    @property
    def dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True)
class DiTInputs:
    """What one pass of the model is given."""

    latents: Tensor  # [B, C, T, h, w], h and w even
    timestep: Tensor  # [B], 1000 sigma
    text: TextCondition
    guidance: Tensor | None = None  # [B], 1000 times the distilled scale
    image_embeds: Tensor | None = None  # [B, N, image_proj_dim]
    latent_indices: Tensor | None = None  # [B or 1, T], by default 0, 1, ...
    context: Context | None = None
    rope_scale: float = 1.0  # multiplies the height and width coordinates


class Tokens(NamedTuple):
    """What flows between embedding, blocks and output."""

    latent: Tensor  # [B, L, dim]: history, then the section being made
    text: Tensor  # [B, N, dim]: image tokens, then words
    condition: Tensor  # [B, dim]
    rope: Rope  # over L + N tokens
    key_mask: Tensor | None  # [B, L + N], None where every token is real


RunBlocks = Callable[[Tokens], Tensor]
"""Latent tokens [B, L, dim] after the blocks, as `FramePackDiT.transform` gives them."""


class FramePackDiT(nn.Module):
    """Velocity of a section's latents, given its history, a prompt and a start image.

    `ops` supplies the layer classes and `attention` the kernel, so that a host can stream,
    quantise or speed up the weights without this class knowing.
    """

    FP32_PARAMETERS = ("proj_out.",)  # the output projection works in fp32, as FramePack's does

    def __init__(
        self,
        config: DiTConfig,
        *,
        ops: Any = nn,
        attention: Attention = sdpa,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        dim, heads = config.dim, config.num_attention_heads
        factory = {"dtype": dtype, "device": device}
        block = (dim, heads, int(config.mlp_ratio * dim), attention, ops)

        self.x_embedder = PatchEmbed(config.in_channels, dim, ops, **factory)
        self.clean_x_embedder = (
            CleanPatchEmbed(config.in_channels, dim, ops, **factory)
            if config.has_clean_x_embedder
            else None
        )
        self.image_projection = (
            ImageProjection(config.image_proj_dim, dim, ops, **factory)
            if config.has_image_proj
            else None
        )
        self.context_embedder = TokenRefiner(
            config.text_embed_dim, dim, heads, config.num_refiner_layers, attention, ops, **factory
        )
        self.time_text_embed = ConditionEmbedding(
            config.pooled_projection_dim, dim, config.guidance_embeds, ops, **factory
        )
        self.transformer_blocks = nn.ModuleList(
            DoubleBlock(*block, **factory) for _ in range(config.num_layers)
        )
        self.single_transformer_blocks = nn.ModuleList(
            SingleBlock(*block, **factory) for _ in range(config.num_single_layers)
        )
        self.norm_out = Modulation(dim, 2, ops, **factory)
        self.layer_norm_out = ops.LayerNorm(dim, eps=EPS, elementwise_affine=False, **factory)
        self.proj_out = ops.Linear(
            dim, PATCH * PATCH * config.out_channels, dtype=torch.float32, device=device
        )

    def forward(self, inputs: DiTInputs, transform: RunBlocks | None = None) -> Tensor:
        """Velocity (noise minus latents) [B, C, T, h, w], fp32.

        transform: stands in for the blocks.
        """
        tokens = self.embed(inputs)
        latent = (transform or self.transform)(tokens)
        return self.unembed(latent, tokens.condition, inputs.latents.shape)

    def embed(self, inputs: DiTInputs) -> Tokens:
        """Everything before the blocks."""
        latents, text = inputs.latents, inputs.text
        latent, tables = pack(
            self.x_embedder,
            self.clean_x_embedder,
            latents,
            inputs.latent_indices,
            inputs.context,
            self.config.rope_axes_dim,
            self.config.rope_theta,
            inputs.rope_scale,
        )
        words, mask = _crop_padding(text.text.to(latents), text.mask)
        condition = self.time_text_embed(inputs.timestep, text.pooled.to(latents), inputs.guidance)
        words = self.context_embedder(words, inputs.timestep, mask)
        if self.image_projection is not None:
            words, mask = self._prepend_image(words, mask, inputs.image_embeds)
        key_mask = None if mask is None else _prepend_true(mask, latent.shape[1])
        return Tokens(latent, words, condition, pack_rope(tables, words.shape[1]), key_mask)

    def transform(self, tokens: Tokens) -> Tensor:
        """Run all blocks: latent tokens [B, L, dim] out."""
        latent, text, condition, rope, key_mask = tokens
        length = latent.shape[1]
        for block in self.transformer_blocks:
            latent, text = block(latent, text, condition, rope, key_mask)
        joint = torch.cat([latent, text], dim=1)
        del latent, text
        for block in self.single_transformer_blocks:
            joint = block(joint, condition, rope, key_mask)
        return joint[:, :length]

    def unembed(self, latent: Tensor, condition: Tensor, shape: torch.Size) -> Tensor:
        """Latent tokens [B, L, dim] to the velocity of the last ones, of the given latent shape."""
        frames, height, width = shape[2], shape[3] // PATCH, shape[4] // PATCH
        scale, shift = self.norm_out(condition)
        target = latent[:, -frames * height * width :]
        target = modulate(self.layer_norm_out, target, shift, scale)
        return unpack(self.proj_out(target.float()), frames, height, width)

    def _prepend_image(
        self, words: Tensor, mask: Tensor | None, image_embeds: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if image_embeds is None:
            raise FramePackError(
                "image_embeds: this model needs the start image's SigLIP embedding; "
                "encode the start image with the image encoder and pass the result"
            )
        assert self.image_projection is not None
        image = self.image_projection(image_embeds.to(words))
        mask = None if mask is None else _prepend_true(mask, image.shape[1])
        return torch.cat([image, words], dim=1), mask


def _prepend_true(mask: Tensor, count: int) -> Tensor:
    return torch.cat([mask.new_ones(mask.shape[0], count), mask], dim=1)


def _crop_padding(text: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Drop what no sample uses; a mask stays only where lengths differ.

    One prompt alone is cropped to its length, which is exact and leaves the attention unmasked.
    """
    if mask is None or text.shape[0] > 1:
        return text, mask
    return text[:, : int(mask.sum())], None
