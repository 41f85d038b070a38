"""The finished latents of a run: what the next section sees of them, and the video so far."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.packing import Context
from .sections import HISTORY, HISTORY_LENGTH, Plan, Section


class History:
    """Latents [B, C, T, h, w] by time, filled from the end (framepack) or from the start (f1).

    Where nothing is finished yet the model sees zeros, as it did in training.
    """

    def __init__(self, plan: Plan, start: Tensor) -> None:
        """`start` [B, C, 1, h, w]: the start image's latent."""
        self.plan, self.start = plan, start
        blank = start.new_zeros(start.shape[0], start.shape[1], HISTORY_LENGTH, *start.shape[3:])
        self._frames = torch.cat([blank, start], dim=2) if plan.mode == "f1" else blank
        self._finished = 1 if plan.mode == "f1" else 0

    def context(self, section: Section) -> Context:
        """The start image and the neighbouring frames, near ones in detail, far ones compressed."""
        one, two, four = HISTORY
        if self.plan.mode == "f1":
            clean_4x, clean_2x, near = self._frames[:, :, -HISTORY_LENGTH:].split(
                [four, two, one], dim=2
            )
        else:
            near, clean_2x, clean_4x = self._frames[:, :, :HISTORY_LENGTH].split(
                [one, two, four], dim=2
            )
        return Context(
            clean=torch.cat([self.start, near], dim=2),
            clean_indices=self._tensor(section.clean_indices),
            clean_2x=clean_2x,
            clean_2x_indices=self._tensor(section.clean_2x_indices),
            clean_4x=clean_4x,
            clean_4x_indices=self._tensor(section.clean_4x_indices),
        )

    def latent_indices(self, section: Section) -> Tensor:
        """Positions [1, W] of the section's own latents."""
        return self._tensor(section.latent_indices)

    def append(self, section: Section, latents: Tensor) -> None:
        """Take in a finished section [B, C, W, h, w]."""
        if self.plan.mode == "f1":
            self._frames = torch.cat([self._frames, latents], dim=2)
        else:
            if section.index == 0:
                latents = torch.cat([self.start, latents], dim=2)
            self._frames = torch.cat([latents, self._frames], dim=2)
        self._finished += latents.shape[2]

    def video(self) -> Tensor:
        """All finished latents in order of time."""
        if self.plan.mode == "f1":
            return self._frames[:, :, HISTORY_LENGTH:]
        return self._frames[:, :, : self._finished]

    def _tensor(self, indices: tuple[int, ...]) -> Tensor:
        return torch.tensor([indices], dtype=torch.long, device=self.start.device)
