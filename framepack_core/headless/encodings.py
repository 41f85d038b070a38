"""What the encoders made of texts and pictures: each once, however many results need it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..models.prompt import TextCondition, mixed
from ..parsing.blend import Blend
from .models import Models
from .pictures import Picture

Item = TypeVar("Item", str, Picture)


@dataclass(frozen=True)
class EncodeRequest:
    """What a result needs encoded: texts, pictures for the image encoder, pictures for the VAE."""

    texts: list[str]
    for_image_encoder: list[Picture]
    for_vae: list[Picture]


@dataclass
class Encodings:
    """Encoded texts and pictures in main memory, and on the device when they are asked for."""

    device: torch.device
    system_prompt: str | None = None
    _texts: dict[str, TextCondition] = field(default_factory=dict)
    _embeds: dict[Picture, Tensor] = field(default_factory=dict)
    _latents: dict[Picture, Tensor] = field(default_factory=dict)

    def add(self, wanted: Iterable[EncodeRequest], models: Models) -> None:
        """Encode what is new of all that is wanted, with each encoder loaded once."""
        wanted = list(wanted)
        placed = _new((p for w in wanted for p in w.for_vae), self._latents)
        if placed:
            with models.encoder() as encode:
                self._latents |= {picture: encode(picture.pixels).cpu() for picture in placed}
        seen = _new((p for w in wanted for p in w.for_image_encoder), self._embeds)
        if seen:
            with models.image_encoder() as encoder:
                self._embeds |= {p: encoder.encode(p.pixels).cpu() for p in seen}
        texts = _new((t for w in wanted for t in w.texts), self._texts)
        if texts:
            with models.text_encoders() as encoders:
                encode_text = encoders.encode
                self._texts |= {
                    text: _move(encode_text(text, self.system_prompt), torch.device("cpu"))
                    for text in texts
                }

    def text(self, prompt: str | Blend) -> TextCondition:
        """The condition of a prompt, or of several by their parts."""
        if isinstance(prompt, Blend):
            return mixed([(part, self.text(text)) for part, text in prompt.parts])
        return _move(self._texts[prompt], self.device)

    def embeds(self, picture: Picture) -> Tensor:
        """The image encoder's tokens [1, N, C] of a picture."""
        return self._embeds[picture].to(self.device)

    def latents(self, source: Picture | Tensor) -> Tensor:
        """Latents [1, 16, T, h, w] of a picture or clip; latents are their own."""
        latents = source if isinstance(source, Tensor) else self._latents[source]
        return latents.to(self.device)


def texts_of(prompt: str | Blend) -> list[str]:
    """What has to be encoded for a prompt."""
    return [prompt] if isinstance(prompt, str) else [text for _, text in prompt.parts]


def _new(wanted: Iterable[Item], known: dict[Item, Any]) -> list[Item]:
    return [item for item in dict.fromkeys(wanted) if item not in known]


def _move(condition: TextCondition, device: torch.device) -> TextCondition:
    return replace(condition, text=condition.text.to(device), pooled=condition.pooled.to(device))
