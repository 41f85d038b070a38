"""Run a command of the command line: LOG ARGUMENTS..., as a process that may be killed.

LOG gets a byte for each section that is begun. A line is printed when the command begins.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from framepack_core.cli import main
from framepack_core.headless import crew
from framepack_core.sampling.generate import unipc_sampler


def logged_sampler(log: Path) -> Callable:
    """The sampler of the command line, writing down each section that it begins."""

    def logged(*args):
        sample = unipc_sampler(*args)

        def begin(task):
            with log.open("ab", buffering=0) as file:
                file.write(b".")
            return sample(task)

        return begin

    return logged


if __name__ == "__main__":
    torch.set_num_threads(1)
    crew.unipc_sampler = logged_sampler(Path(sys.argv[1]))
    print("begins", flush=True)
    sys.exit(main(sys.argv[2:]))
