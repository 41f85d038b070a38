"""Options declared once: what the command line and messages make of them."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from framepack_core.cli.options import add_options, merged, read_options
from framepack_core.runtime.errors import FramePackError
from framepack_core.runtime.options import (
    Settings,
    file_metadata,
    leaves,
    mutable_on_resume,
    option,
    validate,
)


class Network(Settings):
    title: ClassVar[str] = "network"
    rank: int = option(32, "LoRA rank.", "network_dim", gt=0, high=1024, metadata="ss_network_dim")
    kind: Literal["lora", "loha"] = option("lora", "Adapter type.", "network_module")


class Run(Settings):
    title: ClassVar[str] = "run"
    steps: int = option(1600, "Training steps.", "max_train_steps", gt=0, mutable=True)
    epochs: int | None = option(None, "Epochs.", gt=0, none=0)
    folder: Path = option(Path("out"), "Output folder.", "output_dir", mutable=True)
    size: tuple[int, int] | None = option(None, "Frame size.", metavar=("H", "W"))
    scales: tuple[float, ...] = option((), "Scales.")
    checkpointing: bool = option(True, "Gradient checkpointing.", "gradient_checkpointing")
    offload: bool = option(False, "CPU offload.")
    arguments: dict[str, Any] = option({}, "Arguments.", "optimizer_args")
    network: Network = Network()


def parse(*words: str) -> Run:
    parser = ArgumentParser()
    add_options(parser, Run)
    return read_options(Run, parser.parse_args(words))


def test_nothing_given_is_the_defaults() -> None:
    assert parse() == Run() and not parse().model_fields_set


def test_words_become_values() -> None:
    line = "--max_train_steps 5 --size 64 32 --scales 1 .5 --no-gradient_checkpointing --offload"
    found = parse(*line.split(), "--network_dim", "4", "--optimizer_args", "eps=1e-8", "name=x")
    assert found == Run(
        steps=5,
        size=(64, 32),
        scales=(1.0, 0.5),
        checkpointing=False,
        offload=True,
        arguments={"eps": 1e-8, "name": "x"},
        network=Network(rank=4),
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--max_train_steps 0", "--max_train_steps: '0' must be above 0"),
        ("--epochs x", "--epochs: 'x' is not a whole number"),
        ("--network_module y", "--network_module: 'y' is unknown; use 'lora' or 'loha'"),
        ("--size 1 a", "--size: 'a' is not a whole number"),
        ("--optimizer_args eps", "--optimizer_args: 'eps' is not NAME=VALUE"),
    ],
)
def test_mistakes_name_the_flag(line: str, message: str) -> None:
    with pytest.raises(FramePackError) as raised:
        parse(*line.split())
    assert str(raised.value) == message


def test_unknown_names_are_refused() -> None:
    with pytest.raises(FramePackError, match=r"run\.toml: step: unknown; known are steps, epochs"):
        validate(Run, {"step": 3}, "run.toml")


def test_given_tells_set_from_default() -> None:
    found = parse("--max_train_steps", "1600", "--network_dim", "32")
    assert {leaf.name for leaf in leaves(Run) if leaf.given(found)} == {"steps", "rank"}


def test_what_is_derived() -> None:
    assert mutable_on_resume(Run) == {"steps", "folder"}
    assert file_metadata(Run(network=Network(rank=8))) == {"ss_network_dim": 8}
    bounds = {leaf.name: leaf.bounds for leaf in leaves(Run)}
    assert bounds["rank"] == (1, 1024) and bounds["offload"] == (None, None)


def test_the_command_line_wins_over_a_file() -> None:
    parser = ArgumentParser()
    add_options(parser, Run)
    file = {"steps": 7, "network": {"rank": 9, "kind": "loha"}}
    found = read_options(Run, parser.parse_args(["--network_dim", "3"]), file)
    assert (found.steps, found.network.rank, found.network.kind) == (7, 3, "loha")
    assert merged({"a": {"b": 1}}, {"a": 2}) == {"a": 2}


def test_help_says_unit_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    add_options(parser, Run)
    parser.print_help()
    text = capsys.readouterr().out
    assert "LoRA rank. (default: 32)" in text and "--size H W" in text and "network:" in text
