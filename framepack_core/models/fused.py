"""The small operations of a block in fewer passes over memory, for inference without compiling.

Modulation, norms, rotation and activation by Triton's kernels where they work here and agree with
PyTorch's operations. They have no gradients, and compiled code fuses all this by itself.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.functional import gelu

from ..runtime.display import say
from .rope import Rope, apply_rope

TOLERANCE = 0.02  # of the trial in bf16, relative
TRIAL = (1, 40, 2, 64)  # batch, tokens, heads, head size
FUSED_DTYPES = (torch.float16, torch.bfloat16)


def usable(x: Tensor) -> bool:
    """Whether x can take the fused kernels."""
    if x.device.type != "cuda" or x.dtype not in FUSED_DTYPES:
        return False
    return not torch.is_grad_enabled() and not is_compiling() and _agrees(x.device)


@cache
def _agrees(device: torch.device) -> bool:
    """Try the kernels once on a device; a line says what was found."""
    what = "modulation, norms, rotation and activation"
    try:
        error = trial_error(device)
    except Exception as failure:  # Triton's compilers fail in ways of their own
        reason = next(iter(str(failure).splitlines()), type(failure).__name__)
        say(f"{what}: PyTorch's, because Triton does not work here ({reason})")
        return False
    if not error < TOLERANCE:
        say(f"{what}: PyTorch's, because Triton's differ by {error:.1%}")
        return False
    say(f"{what}: fused by Triton, within {error:.1%} of PyTorch's")
    return True


def trial_error(device: torch.device) -> float:
    """The largest relative difference of the kernels from PyTorch's on a small input."""
    draws = torch.Generator().manual_seed(0)
    q, k = (torch.randn(TRIAL, generator=draws).to(device, torch.bfloat16) for _ in range(2))
    shift, scale = torch.randn((2, 1, 1, TRIAL[-1]), generator=draws).to(q)
    angles = torch.randn((1, TRIAL[1], 1, TRIAL[3] // 2), generator=draws).to(device)
    cos, sin = (f(angles) for f in (torch.cos, torch.sin))
    rope = Rope(cos.repeat_interleave(2, -1), torch.stack([-sin, sin], -1).flatten(-2))
    norm = nn.RMSNorm(TRIAL[-1], eps=1e-6, device=device, dtype=torch.bfloat16)
    layer_norm = nn.LayerNorm(TRIAL[-1], eps=1e-6, elementwise_affine=False, device=device)
    x, hidden = q[:, :, 0].contiguous(), k.flatten(2)
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * shift[0, 0])
        pairs = [
            (_adaln(layer_norm, x, shift, scale), _plain_modulate(layer_norm, x, shift, scale)),
            (_rms_rope(q, norm, rope), apply_rope(norm(q), rope)),
            (_gelu_joined(x, hidden), _plain_joined(x, hidden)),
        ]
    return max(_error(found, expected) for found, expected in pairs)


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def modulate(norm: nn.Module, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(x) * (1 + scale) + shift of a layer norm without weights."""
    return (_adaln if usable(x) else _plain_modulate)(norm, x, shift, scale)


def _plain_modulate(norm: nn.Module, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, norm(x), 1 + scale)


def _adaln(norm: Any, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    from .fused_triton import adaln

    return adaln(x, shift, scale, norm.eps)


def normed_and_rotated(x: Tensor, norm: nn.Module, rope: Rope | None) -> Tensor:
    """x [B, L, heads, head_dim] after RMS norm and rotation."""
    if rope is None:
        return norm(x)
    size = x.shape[-1]
    if usable(x) and size & (size - 1) == 0:
        return _rms_rope(x, norm, rope)
    return apply_rope(norm(x), rope)


def _rms_rope(x: Tensor, norm: Any, rope: Rope) -> Tensor:
    from .fused_triton import rms_rope

    # What a norm makes of ones is its weight, wherever a host keeps it and whatever LoRAs add.
    weight = norm(x.new_ones(x.shape[-1]))
    return rms_rope(x, weight, rope.cos, rope.sin, norm.eps)


def joined(attended: Tensor, hidden: Tensor) -> Tensor:
    """[attended, gelu(hidden)] along the channels."""
    return (_gelu_joined if usable(hidden) else _plain_joined)(attended, hidden)


def _plain_joined(attended: Tensor, hidden: Tensor) -> Tensor:
    return torch.cat([attended, gelu(hidden, approximate="tanh")], dim=-1)


def _gelu_joined(attended: Tensor, hidden: Tensor) -> Tensor:
    from .fused_triton import gelu_joined

    return gelu_joined(attended, hidden)
