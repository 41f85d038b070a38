"""The finished latents of a run: what the next section sees of them, and the video so far."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.packing import Context
from ..runtime.errors import FramePackError
from .plan import HISTORY, HISTORY_LENGTH, Plan, Section


class History:
    """Latents [B, C, T, h, w] by time, filled from the end (framepack) or from the start (f1).

    Where nothing is finished yet the model sees zeros, as it did in training.
    """

    def __init__(self, plan: Plan, start: Tensor, existing: Tensor | None = None) -> None:
        """`start` [B, C, 1, h, w]: the start image's latent, in sight of every section.

        existing [B, C, T, h, w]: the video that the plan extends. A video extended backward loses
        its latent 0, which stands for one frame where all others stand for four.
        """
        if plan.existing != (1 if existing is None else existing.shape[2]):
            raise FramePackError(
                f"existing: the plan extends {plan.existing} latent frames; give the video "
                "that it was made for"
            )
        self.plan, self.start = plan, start
        self._images = {
            section.index: like_start(section.image, start, f"the image of section {section.index}")
            for section in plan.sections
            if section.image is not None
        }
        if existing is None or plan.backward:
            self._before = self._images.get(0, start)
        else:
            self._before = existing.to(start)
        self._end = _end_latent(plan, start)
        blank = start.new_zeros(start.shape[0], start.shape[1], HISTORY_LENGTH, *start.shape[3:])
        if plan.mode == "f1":
            self._frames, self._finished = torch.cat([blank, self._before], 2), plan.existing
        elif plan.backward:
            assert existing is not None
            self._frames = torch.cat([existing[:, :, 1:].to(start), blank], dim=2)
            self._finished = plan.existing - 1
        else:
            persistent = plan.end is not None and plan.end.policy == "persistent"
            if persistent and self._end is not None:
                blank[:, :, :1] = self._end
            self._frames, self._finished = blank, 0

    def context(self, section: Section) -> Context:
        """The start image and the neighbouring frames, near ones in detail, far ones compressed."""
        one, two, four = HISTORY
        if self.plan.mode == "f1":
            clean_4x, clean_2x, near = self._frames[:, :, -HISTORY_LENGTH:].split(
                [four, two, one], dim=2
            )
            if self._end is not None and len(section.clean_indices) > 1 + one:
                near = torch.cat([near, self._end], dim=2)
        else:
            near, clean_2x, clean_4x = self._frames[:, :, :HISTORY_LENGTH].split(
                [one, two, four], dim=2
            )
            if self._end is not None and not self._finished:
                near = self._end
        return Context(
            clean=torch.cat([self._images.get(section.index, self.start), near], dim=2),
            clean_indices=index_tensor(section.clean_indices, self.start),
            clean_2x=clean_2x,
            clean_2x_indices=index_tensor(section.clean_2x_indices, self.start),
            clean_4x=clean_4x,
            clean_4x_indices=index_tensor(section.clean_4x_indices, self.start),
        )

    def latent_indices(self, section: Section) -> Tensor:
        """Positions [1, W] of the section's own latents."""
        return index_tensor(section.latent_indices, self.start)

    def append(self, section: Section, latents: Tensor) -> None:
        """Take in a finished section [B, C, W, h, w]."""
        if self.plan.mode == "f1":
            self._frames = torch.cat([self._frames, latents], dim=2)
        else:
            if section.index == 0:
                latents = torch.cat([self._before, latents], dim=2)
            self._frames = torch.cat([latents, self._frames], dim=2)
        self._finished += latents.shape[2]

    def video(self) -> Tensor:
        """All finished latents in order of time."""
        if self.plan.mode == "f1":
            return self._frames[:, :, HISTORY_LENGTH:]
        return self._frames[:, :, : self._finished]


def index_tensor(indices: tuple[int, ...], like: Tensor) -> Tensor:
    """Frame indices [1, T] on the device of a tensor."""
    return torch.tensor([indices], dtype=torch.long, device=like.device)


def like_start(latent: Tensor, start: Tensor, name: str) -> Tensor:
    """One image's latent [1 or B, C, 1, h, w] for the whole batch of a start [B, C, 1, h, w]."""
    if latent.shape[0] not in (1, start.shape[0]) or latent.shape[1:] != start.shape[1:]:
        raise FramePackError(
            f"{name}: its latent is {list(latent.shape)}, but has to be {list(start.shape)}; fit "
            "it to the video's size before it is encoded"
        )
    return latent.to(start).expand_as(start)


def _end_latent(plan: Plan, start: Tensor) -> Tensor | None:
    """What follows the last section, if that is known."""
    end = plan.goal
    if end is None:
        return None
    image = start if end.image is None else like_start(end.image, start, "the end image")
    return end.strength * image
