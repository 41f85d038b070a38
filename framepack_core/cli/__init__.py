"""The `framepack` command: arguments in, files out, and one line for every mistake."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from ..runtime.display import console, say, say_error
from ..runtime.errors import FramePackError
from ..runtime.options import Settings
from . import commands
from .options import add_options, read_options
from .training_arguments import add_cache_command_arguments, add_train_arguments

USER_ERROR = 2  # exit code
INTERRUPTED = 130

AddOptions = Callable[[argparse.ArgumentParser, bool], None]
COMMANDS: dict[str, tuple[str, type[Settings] | AddOptions]] = {
    "generate": ("make a video or an edited frame", commands.Generate),
    "batch": ("make one for each line of a file", commands.Batch),
    "interactive": ("make one for each line typed", commands.Make),
    "extend": ("continue a video", commands.Extend),
    "check": ("report what a run will make and take, without making it", commands.Make),
    "verify": ("say whether models compute here what the reference does", commands.Verify),
    "finish": ("end running videos after the section in progress", commands.Finish),
    "ledger": ("list or prune finished sections that are kept", commands.Ledgers),
    "lora": ("report what LoRA files are and what of them fits", commands.Inspect),
    "merge": ("write the transformer with LoRAs merged in", commands.Merge),
    "quantize": ("write the transformer in a quantised format", commands.Quantize),
    "cache": ("encode a data set before training", add_cache_command_arguments),
    "train": ("train a LoRA", add_train_arguments),
    "convert": (
        "rebuild a workflow of FramePackWrapper, or read sections of FramePack-eichi",
        commands.Convert,
    ),
    "demo": ("make a video with the built-in model", commands.Demo),
}
# musubi-tuner's scripts: the command that does the same, which by this name has its defaults, and
# what this name alone sets.
SCRIPTS: dict[str, tuple[str, dict[str, Any]]] = {
    "fpack_generate_video": ("generate", {}),
    "fpack_cache_latents": ("cache", {"cache.only": "latents"}),
    "fpack_cache_text_encoder_outputs": ("cache", {"cache.only": "text"}),
    "fpack_train_network": ("train", {}),
}


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, and which takes values such as -0.5 and -1:walks."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # What argparse takes for a negative number, and so for a value; its own does not know 1e-3.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def error(self, message: str) -> NoReturn:
        say_error(message)
        sys.exit(USER_ERROR)

    def _print_message(self, message: str, file: TextIO | None = None) -> None:
        """Of --help: in older Pythons it ends in a traceback where nobody reads on."""
        say(message.removesuffix("\n"), file)


def build_parser(only: str | None = None) -> Parser:
    """What reads command lines; only: of this command alone, which takes a fifth of the time."""
    parser = Parser(prog="framepack", description="FramePack: one image to a long video.")
    parsers = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    for name, (title, _) in COMMANDS.items():
        command = parsers.add_parser(name, help=title, allow_abbrev=False)
        if only in (None, name):
            _add_options(command, name)
    for name, (command, defaults) in SCRIPTS.items():
        title = f"{command}, as musubi-tuner's script of this name: with its defaults"
        script = parsers.add_parser(name, help=title, prog=name, allow_abbrev=False)
        if only in (None, name):
            _add_options(script, command, reference=True)
        script.set_defaults(**defaults)
    return parser


def _add_options(parser: argparse.ArgumentParser, command: str, reference: bool = False) -> None:
    options = COMMANDS[command][1]
    if isinstance(options, type):
        add_options(parser, options, reference=reference)
    else:
        options(parser, reference)


def read_command(argv: Sequence[str]) -> tuple[str, Any]:
    """The name of a command and its options as a value.

    Raises FramePackError for the first one that cannot be; ends the process where argparse does.
    """
    args = build_parser(argv[0] if argv else None).parse_args(argv)
    name = SCRIPTS[args.command][0] if args.command in SCRIPTS else args.command
    options = COMMANDS[name][1]
    if not isinstance(options, type):
        return name, args
    command = read_options(options, args)
    if isinstance(command, commands.Make | commands.Extend) and command.merged.save_merged_model:
        return "merge", commands.merging(command)  # and ends there, as in musubi-tuner
    return name, command


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, or 2 after an `error:` line for a user error."""
    with console():
        return _run(sys.argv[1:] if argv is None else argv)


def script() -> int:
    """The entry of the programs that are called as musubi-tuner's scripts."""
    return main([Path(sys.argv[0]).stem, *sys.argv[1:]])


def _run(argv: Sequence[str]) -> int:
    try:
        name, command = read_command(argv)
        # Loaded only now: torch takes seconds, which --help and mistyped options need not wait for.
        importlib.import_module(f".{name}", __name__).run(command)
    except FramePackError as error:
        say_error(str(error))
        return USER_ERROR
    except KeyboardInterrupt:
        say_error("stopped")
        return INTERRUPTED
    return 0
