"""`framepack cache`: what the encoders make of a data set, on disk before training."""

from __future__ import annotations

from argparse import Namespace

from ..headless.caching import cache
from ..headless.training_options import CacheJob
from .options import read_options
from .training_arguments import tell_needless


def run(args: Namespace) -> None:
    """Encode what is not cached yet."""
    job = read_options(CacheJob, args)
    tell_needless(args)
    cache(job)
