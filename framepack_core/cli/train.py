"""`framepack train`: a LoRA from a cached data set; `accelerate launch` uses several GPUs."""

from __future__ import annotations

from argparse import Namespace

from ..headless.training import train_lora
from .training_arguments import train_job


def run(args: Namespace) -> None:
    """Train a LoRA, or train one further."""
    train_lora(train_job(args))
