"""The text that goes to the encoders, and what comes back from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..runtime.errors import FramePackError

SYSTEM_PROMPT = (
    "Describe the video by detailing the following aspects: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the "
    "objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:"
)
SYSTEM_TEMPLATE = (
    "<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n"
)
END_OF_PROMPT = "<|eot_id|>"
# What the DiT was trained with; the end-of-turn token counts as one of them.
MAX_PROMPT_TOKENS = 256


def check_prompt(text: str, name: str = "prompt") -> None:
    """Refuse a text with bytes that were no UTF-8, as some shells and hosts hand them on."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FramePackError(
            f"{name}: {text[:60]!a} holds bytes that are not UTF-8; type it again, or put it "
            "into a file that is saved as UTF-8"
        ) from None


def system_prefix(system_prompt: str | None = None) -> str:
    """The chat text before the user's words, around the released models' system prompt or yours."""
    return SYSTEM_TEMPLATE.format(system=SYSTEM_PROMPT if system_prompt is None else system_prompt)


@dataclass(frozen=True)
class TextCondition:
    """A prompt as the DiT sees it.

    text [B, L, 4096]: LLaMA hidden states of the user's words; pooled [B, 768]: the CLIP vector;
    mask [B, L] bool, True on real tokens, or None where every token is real.
    """

    text: Tensor
    pooled: Tensor
    mask: Tensor | None = None


def mixed(parts: Sequence[tuple[float, TextCondition]]) -> TextCondition:
    """Several prompts as one, each by its part: states and vectors are added, token by token.

    A token that only some of them have counts as far as these do.
    """
    length = max(condition.text.shape[1] for _, condition in parts)
    words = [_padded(condition, length) for _, condition in parts]
    text = torch.stack([part * text for (part, _), (text, _) in zip(parts, words, strict=True)])
    pooled = torch.stack([part * condition.pooled for part, condition in parts])
    real = torch.stack([mask for _, mask in words]).any(dim=0)
    return TextCondition(text.sum(dim=0), pooled.sum(dim=0), None if real.all() else real)


def _padded(condition: TextCondition, length: int) -> tuple[Tensor, Tensor]:
    """The states, zero where no token is, and where there are tokens."""
    text, mask = condition.text, condition.mask
    mask = torch.ones(text.shape[:2], dtype=torch.bool) if mask is None else mask
    mask = mask.to(text.device)
    more = length - text.shape[1]
    return F.pad(text * mask[..., None], (0, 0, 0, more)), F.pad(mask, (0, more))


def fit_length(text: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Cut or zero-pad [B, L, C] to `length` tokens, with the mask [B, length] of the real ones."""
    kept = text[:, :length]
    batch, real, _ = kept.shape
    mask = torch.arange(length, device=text.device).expand(batch, -1) < real
    return F.pad(kept, (0, 0, 0, length - real)), mask
