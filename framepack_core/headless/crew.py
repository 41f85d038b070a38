"""One result by all processes of a launcher: the first leads, the others do what they are told.

The leader does all that a process alone does. The others hold the transformer while it does, make
sections with it, and decode slices; they write, print and draw nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ..models.dit import FramePackDiT
from ..runtime.display import silence
from ..runtime.distributed import Crew, launched_count
from ..runtime.errors import FramePackError
from ..runtime.memory import limited_memory
from ..sampling.flow import CFG, FlowDenoiser, Guided, RopeScaling
from ..sampling.generate import SamplerConfig, SampleSection, SectionTask, StepInfo, unipc_sampler
from .job import JobOptions
from .models import (
    DECODER,
    SMALLER_DECODE,
    SMALLER_VIDEO,
    TRANSFORMER,
    Models,
    explain_out_of_memory,
    job_device,
    open_job_models,
)


@contextmanager
def joined(device: str | None) -> Iterator[Crew | None]:
    """Meet the processes of a launcher for one result; None where this one is alone.

    Once the leader is through, all part; where one fails, the others end and say so.
    """
    if launched_count() == 1:
        yield None
        return
    place = job_device(device)
    _check(place, device)
    crew = Crew.join(place)
    if not crew.leads:
        silence()
    try:
        yield crew
        if crew.leads:
            crew.send(None)
        crew.leave()
    except BaseException as error:
        crew.blame(error)
        stopped = isinstance(error, KeyboardInterrupt)
        what = "was stopped" if stopped else f"has failed: {error or type(error).__name__}"
        crew.watch.fail("" if crew.leads else what)
        raise


def _check(place: torch.device, named: str | None) -> None:
    """Refuse devices that processes cannot share a result on."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", launched_count()))
    if place.type not in ("cpu", "cuda"):
        raise FramePackError(f"--device {place}: several processes work on cuda or cpu only")
    if place.type != "cuda":
        return
    if not dist.is_nccl_available():
        raise FramePackError(
            "this PyTorch has no NCCL, by which GPUs work together; run one process, or a batch"
        )
    if here > torch.cuda.device_count():
        raise FramePackError(
            f"{here} processes for {torch.cuda.device_count()} GPUs; launch one for each GPU"
        )
    if here > 1 and named is not None and torch.device(named).index is not None:
        raise FramePackError(
            f"--device {named}: all {here} processes would use this GPU; name cuda, which gives "
            "each its own"
        )


@dataclass(frozen=True)
class Sampling:
    """What sections are sampled with, apart from the model."""

    guided: Guided
    config: SamplerConfig
    cfg: CFG | None = None
    rope_scaling: RopeScaling | None = None

    def sampler(
        self,
        dit: FramePackDiT,
        models: Models,
        on_step: Callable[[StepInfo], None] | None = None,
    ) -> SampleSection:
        """Sections by this process, or by all where there is a crew."""
        crew = models.crew
        denoiser = FlowDenoiser(dit, models.dtype, self.rope_scaling, crew)
        sample = unipc_sampler(
            denoiser, self.guided, self.config, self.cfg, on_step, models.applied
        )
        if crew is None:
            return sample

        def sample_together(task: SectionTask) -> Tensor:
            with crew.connected():
                if crew.leads:
                    crew.send((self, task))
                return sample(task)

        return sample_together


def together(job: JobOptions, lead: Callable[[Models], None]) -> None:
    """Open the models of a job and make it; of several processes only the first is called so."""
    with joined(job.models.device) as crew:
        models = open_job_models(job, crew=crew)
        if crew is None or crew.leads:
            lead(models)
        else:
            follow(models, crew)


def follow(models: Models, crew: Crew) -> None:
    """Do what the leader asks for, until it is through."""
    with limited_memory(models.execution.gpu_memory, models.device) as models.budget:
        while (told := crew.receive()) is not None:
            what, *values = told
            {TRANSFORMER: _sample, DECODER: _decode}[what](models, crew, *values)


def _sample(models: Models, crew: Crew, working: int) -> None:
    with models.dit(working) as dit, explain_out_of_memory(SMALLER_VIDEO):
        while (told := crew.receive()) is not None:
            sampling, task = told
            sampling.sampler(dit, models)(task)


def _decode(models: Models, crew: Crew) -> None:
    with models.decoder() as decode, explain_out_of_memory(SMALLER_DECODE):
        while (slices := crew.receive()) is not None:
            decode.follow(slices)
