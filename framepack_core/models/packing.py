"""Latents and history to one token sequence: FramePack's compression of the past or the future."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import pad

from .rope import Rope, rope_table

PATCH = 2


@dataclass(frozen=True)
class Context:
    """The finished frames a section sees, at three rates of compression.

    Latents [B, C, T, h, w] and their frame indices [B or 1, T]; a rate that is not used has both
    None. `clean` keeps full detail, `clean_2x` and `clean_4x` are patchified 2 and 4 times coarser
    on all three axes.
    """

    clean: Tensor | None = None
    clean_indices: Tensor | None = None
    clean_2x: Tensor | None = None
    clean_2x_indices: Tensor | None = None
    clean_4x: Tensor | None = None
    clean_4x_indices: Tensor | None = None

    def rates(self) -> list[tuple[int, Tensor, Tensor]]:
        """(rate, latents, indices) of the rates in use, coarsest first as the model expects."""
        found = (
            (4, self.clean_4x, self.clean_4x_indices),
            (2, self.clean_2x, self.clean_2x_indices),
            (1, self.clean, self.clean_indices),
        )
        return [(rate, x, i) for rate, x, i in found if x is not None and i is not None]


class PatchEmbed(nn.Module):
    """Latents of the section being made: one token for each 1x2x2 patch."""

    def __init__(self, channels: int, dim: int, ops: Any, **factory: Any) -> None:
        super().__init__()
        self.proj = _patchify(ops, channels, dim, (1, PATCH, PATCH), factory)


class CleanPatchEmbed(nn.Module):
    """Finished latents, patchified at 1x, 2x and 4x."""

    def __init__(self, channels: int, dim: int, ops: Any, **factory: Any) -> None:
        super().__init__()
        self.proj = _patchify(ops, channels, dim, (1, 2, 2), factory)
        self.proj_2x = _patchify(ops, channels, dim, (2, 4, 4), factory)
        self.proj_4x = _patchify(ops, channels, dim, (4, 8, 8), factory)

    def at_rate(self, rate: int) -> nn.Module:
        return {1: self.proj, 2: self.proj_2x, 4: self.proj_4x}[rate]


def _patchify(
    ops: Any, channels: int, dim: int, kernel: tuple[int, int, int], factory: dict[str, Any]
) -> nn.Module:
    return ops.Conv3d(channels, dim, kernel_size=kernel, stride=kernel, **factory)


def pack(
    patch_embed: PatchEmbed,
    clean_embed: CleanPatchEmbed | None,
    latents: Tensor,
    latent_indices: Tensor | None,
    context: Context | None,
    axes_dim: tuple[int, int, int],
    theta: float,
    rope_scale: float,
) -> tuple[Tensor, list[Rope]]:
    """Tokens [B, L, dim] in the order 4x, 2x, clean, target, and the rotary table of each part."""
    frames, height, width = latents.shape[2], latents.shape[3] // PATCH, latents.shape[4] // PATCH
    if latent_indices is None:
        latent_indices = torch.arange(frames)[None]
    latent_indices = latent_indices.to(latents.device)

    tokens, tables = [], []
    for rate, x, indices in context.rates() if context is not None else []:
        assert clean_embed is not None
        embed = clean_embed.at_rate(rate)
        tokens.append(embed(_pad_to_kernel(x.to(latents), (rate, PATCH * rate, PATCH * rate))))
        indices = indices.to(latents.device)
        tables.append(rope_table(indices, height, width, axes_dim, theta, rate, rope_scale))
    tokens.append(patch_embed.proj(latents))
    tables.append(rope_table(latent_indices, height, width, axes_dim, theta, 1, rope_scale))
    tokens = [rearrange(x, "b c t h w -> b (t h w) c") for x in tokens]
    return torch.cat(tokens, dim=1), tables


def _pad_to_kernel(x: Tensor, kernel: tuple[int, int, int]) -> Tensor:
    t, h, w = (-size % k for size, k in zip(x.shape[2:], kernel, strict=True))
    return pad(x, (0, w, 0, h, 0, t), mode="replicate") if t or h or w else x


def unpack(tokens: Tensor, frames: int, height: int, width: int) -> Tensor:
    """Output tokens [B, T*h*w, C*4] back to latents [B, C, T, 2h, 2w]."""
    return rearrange(
        tokens,
        "b (t h w) (c p q) -> b c t (h p) (w q)",
        t=frames,
        h=height,
        w=width,
        p=PATCH,
        q=PATCH,
    )
