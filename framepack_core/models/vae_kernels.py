"""What the VAE does between its convolutions, in few passes over memory.

A causal convolution takes frames that are normalised, or grown, and padded by replication.
Each of these is a pass over all pixels in PyTorch; here a window of frames is written once, by
one Triton kernel where Triton works, else by PyTorch into one buffer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn

from ..runtime.display import say

PIECES = 64  # of a group, so that its moments keep a whole GPU busy
TOLERANCE = 5e-3  # of the trial in fp16, relative


class Window(NamedTuple):
    """Frames first..stop with `side` replicated pixels around; those before 0 repeat the first.

    growth: how many times a pixel is repeated in time, height and width before; of the first
    frame in time only one is there.
    """

    first: int
    stop: int
    side: int
    growth: tuple[int, int, int] = (1, 1, 1)


class Affine(NamedTuple):
    """x * scale + shift, each fp32 [B, C]."""

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Kernels:
    """The passes over memory in one way of computing them.

    moments: (x [B, C, T, H, W], groups, bias [C] or None) -> mean and biased variance of
    x + bias, fp32 [B, groups].
    padded: (x, window, affine or None, silu) -> the window of x, [B, C, t, H + .., W + ..].
    add_: (x, other or None, bias [C] or None) -> their sum, which may overwrite x.
    late_bias: whether the bias of a convolution is better added by one of these.
    """

    name: str
    moments: Callable[[Tensor, int, Tensor | None], tuple[Tensor, Tensor]]
    padded: Callable[..., Tensor]
    add_: Callable[[Tensor, Tensor | None, Tensor | None], Tensor]
    memory_format: torch.memory_format
    late_bias: bool

    def layout(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=self.memory_format)


def grown(x: Tensor, growth: tuple[int, int, int]) -> Tensor:
    """Nearest-neighbour growth of [B, C, T, H, W], of the first frame in space only."""
    if growth == (1, 1, 1):
        return x
    time, height, width = growth
    x = repeat(x, "b c t h w -> b c (t rt) (h rh) (w rw)", rt=time, rh=height, rw=width)
    return x[:, :, time - 1 :]


def norm_parameters(norm: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Weight and bias of a group norm, fp32 [C]; a host's layer may hold them in its own way.

    Of such a layer they are read off what it makes of +1 and -1, whose mean is 0 and variance 1.
    """
    if type(norm) is nn.GroupNorm:
        return norm.weight.to(device, torch.float32), norm.bias.to(device, torch.float32)
    signs = torch.tensor([1.0, -1.0], device=device).expand(1, norm.num_channels, 2)
    up, down = norm(signs.contiguous())[0].unbind(dim=1)
    return (up - down) / 2 * (1 + norm.eps) ** 0.5, (up + down) / 2


