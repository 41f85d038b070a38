"""What watches a run: broken output, attention that computes something else, slow drift."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.attention import Attention, sdpa
from ..runtime.device import cpu_generator
from ..runtime.errors import FramePackError

FLAT = 1e-3  # standard deviation; that of real latents is near 1
ATTENTION_ERROR = 0.1  # relative; quantised kernels stay below 0.05, wrong ones are near 1
PROBE = (1, 2, 192, 128)  # batch, heads, tokens, head size of FramePack


def check_output(latents: Tensor, name: str) -> None:
    """Refuse what a model made of a section if it is not finite, or the same value everywhere."""
    if not torch.isfinite(latents).all():
        raise FramePackError(
            f"{name}: the model returned values that are not finite; try another precision (bf16 "
            "or fp32) or attention, and check LoRA strengths"
        )
    if latents.float().std() < FLAT:
        raise FramePackError(
            f"{name}: the model returned the same value everywhere, which decodes to plain grey; "
            "the model file may be damaged or of another kind, a LoRA far too strong, or the "
            "attention wrong for this GPU: try without LoRAs, then with another attention"
        )


def check_attention(
    attention: Attention, name: str, device: torch.device, dtype: torch.dtype
) -> None:
    """Refuse an attention by name if it differs from PyTorch's plain one on small tensors."""
    draw = cpu_generator(0)
    q, k, v = (torch.randn(PROBE, generator=draw).to(device, dtype) for _ in range(3))
    expected = sdpa(q.float(), k.float(), v.float())
    try:
        error = float((attention(q, k, v, None).float() - expected).norm() / expected.norm())
    except (RuntimeError, ValueError, AssertionError) as failure:
        reason = str(failure).splitlines()[0]
        raise FramePackError(
            f"attention {name}: fails on this {device.type} in {dtype} ({reason}); use another"
        ) from failure
    if not error < ATTENTION_ERROR:  # also where it is not a number
        raise FramePackError(
            f"attention {name}: its results differ from PyTorch's by {100 * error:.0f} % on this "
            f"{device.type} in {dtype}; use another"
        )


@dataclass(frozen=True)
class Drift:
    """How far a section has moved from the start frame.

    colour: distance of the channel means in units of the start frame's contrast, 0 is none.
    contrast: standard deviation over the pictures against the start frame's, 1 is none.
    """

    colour: float
    contrast: float

    @property
    def rounded(self) -> dict[str, str]:
        """Both as they are shown."""
        return {"colour": f"{self.colour:.2f}", "contrast": f"{self.contrast:.2f}"}

    def __str__(self) -> str:
        return "colour {colour}, contrast x{contrast}".format(**self.rounded)


def measure_drift(latents: Tensor, start: Tensor) -> Drift:
    """Drift of latents [B, C, T, h, w] from the start image's latent [B, C, 1, h, w]."""
    now, before = latents.float(), start.float()
    contrast = before.std(dim=(3, 4)).mean().clamp_min(FLAT)
    moved = now.mean(dim=(2, 3, 4)) - before.mean(dim=(2, 3, 4))
    return Drift(
        float(moved.square().mean().sqrt() / contrast),
        float(now.std(dim=(3, 4)).mean() / contrast),
    )
