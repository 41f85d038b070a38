"""Options of `framepack cache` and `framepack train`, named as in musubi-tuner."""

from __future__ import annotations

from argparse import SUPPRESS, Action, ArgumentParser, Namespace
from collections.abc import Collection
from typing import Any

from ..headless.training_options import CacheJob, TrainJob
from ..parsing.json_toml import read_table
from ..runtime.display import warn
from ..runtime.errors import FramePackError
from .options import add_options, flag_names, read_options, table_options

# Options of musubi-tuner's that change nothing here, so that its command lines carry over.
NEEDLESS_FLAGS = (
    *("sdpa", "split_attn", "save_state_on_train_end"),
    *("persistent_data_loader_workers", "keep_cache"),
)
NEEDLESS_VALUES = ("num_workers", "max_data_loader_n_workers")
NEEDLESS = "needless"  # where the Namespace has those that were given


def add_cache_command_arguments(parser: ArgumentParser, reference: bool = False) -> None:
    """Everything `framepack cache` understands."""
    add_options(parser, CacheJob, reference=reference)
    _add_needless(parser, flag_names(CacheJob))


def add_train_arguments(parser: ArgumentParser, reference: bool = False) -> None:
    """Everything `framepack train` understands."""
    add_options(parser, TrainJob, reference=reference)
    _add_needless(parser, flag_names(TrainJob))


def train_job(args: Namespace) -> TrainJob:
    """What a command line and its config file ask for, where the command line wins."""
    job = _train_job(args)
    seeded = not args.reference or "seed" in job.run.model_fields_set
    return job if seeded else job.model_copy(update={"draws_seed": True})


def _train_job(args: Namespace) -> TrainJob:
    path = read_options(TrainJob, args).config_file
    if path is None:
        tell_needless(args)
        return read_options(TrainJob, args)
    table = table_options(TrainJob, read_table(path), str(path))
    known = {*NEEDLESS_FLAGS, *NEEDLESS_VALUES}
    if unknown := [name for name in table.unknown if name not in known]:
        raise FramePackError(
            f"{path}: {', '.join(unknown)}: unknown; use the names of `framepack train --help`"
        )
    tell_needless(args, table.unknown)
    return read_options(TrainJob, args, table=table)


def tell_needless(args: Namespace, more: Collection[str] = ()) -> None:
    """A line with all options that were given and change nothing."""
    if names := [*vars(args).get(NEEDLESS, ()), *more]:
        warn(f"{', '.join(names)}: not needed here, ignored")


def _add_needless(parser: ArgumentParser, known: Collection[str]) -> None:
    for names, count in ((NEEDLESS_FLAGS, 0), (NEEDLESS_VALUES, 1)):
        for name in (name for name in names if name not in known):
            parser.add_argument(
                f"--{name}",
                dest=NEEDLESS,
                nargs=count,
                action=_Note,
                default=SUPPRESS,
                help=SUPPRESS,
            )


class _Note(Action):
    """Keep the name of an option that was given."""

    def __call__(
        self, _parser: ArgumentParser, namespace: Namespace, _values: Any, option: str | None = None
    ) -> None:
        setattr(namespace, self.dest, [*vars(namespace).get(self.dest, ()), option])
