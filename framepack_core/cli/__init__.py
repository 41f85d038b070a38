"""The `framepack` command: arguments in, files out, and one line for every mistake."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from ..runtime.errors import FramePackError
from .arguments import add_generate_arguments

MENDABLE = 2  # exit code for what the user can mend
INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(MENDABLE, f"error: {message}\n")


def build_parser() -> Parser:
    parser = Parser(prog="framepack", description="FramePack: one image to a long video.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    generate = commands.add_parser(
        "generate", help="make a video of an image and a prompt", allow_abbrev=False
    )
    add_generate_arguments(generate)
    demo = commands.add_parser("demo", help="make a video with the built-in model")
    demo.add_argument("--out", default="demo", help="folder for the results (default: demo)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, or 2 after an `error:` line for what can be mended."""
    args = build_parser().parse_args(argv)
    # Loaded only now: torch takes seconds, which --help and a mistyped option need not wait for.
    command = importlib.import_module(f".{args.command}", __name__)
    try:
        command.run(args)
    except FramePackError as error:
        print(f"error: {error}", file=sys.stderr)
        return MENDABLE
    except KeyboardInterrupt:
        print("error: stopped", file=sys.stderr)
        return INTERRUPTED
    return 0
