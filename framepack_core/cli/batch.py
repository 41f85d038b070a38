"""`framepack batch`: a result for each line of a prompt file, the models loaded once for all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..headless.crew import together
from ..headless.encodings import Encodings
from ..headless.job import parse_prompt_line
from ..headless.jobs import Job, make, timestamp
from ..headless.models import Models, open_job_models
from ..headless.request import decide
from ..parsing.prompt_lines import read_prompt_file
from ..runtime.display import say_error
from ..runtime.distributed import launched_together
from ..runtime.errors import FramePackError
from .commands import Batch, Generate


def run(command: Batch | Generate) -> None:
    """Make this process's share of the lines; a line that fails does not stop the others.

    Together, all processes make each line.
    """
    assert command.from_file is not None  # or it would not be a batch
    lines = read_prompt_file(command.from_file)
    if command.processes.together:
        together(command, lambda models: _make(lines, command, models))
        return
    models = open_job_models(command)
    with launched_together() as (rank, processes):
        _make(lines[rank::processes], command, models)


def _make(lines: Sequence[tuple[int, str]], command: Batch | Generate, models: Models) -> None:
    if failed := make_lines(lines, command, models):
        raise FramePackError(
            f"{command.from_file}: {len(failed)} of {len(lines)} lines failed: {', '.join(failed)}"
        )


def make_lines(
    lines: Sequence[tuple[int, str]], command: Batch | Generate, models: Models
) -> list[str]:
    """Make the results of numbered lines; the titles of those that failed.

    What can be seen to be wrong with any of them is told before the first one is made.
    """
    failed: list[str] = []

    @contextmanager
    def attempt(title: str) -> Iterator[None]:
        try:
            yield
        except FramePackError as error:
            say_error(f"{command.from_file} {title}: {error}")
            failed.append(title)

    start = timestamp()
    jobs = []
    for number, text in lines:
        title = f"line {number}"
        with attempt(title):
            job = decide(command.with_line(parse_prompt_line(text)))
            jobs += Job.prepare(job, f"{start}_{number:04d}", title)
    if jobs:
        encodings = Encodings(models.device, command.prompt.custom_system_prompt)
        make(jobs, models, encodings, lambda job: attempt(job.title))
    return failed
