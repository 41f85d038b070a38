"""`framepack train`: a LoRA from a cached data set; `accelerate launch` uses several GPUs."""

from __future__ import annotations

from argparse import Namespace

from ..headless.training import train_lora
from ..runtime.display import say
from ..training.timesteps import histogram
from .training_arguments import train_job


def run(args: Namespace) -> None:
    """Train a LoRA, or train one further; or only show which timesteps would be drawn."""
    job = train_job(args)
    if job.run.timesteps.show is not None:
        say(histogram(job.run.timesteps))
        return
    train_lora(job)
