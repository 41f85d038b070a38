"""The loss of a run: what each batch is shown with follows from the seed and its number."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sampling.flow import FlowDenoiser, Guided
from .batches import Batch, Batches
from .config import TrainConfig
from .rng import generator
from .timesteps import NoiseLevels, loss_weight

VALIDATION_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)


class Objective:
    """The loss of a DiT on batches, and on clips that are held out."""

    def __init__(
        self, config: TrainConfig, denoiser: FlowDenoiser, batches: Batches, device: torch.device
    ) -> None:
        self.config, self.denoiser, self.batches, self.device = config, denoiser, batches, device
        self.levels = NoiseLevels(config.timesteps)

    def loss(self, number: int, *, whole: bool = False) -> Tensor:
        """The weighted loss of the number-th batch, 0 first; whole: shown all that it may be."""
        batch, seed = self._batch(number, whole), self.config.seed
        sigma = self.levels.draw(len(batch.latents), batch.shape, seed, number)
        noise = torch.randn(batch.latents.shape, generator=generator("noise", seed, number))
        loss = self._loss_at(batch, noise, sigma)
        weight = loss_weight(sigma, self.config.timesteps.weighting)
        return (loss if weight is None else loss * weight.to(self.device)).mean()

    @torch.no_grad()
    def validation(self, held_out: Batches) -> float:
        """The mean loss over clips, at the same noise and levels every time."""
        losses = []
        for number in range(len(held_out)):
            batch = held_out.load(number).to(self.device)
            draws = generator("validation", self.config.seed, number)
            noise = torch.randn(batch.latents.shape, generator=draws)
            for level in VALIDATION_LEVELS:
                sigma = torch.full((len(batch.latents),), level)
                losses.append(self._loss_at(batch, noise, sigma).mean().item())
        return sum(losses) / len(losses)

    def _batch(self, number: int, whole: bool) -> Batch:
        """With captions left out and end frames shown as often as the run wants it."""
        config, count = self.config, len(self.batches.pick(number))
        captions = torch.rand(count, generator=generator("captions", config.seed, number))
        ends = torch.rand(count, generator=generator("ends", config.seed, number))
        dropped = (captions < config.caption_dropout).tolist()
        ended = (ends < config.end_frame_prob).tolist()
        if whole:
            dropped, ended = [False] * count, [config.end_frame_prob > 0] * count
        return self.batches.load(number, dropped, ended).to(self.device)

    def _loss_at(self, batch: Batch, noise: Tensor, sigma: Tensor) -> Tensor:
        return self.denoiser.loss(
            batch.latents,
            noise.to(self.device),
            sigma.to(self.device),
            Guided(batch.text, batch.image_embeds, self.config.guidance),
            latent_indices=batch.latent_indices,
            context=batch.context,
        )