def convolve_bare(conv: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """A convolution without its bias, and the bias as the layer would have added it.

    PyTorch adds it in a pass of its own. Layers of a host find their weight in their own way, and
    compute by the same method as PyTorch's; of one that does not, the bias is None and added.
    """
    compute, found = conv._conv_forward, []

    def bare(x: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
        found.append(None if bias is None else bias.clone())  # a host may use its memory again
        return compute(x, weight, None, **options)

    conv._conv_forward = bare
    try:
        return conv(x), found[0] if found else None
    finally:
        del conv._conv_forward


# In PyTorch


def plain_moments(x: Tensor, groups: int, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and variance of each group from those of equal pieces and what is left over."""
    assert bias is None  # not a late one
    x = x.reshape(x.shape[0], groups, -1)
    size = x.shape[2] // PIECES
    head, rest = x[:, :, : size * PIECES], x[:, :, size * PIECES :]
    parts = [head.unflatten(2, (PIECES, size))] if size else []
    parts += [rest[:, :, None]] if rest.shape[2] else []
    found = [torch.var_mean(part, dim=3, correction=0) for part in parts]
    variance, mean = (torch.cat(each, dim=2).float() for each in zip(*found, strict=True))
    counts = [part.shape[3] for part in parts for _ in range(part.shape[2])]
    return _combined(mean, variance, torch.tensor(counts, dtype=torch.float32, device=x.device))


def _combined(mean: Tensor, variance: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of all pieces together, over the last axis (Chan et al., 1979)."""
    weight = count / count.sum(dim=-1, keepdim=True)
    whole = (weight * mean).sum(dim=-1, keepdim=True)
    spread = variance + (mean - whole).square()
    return whole.squeeze(-1), (weight * spread).sum(dim=-1)


def plain_padded(x: Tensor, window: Window, affine: Affine | None, silu: bool) -> Tensor:
    """The window in one buffer: its interior, then its edges."""
    first, stop, side, growth = window
    time = growth[0]
    start = (max(first, 0) + time - 1) // time
    x = grown_window(x[:, :, start : (stop - 1 + time - 1) // time + 1], growth, first, stop)
    before = max(-first, 0)
    batch, channels, frames, height, width = x.shape
    shape = batch, channels, before + frames, height + 2 * side, width + 2 * side
    out = x.new_empty(shape)
    inner = out[..., side : side + height, side : side + width]
    kept = inner[:, :, before:]
    if affine is None:
        kept.copy_(x)
    else:
        scale, shift = (a[:, :, None, None, None] for a in affine)
        torch.addcmul(shift, x, scale, out=kept)
        if silu:
            F.silu(kept, inplace=True)
    inner[:, :, :before] = kept[:, :, :1]
    if side:
        rows = out[..., side : side + height, :]
        rows[..., :side] = rows[..., side : side + 1]
        rows[..., side + width :] = rows[..., side + width - 1 : side + width]
        out[..., :side, :] = out[..., side : side + 1, :]
        out[..., side + height :, :] = out[..., side + height - 1 : side + height, :]
    return out


def grown_window(x: Tensor, growth: tuple[int, int, int], first: int, stop: int) -> Tensor:
    """Grown frames first..stop from the frames that they come from."""
    time, height, width = growth
    if growth == (1, 1, 1):
        return x
    first = max(first, 0)
    source = (torch.arange(first, stop, device=x.device) + time - 1) // time
    x = x.index_select(2, source - int((first + time - 1) // time))
    return repeat(x, "b c t h w -> b c t (h rh) (w rw)", rh=height, rw=width)


def plain_add_(x: Tensor, other: Tensor | None, bias: Tensor | None) -> Tensor:
    assert bias is None
    return x if other is None else x.add_(other)


PLAIN = Kernels("PyTorch", plain_moments, plain_padded, plain_add_, torch.contiguous_format, False)


# The choice


def kernels_for(x: Tensor) -> Kernels | None:
    """What serves x; None where PyTorch's own norm and padding do best, as on a CPU."""
    return _choose(x.device) if x.device.type == "cuda" else None


@cache
def _choose(device: torch.device) -> Kernels:
    """Triton's kernels where they work and agree with PyTorch's, tried once for each device."""
    try:
        from .vae_triton import TRITON

        error = trial_error(TRITON, device)
    except Exception as failure:  # Triton's compilers fail in ways of their own
        reason = next(iter(str(failure).splitlines()), type(failure).__name__)
        say(f"VAE: PyTorch's norms and padding, because Triton does not work here ({reason})")
        return PLAIN
    if not error < TOLERANCE:
        say(f"VAE: PyTorch's norms and padding, because Triton's differ by {error:.1e}")
        return PLAIN
    say(f"VAE: norms and padding fused by Triton, within {error:.1e} of PyTorch's")
    return TRITON


def trial_error(kernels: Kernels, device: torch.device) -> float:
    """The largest relative difference of kernels from PyTorch's on a small input."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randn((1, 32, 3, 5, 7), generator=draws).to(device, torch.float16)
    affine = Affine(*(torch.randn((1, 32), generator=draws).to(device) for _ in range(2)))
    bias, window = torch.randn(32, generator=draws).to(x), Window(-2, 3, 1, (2, 2, 2))

    def results(kernels: Kernels) -> list[Tensor]:
        y, late = kernels.layout(x).clone(), bias if kernels.late_bias else None
        if not kernels.late_bias:
            y += bias[:, None, None, None]
        found = [*kernels.moments(y, 8, late), kernels.padded(y, window, affine, silu=True)]
        if late is not None:  # the window is of what has no bias yet
            found[-1] = kernels.padded(kernels.add_(y.clone(), None, late), window, affine, True)
        return [*found, kernels.add_(y, kernels.layout(x), late)]

    errors = [
        float((a.float() - b.float()).norm() / b.float().norm())
        for a, b in zip(results(kernels), results(PLAIN), strict=True)
    ]
    return max(errors)
