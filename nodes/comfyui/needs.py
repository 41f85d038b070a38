"""What a run will take of this machine, before the model is moved to the device."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import folder_paths
import torch
from torch import Tensor

from ...framepack_core.models.quantise import precision_of
from ...framepack_core.runtime.files import size_text
from ...framepack_core.runtime.memory import free_main_memory
from ...framepack_core.sampling.estimate import disk_for_latents, probe_pass, working_memory
from ...framepack_core.sampling.plan import Plan
from ...framepack_core.sampling.probe import StepCost, TrialPass
from ...framepack_core.sampling.sections import LATENT_STRIDE
from .quantised import model_encodings

mm = comfy.model_management
TRIAL_BLOCKS = 0.15  # of the model, which the trials need room for


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
        cost = self.pass_cost()
        total, working = mm.get_total_memory(device), self.working(cost)
        yield (
            f"{device}: {size_text(working)} to work in and {size_text(weights)} of weights, "
            f"{size_text(total)} in all"
            + ("; weights are streamed" if working + weights > total else "")
        )
        yield f"main memory: {size_text(free_main_memory())} free"
        yield f"disk: {size_text(self.disk)} for latents, {size_text(_free_disk())} free"
        passes = len(self.plan.sections) * self.steps
        minutes = passes * cost.seconds / 60
        yield (
            f"about {minutes:.1f} min ({passes} passes of {cost.seconds:.2g} s), twice that with a "
            "cfg other than 1; and loading and decoding"
        )

    def problems(self) -> Iterator[str]:
        """What keeps a run from ending well, each with the one thing to change."""
        device = self.model.load_device
        total = mm.get_total_memory(device)
        working = self.working()
        if working > total:
            yield (
                f"{device}: {size_text(working)} are needed to work in, of {size_text(total)} "
                "in all; make the video smaller with FramePack Canvas"
            )
        if self.disk > _free_disk():
            yield f"disk: {size_text(self.disk)} are needed in ComfyUI's output folder; free some"

    def working(self, cost: StepCost | None = None) -> int:
        """Bytes of the device for a pass, besides the weights."""
        return working_memory(self.plan.window, self.start.shape, self._dtype, cost)

    @property
    def disk(self) -> int:
        """Bytes of the latents."""
        return disk_for_latents(self.start.shape, self.plan.latent_frames)

    def pass_cost(self) -> StepCost:
        """One pass of the model, by models of a few blocks of its size."""
        network, device = self.model.model.diffusion_model, self.model.load_device
        mm.free_memory(int(TRIAL_BLOCKS * self.model.model_size()) + self.working(), device)
        trial = TrialPass(
            network.config,
            self.plan.mode,
            self.plan.window,
            self.start.to(device),
            self._dtype,
            network.host_attention,
            precision_of(model_encodings(network)),
            ended=self.plan.end is not None,
        )
        return probe_pass(trial)

    @property
    def _dtype(self) -> torch.dtype:
        return self.model.model.manual_cast_dtype or self.model.model.get_dtype()


def _free_disk() -> int:
    return shutil.disk_usage(folder_paths.get_output_directory()).free
