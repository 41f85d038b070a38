"""`framepack cache`: what the encoders make of a data set, on disk before training."""

from __future__ import annotations

from argparse import Namespace

from ..headless.caching import cache
from .training_arguments import cache_job


def run(args: Namespace) -> None:
    """Encode what is not cached yet."""
    cache(cache_job(args))
