"""`framepack interactive`: prompts typed one after another, with the models kept loaded."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress

from ..headless.encodings import Encodings
from ..headless.job import parse_prompt_line
from ..headless.jobs import Job, make
from ..headless.models import open_job_models
from ..headless.request import decide
from ..runtime.display import say, say_error
from ..runtime.distributed import launched_count
from ..runtime.errors import FramePackError
from .commands import Make

GREETING = (
    "A prompt with its options, such as: a cat --i cat.png --vs 2 --d 42\n"
    "^C stops a run, ^D (on Windows ^Z) ends."
)


def run(command: Make) -> None:
    """Make what each line asks for; an error costs its line only."""
    if launched_count() > 1:
        raise FramePackError(
            "interactive: several processes cannot read what is typed; launch one, or make a file "
            "of prompts with `framepack batch`"
        )
    models = open_job_models(command, keep=True)
    encodings = Encodings(models.device, command.prompt.custom_system_prompt)
    read = line_reader()
    say(GREETING)
    while True:
        try:
            line = read("> ").strip()
            if line and not line.startswith("#"):
                jobs = Job.prepare(decide(command.with_line(parse_prompt_line(line))))
                make(jobs, models, encodings)
        except EOFError:
            return
        except KeyboardInterrupt:
            say("stopped", sys.stderr)
        except FramePackError as error:
            say_error(str(error))


def line_reader() -> Callable[[str], str]:
    """Reads a line with editing and a history, by what is installed; plainly from a pipe."""
    if sys.stdin.isatty():
        with suppress(ImportError):
            from prompt_toolkit import PromptSession

            return PromptSession().prompt
        with suppress(ImportError):
            import readline  # noqa: F401  (gives input() its history)
    return input
