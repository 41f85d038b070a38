"""`framepack batch`: a result for each line of a prompt file, the models loaded once for all."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..headless.encodings import Encodings
from ..headless.jobs import Job, make, timestamp
from ..headless.models import FLAGS, Models
from ..parsing.prompt_lines import PromptLine, parse_prompt_line, read_prompt_file
from ..runtime.display import say_error
from ..runtime.distributed import launched_together
from ..runtime.errors import FramePackError


def run(args: Namespace) -> None:
    """Make this process's share of the lines; a line that fails does not stop the others."""
    lines = read_lines(args.from_file)
    models = Models.from_args(args, list(FLAGS))
    with launched_together() as (rank, processes):
        share = lines[rank::processes]
        failed = make_lines(share, args, models)
    if failed:
        raise FramePackError(
            f"{args.from_file}: {len(failed)} of {len(share)} lines failed: {', '.join(failed)}"
        )


def read_lines(path: str) -> list[tuple[int, PromptLine]]:
    """(number, line) of every prompt in a file; raises for the first line that cannot be read."""
    lines = []
    for number, text in read_prompt_file(path):
        try:
            lines.append((number, parse_prompt_line(text)))
        except FramePackError as error:
            raise FramePackError(f"{path} line {number}: {error}") from None
    return lines


def with_line(args: Namespace, line: PromptLine) -> Namespace:
    """The command line's options, with those of a prompt line in their place."""
    given = line.settings(args.video_size)
    if not line.prompt:
        del given["prompt"]
    return Namespace(**{**vars(args), **given})


def make_lines(
    lines: Sequence[tuple[int, PromptLine]], args: Namespace, models: Models
) -> list[str]:
    """Make the results of lines; the titles of those that failed."""
    failed: list[str] = []

    @contextmanager
    def attempt(title: str) -> Iterator[None]:
        try:
            yield
        except FramePackError as error:
            say_error(f"{args.from_file} {title}: {error}")
            failed.append(title)

    start = timestamp()
    jobs = []
    for number, line in lines:
        title = f"line {number}"
        with attempt(title):
            jobs.append(Job.prepare(with_line(args, line), f"{start}_{number:04d}", title))
    if jobs:
        encodings = Encodings(models.device, args.custom_system_prompt)
        make(jobs, models, encodings, lambda job: attempt(job.title))
    return failed
