"""The `framepack` command: arguments in, files out, and one line for every mistake."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

from ..runtime.display import console, say, say_error
from ..runtime.errors import FramePackError
from .arguments import (
    add_batch_arguments,
    add_check_arguments,
    add_extend_arguments,
    add_generate_arguments,
    add_inspect_arguments,
    add_interactive_arguments,
    add_ledger_arguments,
    add_merge_arguments,
)
from .training_arguments import add_cache_command_arguments, add_train_arguments

MENDABLE = 2  # exit code for what the user can mend
INTERRUPTED = 130

COMMANDS = (
    ("generate", "make a video or an edited frame", add_generate_arguments),
    ("batch", "make one for each line of a file", add_batch_arguments),
    ("interactive", "make one for each line typed", add_interactive_arguments),
    ("extend", "go on with a video", add_extend_arguments),
    ("check", "report what a run will make and take, without making it", add_check_arguments),
    ("ledger", "list or prune finished sections that are kept", add_ledger_arguments),
    ("lora", "report what LoRA files are and what of them fits", add_inspect_arguments),
    ("merge", "write the transformer with LoRAs merged in", add_merge_arguments),
    ("cache", "encode a data set before training", add_cache_command_arguments),
    ("train", "train a LoRA", add_train_arguments),
)


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, and which takes values such as -0.5 and -1:walks."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # What argparse takes for a negative number, and so for a value; its own does not know 1e-3.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def error(self, message: str) -> NoReturn:
        say_error(message)
        sys.exit(MENDABLE)

    def _print_message(self, message: str, file: TextIO | None = None) -> None:
        """Of --help: in older Pythons it ends in a traceback where nobody reads on."""
        say(message.removesuffix("\n"), file)


def build_parser() -> Parser:
    parser = Parser(prog="framepack", description="FramePack: one image to a long video.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    for name, title, add_arguments in COMMANDS:
        add_arguments(commands.add_parser(name, help=title, allow_abbrev=False))
    demo = commands.add_parser("demo", help="make a video with the built-in model")
    demo.add_argument("--out", default="demo", help="folder for the results (default: demo)")
    demo.add_argument(
        "--clips", metavar="DIR", help="instead draw the clips that teach it a word into a folder"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, or 2 after an `error:` line for what can be mended."""
    with console():
        return _run(sys.argv[1:] if argv is None else argv)


def _run(argv: Sequence[str]) -> int:
    args = build_parser().parse_args(argv)
    # Loaded only now: torch takes seconds, which --help and a mistyped option need not wait for.
    saving = getattr(args, "save_merged_model", None)  # which ends there, as in musubi-tuner
    command = importlib.import_module(f".{'merge' if saving else args.command}", __name__)
    try:
        command.run(args)
    except FramePackError as error:
        say_error(str(error))
        return MENDABLE
    except KeyboardInterrupt:
        say_error("stopped")
        return INTERRUPTED
    return 0
