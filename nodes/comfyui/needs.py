"""What a run will take of this machine, before the model is moved to the device."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import folder_paths
from torch import Tensor

from ...framepack_core.runtime.files import size_text
from ...framepack_core.runtime.memory import free_main_memory
from ...framepack_core.sampling.plan import HISTORY, Plan
from ...framepack_core.sampling.probe import probe_transformer
from ...framepack_core.sampling.sections import LATENT_STRIDE
from .model import IMAGE_TOKENS, SECTION_PREFIX

mm = comfy.model_management
TEXT_TOKENS = 100  # of a usual prompt
TRIAL_BLOCKS = 0.15  # of the model, which the trials need room for
LATENT_BYTES = 4


@dataclass(frozen=True)
class Needs:
    """What a run needs of this machine; start [B, 16, 1, h, w]."""

    model: Any
    plan: Plan
    start: Tensor
    steps: int

    def lines(self) -> Iterator[str]:
        height, width = (side * LATENT_STRIDE for side in self.start.shape[3:])
        yield self.plan.describe(width, height).partition("\n")[0]
        device, weights = self.model.load_device, self.model.model_size()
        total, working = mm.get_total_memory(device), self.working
        yield (
            f"{device}: {size_text(working)} to work in and {size_text(weights)} of weights, "
            f"{size_text(total)} in all"
            + ("; weights are streamed" if working + weights > total else "")
        )
        yield f"main memory: {size_text(free_main_memory())} free"
        yield f"disk: {size_text(self.disk)} for latents, {size_text(_free_disk())} free"
        seconds = self.pass_seconds()
        passes = len(self.plan.sections) * self.steps
        minutes = passes * seconds / 60
        yield (
            f"about {minutes:.1f} min ({passes} passes of {seconds:.2g} s), twice that with a cfg "
            "other than 1; and loading and decoding"
        )

    def problems(self) -> Iterator[str]:
        """What keeps a run from ending well, each with the one thing to change."""
        device = self.model.load_device
        total = mm.get_total_memory(device)
        if self.working > total:
            yield (
                f"{device}: {size_text(self.working)} are needed to work in, of {size_text(total)} "
                "in all; make the video smaller with FramePack Canvas"
            )
        if self.disk > _free_disk():
            yield f"disk: {size_text(self.disk)} are needed in ComfyUI's output folder; free some"

    @property
    def working(self) -> int:
        """Bytes that ComfyUI wants free for a pass, besides the weights."""
        batch, channels, _, *size = self.start.shape
        names = ("clean", "clean_2x", "clean_4x")
        one, two, four = HISTORY
        frames = dict(zip(names, (1 + one, two, four), strict=True))
        shapes = {
            SECTION_PREFIX + name: [[batch, channels, count, *size]]
            for name, count in frames.items()
        }
        shape = [batch, channels, self.plan.window, *size]
        return int(self.model.model.memory_required(shape, shapes))

    @property
    def disk(self) -> int:
        """Latents of the ledger and once more, if they are saved."""
        return 2 * LATENT_BYTES * self.start.numel() * self.plan.latent_frames

    def pass_seconds(self) -> float:
        """One pass of the model, by models of a few blocks of its size."""
        model, device = self.model.model, self.model.load_device
        mm.free_memory(int(TRIAL_BLOCKS * self.model.model_size()) + self.working, device)
        network = model.diffusion_model
        passes = self.start.shape[0]  # a batch costs about as much as one after the other
        return (
            passes
            * probe_transformer(
                network.config,
                self.plan.mode,
                self.plan.window,
                self.start[:1].to(device),
                TEXT_TOKENS,
                IMAGE_TOKENS,
                model.manual_cast_dtype or model.get_dtype(),
                network.host_attention,
            ).seconds
        )


def _free_disk() -> int:
    return shutil.disk_usage(folder_paths.get_output_directory()).free
