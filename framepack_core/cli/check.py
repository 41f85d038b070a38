"""`framepack check`: what a run will make and take, before any large file is read."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from ..headless.jobs import Job, pass_of
from ..headless.models import (
    SMALLER_VIDEO,
    Models,
    explain_out_of_memory,
    open_job_models,
)
from ..headless.options import FLAGS
from ..headless.request import decide
from ..headless.scenes import OneFrameEdit, Video
from ..models.build import open_dit
from ..models.offload import WeightSizes
from ..runtime.display import say
from ..runtime.errors import FramePackError
from ..runtime.files import size_text
from ..runtime.memory import GIB, free_device_memory, free_main_memory, limited_memory
from ..sampling.decode import decode_slices
from ..sampling.estimate import (
    OTHER_MEMORY,
    disk_for_latents,
    latent_bytes,
    probe_pass,
    start_shape,
    working_memory,
)
from ..sampling.probe import StepCost, probe_decode
from ..weights.files import TensorInfo, open_weights
from ..weights.layouts import Component, find_component
from ..weights.precisions import Precision
from .commands import Make

VIDEO_BYTES = 0.15  # for each pixel at the quality used by default, with some to spare


def run(command: Make) -> None:
    """Report on everything a run needs; an error names the first thing to change."""
    models = open_job_models(command)
    job, *variants = Job.prepare(decide(command))
    if variants:
        say(f"check: what follows is for one of {1 + len(variants)} variants")
    check = Check(job, models)
    with limited_memory(models.execution.gpu_memory, models.device):
        say("\n".join(f"check: {line}" for line in check.lines()))
        problems = list(check.problems())
    if problems:
        raise FramePackError("; ".join(problems))
    say("check: all is well")


@dataclass
class Check:
    """The needs of a job on this machine; the weights themselves are not loaded."""

    job: Job
    models: Models

    def lines(self) -> Iterator[str]:
        """The report."""
        sizes = ", ".join(f"{FLAGS[c]} {size_text(self._file_size(c))}" for c in FLAGS)
        yield f"files are readable and of the right kind: {sizes}"
        device = self.models.device
        yield (
            f"{device}: {size_text(self.device_need)} needed at most, "
            f"{size_text(self._free_device)} free"
        )
        if self._decodes and self._decoding.memory is not None:
            yield (
                f"decoding takes {size_text(self._decoding.memory)} of {device} where they are "
                "free, and more time in smaller pieces where they are not"
            )
        if device.type == "cuda":
            yield f"main memory: {size_text(self.main_need)} needed, {self._free_main} free"
        yield f"disk: {size_text(self.disk_need)} needed, {size_text(self._free_disk)} free"
        if self.job.output.makes_video:
            yield f"encoder {self.job.output.options.codec} works"
        yield self._time()

    def problems(self) -> Iterator[str]:
        """What keeps the run from ending well, each with the one setting to change."""
        device, free = self.models.device, self._free_device
        if self._transformer_need > free:
            yield f"{device} is too small for the transformer: {self._smaller_transformer(free)}"
        if self._encoder_need > free:
            advice = "--fp8_llm" if self.models.llama_precision == "auto" else "a larger device"
            yield f"{device} is too small for the text encoders: use {advice}"
        if device.type == "cuda" and self.main_need > free_main_memory():
            yield "main memory is too small: close other programs, or enlarge the page file"
        if self.disk_need > self._free_disk:
            yield f"the disk of {self.job.output.folder} is too full: name another --save_path"

    @property
    def device_need(self) -> int:
        return max(self._transformer_need, self._encoder_need)

    @property
    def main_need(self) -> int:
        """Streamed blocks and the latents of all sections; other weights only pass through."""
        return OTHER_MEMORY + 4 * self._latent_size + sum(self._sizes.streamed(self._swapped))

    @property
    def disk_need(self) -> int:
        """Latents twice, for the ledger has them too, and the video."""
        scene = self.job.request.scene
        width, height = scene.size
        video = int(VIDEO_BYTES * width * height * scene.frames)
        return self.latents_on_disk + video

    @property
    def latents_on_disk(self) -> int:
        """Bytes of the latents alone."""
        return disk_for_latents(self._start, self.job.request.scene.latent_frames)

    @cached_property
    def step(self) -> StepCost:
        """One pass of the transformer."""
        with explain_out_of_memory(SMALLER_VIDEO):
            return probe_pass(pass_of(self.job, self.models))

    def _time(self) -> str:
        request, scene = self.job.request, self.job.request.scene
        passes = (
            scene.sections * request.sampler.steps * (1 if request.negative_prompt is None else 2)
        )
        sampling = passes * self.step.seconds
        skipped = ", less what the step cache skips" if request.step_cache else ""
        skipped += ", and what streaming blocks takes" if self._swapped else ""
        text = (
            f"time: sampling about {_duration(sampling)} ({passes} passes of "
            f"{self.step.seconds:.2g} s{skipped})"
        )
        if not self._decodes:
            return f"{text}, and the loading of models"
        decoding = self._decoding.seconds
        whole = _duration(sampling + decoding)
        return f"{text}, decoding {_duration(decoding)}, in all {whole} and the loading of models"

    @property
    def _decodes(self) -> bool:
        """Whether a video is decoded; one frame takes next to nothing."""
        return self.job.output.decodes and not isinstance(self.job.request.scene, OneFrameEdit)

    @cached_property
    def _decoding(self) -> StepCost:
        """The decoding of all of the video."""
        scene, way = self.job.request.scene, self.models.decoding
        loops = isinstance(scene, Video) and scene.plan.closes  # decoded behind its last section
        frames = 1 + scene.window * (scene.sections + loops)
        slices = [(0, frames)]
        if not way.bulk_decode:
            slices = decode_slices(frames, scene.window, way.decode_overlap)
        with self.models.decoder() as decode:
            return probe_decode(decode, torch.zeros(self._start), slices, self.models.device)

    @cached_property
    def _swapped(self) -> int:
        """blocks_to_swap, which may follow from a budget."""
        execution = self.models.execution
        if execution.gpu_memory is None:
            return execution.swapped
        taken = self._working + self.models.lora_bytes + OTHER_MEMORY
        return execution.within(self._free_device - taken, self._sizes).swapped

    @property
    def _free_device(self) -> int:
        """Bytes of the device that the run may take."""
        free, limit = free_device_memory(self.models.device), self.models.execution.gpu_memory
        return free if limit is None else min(free, int(limit * GIB))

    @property
    def _transformer_need(self) -> int:
        return self._transformer_with(self._swapped)

    def _transformer_with(self, swapped: int) -> int:
        """Bytes on the device with so many blocks streamed."""
        visitors = 2 if self.models.device.type == "cuda" else 1
        return self._sizes.needed(swapped, visitors) + self.models.lora_bytes + self._working

    @property
    def _working(self) -> int:
        return working_memory(self._window, self._start, self.models.dtype, self.step)

    @cached_property
    def _sizes(self) -> WeightSizes:
        """Of the transformer's weights as they will be kept."""
        return self._sizes_in(self.models.precision)

    def _sizes_in(self, precision: Precision) -> WeightSizes:
        options = {"dtype": self.models.dtype, "precision": precision}
        _, state = open_dit(self.models.paths["dit"], **options)
        infos = state.infos().items()
        sizes = {name: math.prod(info.shape) * info.dtype.itemsize for name, info in infos}
        return WeightSizes.of(sizes)

    def _smaller_transformer(self, free: int) -> str:
        if self.models.precision == "auto":
            scaled = self._sizes_in("fp8_scaled").total
            if scaled + self.models.lora_bytes + self._working < free:
                return "use --fp8_scaled"
        if self.models.device.type == "cuda":
            fitting = self._sizes.fewest(free - self.models.lora_bytes - self._working)
            if fitting is not None:
                return f"use --blocks_to_swap {fitting}"
        return "use a smaller --video_size" if self.step.memory else "use another --device"

    @cached_property
    def _encoder_need(self) -> int:
        if self.models.execution.gpu_memory is not None:
            return 0  # their layers visit the device where they do not fit
        small = self.models.llama_precision != "auto"
        itemsize = 1 if small else 4 if self.models.device.type == "cpu" else 2
        infos = [
            files.info(name)
            for files in (open_weights(self._weights(c)) for c in ("llama", "clip"))
            for name in files
        ]
        # What is quantised already stays so.
        sizes = (math.prod(x.shape) * min(itemsize, 1 if _in_bytes(x) else 4) for x in infos)
        return sum(sizes) + OTHER_MEMORY

    @property
    def _latent_size(self) -> int:
        return latent_bytes(self._start, self.job.request.scene.latent_frames)

    @property
    def _start(self) -> tuple[int, ...]:
        """The shape of the start image's latents."""
        return start_shape(*self.job.request.scene.size)

    @property
    def _window(self) -> int:
        scene = self.job.request.scene
        return scene.latent_frames if isinstance(scene, OneFrameEdit) else scene.window

    @property
    def _free_main(self) -> str:
        return size_text(free_main_memory())

    @property
    def _free_disk(self) -> int:
        return shutil.disk_usage(self.job.output.folder).free

    def _weights(self, component: Component) -> list[Path]:
        return find_component(self.models.paths[component], component).weights

    def _file_size(self, component: Component) -> int:
        return sum(path.stat().st_size for path in self._weights(component))


def _in_bytes(info: TensorInfo) -> bool:
    return info.dtype.itemsize == 1


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
