"""Samples while a LoRA is trained, encoded before and decoded by ComfyUI's own objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...framepack_core.models.prompt import TextCondition
from ...framepack_core.parsing.sample_prompts import (
    SamplePrompt,
)
from ...framepack_core.training.config import TrainConfig
from ...framepack_core.training.samples import PreparedSample, check_prompts, prepare_samples
from .decode import clip_decoder
from .encode import latent_encoders, text_encoder
from .model import LATENT_SCALE


@dataclass(frozen=True)
class Samples:
    """Prompts, what encodes and decodes them, and when they are due."""

    prompts: list[SamplePrompt]
    clip: Any
    vae: Any
    clip_vision: Any
    every_steps: int
    at_first: bool

    def scheduled(self, config: TrainConfig) -> TrainConfig:
        """A run's settings with these samples in it."""
        due = {"sample_every_steps": self.every_steps, "sample_at_first": self.at_first}
        return config.model_copy(update=due)

    def prepare(
        self, config: TrainConfig, window: int, device: torch.device
    ) -> list[PreparedSample]:
        """Everything encoded; checked first."""
        check_prompts(self.prompts, config.mode, window, sees_end=config.sees_end)
        latent, text = latent_encoders(self.vae, self.clip_vision), text_encoder(self.clip)
        latent = replace(latent, vae=_escaped(latent.vae), image=_escaped(latent.image))
        text = replace(text, encode=_escaped(text.encode))
        with torch.inference_mode(False), torch.no_grad():
            return prepare_samples(
                self.prompts,
                config.mode,
                window,
                latent,
                text,
                sees_end=config.sees_end,
                device=device,
            )

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [1, 16, T, h, w] to pixels [1, 3, F, H, W] about -1..1."""
        unscaled = latents / LATENT_SCALE
        return _escaped(clip_decoder(self.vae, unscaled))(unscaled).float().cpu()


def _escaped(encode: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """What runs in inference mode, as ComfyUI's objects expect, and gives what may leave it."""

    def run(given: Any) -> Any:
        with torch.inference_mode():
            made = encode(given)
        if isinstance(made, TextCondition):
            return replace(made, text=made.text.clone(), pooled=made.pooled.clone())
        return made.clone()

    return run
