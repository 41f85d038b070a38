"""Options of `framepack cache` and `framepack train`, named as in musubi-tuner."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from ..headless.training_options import CacheJob, TrainJob
from ..parsing.json_toml import read_table
from ..runtime.errors import FramePackError
from ..runtime.files import is_file
from .foreign_options import CACHING, TRAINING, add_foreign, settle, without_needless
from .options import add_options, read_options, table_options


def add_cache_command_arguments(parser: ArgumentParser, reference: bool = False) -> None:
    """Everything `framepack cache` understands."""
    add_options(parser, CacheJob, reference=reference)
    add_foreign(parser, CACHING)


def add_train_arguments(parser: ArgumentParser, reference: bool = False) -> None:
    """Everything `framepack train` understands."""
    add_options(parser, TrainJob, reference=reference)
    add_foreign(parser, TRAINING)


def cache_job(args: Namespace) -> CacheJob:
    """What a command line asks for."""
    job = read_options(CacheJob, args)
    settle(args, CACHING, more=job.needless())
    return job


def train_job(args: Namespace) -> TrainJob:
    """What a command line and its config file ask for, where the command line wins."""
    job = _train_job(args)
    seeded = not args.reference or "seed" in job.run.model_fields_set
    return job if seeded else job.model_copy(update={"draws_seed": True})


def _train_job(args: Namespace) -> TrainJob:
    needless = without_needless(vars(args))
    path = read_options(TrainJob, args).config_file
    if path is None:
        settle(args, TRAINING, more=needless)
        return read_options(TrainJob, args)
    if not path.suffix and not is_file(path):
        path = path.with_name(f"{path.name}.toml")  # as musubi-tuner does
    content = read_table(path)
    needless += without_needless(content)
    table = table_options(TrainJob, content, str(path))
    known = {option.name for option in TRAINING}
    if unknown := [name for name in table.unknown if name not in known]:
        raise FramePackError(
            f"{path}: {', '.join(unknown)}: unknown; use the names of `framepack train --help`"
        )
    settle(args, TRAINING, table.unknown, needless)
    return read_options(TrainJob, args, table=table)
