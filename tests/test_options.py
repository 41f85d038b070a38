"""Options declared once: what the command line and messages make of them."""

from __future__ import annotations

import re
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from framepack_core.cli.options import add_options, read_options, table_options
from framepack_core.runtime.errors import FramePackError
from framepack_core.runtime.options import (
    Settings,
    file_metadata,
    leaves,
    merged,
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


# --- what files, switches and pairs give ----------------------------------------------------------


class Base(Settings):
    title: ClassVar[str] = "base"
    name: str = option("a", "Name.", "out_name")


class Job(Base):
    title: ClassVar[str] = "job"
    mode: Literal["a", "b", "c"] = option(
        "a", "Mode.", switches={"bee": ("b", "Mode b."), "see": ("c", "Mode c.")}
    )
    size: tuple[int, int] | None = option(None, "Size.", metavar="N")
    depth: int = option(1, "Depth.", "extra_args", pair="depth", gt=0)
    width: int = option(2, "Width.", "extra_args", pair="wide")
    arguments: dict[str, Any] = option({}, "Arguments.")


def job(*words: str, table: dict[str, Any] | None = None) -> Job:
    parser = ArgumentParser()
    add_options(parser, Job)
    found = table_options(Job, table or {}, "job.toml")
    return read_options(Job, parser.parse_args(words), table=found)


def test_switches_stand_for_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert [job(*line.split()).mode for line in ("", "--bee", "--see")] == ["a", "b", "c"]
    assert job(table={"see": True}).mode == "c" and job(table={"see": False}).mode == "a"
    with pytest.raises(SystemExit):
        job("--bee", "--see")
    assert "--see: not allowed with argument --bee" in capsys.readouterr().err


def test_pairs_stand_behind_one_flag() -> None:
    assert job("--extra_args", "depth=3", "wide=4") == Job(depth=3, width=4)
    assert job(table={"extra_args": ["depth=3"]}) == job(table={"extra_args": {"depth": 3}})
    for words, message in (
        (("deep=3", "high=1"), "--extra_args: deep, high: unknown; known are depth, wide"),
        (("depth=0",), "--extra_args: depth: 0 must be above 0"),
    ):
        with pytest.raises(FramePackError) as raised:
            job("--extra_args", *words)
        assert str(raised.value) == message


def test_a_file_names_options_as_the_command_line_does() -> None:
    table = {"out_name": "b", "part": {"size": [2, 3], "arguments": {"x": 1}}, "bee": True}
    assert job("--out_name", "c", table=table) == Job(
        name="c", size=(2, 3), arguments={"x": 1}, mode="b"
    )
    found = table_options(Job, {"part": {"namen": 1}, "name": 2, "out_name": "c"}, "job.toml")
    assert found.unknown == {"namen": 1, "name": 2}


def test_mistakes_of_a_file_name_it() -> None:
    with pytest.raises(FramePackError, match=r"^job\.toml: out_name: 3 is not a text$"):
        job(table={"out_name": 3})
    assert job("--out_name", "b", table={"out_name": 3}).name == "b"


def test_bases_of_a_model_are_groups(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    add_options(parser, Job)
    parser.print_help()
    _, _, text = capsys.readouterr().out.partition("\nbase:")
    first, _, second = text.partition("\njob:")
    assert "--out_name" in first and "--bee" in second and "depth: Depth. (default: 1)" in second


# --- one option, one place ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["gradient_checkpointing_cpu_offload", "caption_dropout", "timestep_sampling"]
)
def test_an_option_is_declared_used_and_placed(name: str) -> None:
    """Its declaration, its use, and its place among the widgets of a node: no fourth file."""
    root = Path(__file__).resolve().parents[1]
    sources = [p for part in ("framepack_core", "nodes") for p in (root / part).rglob("*.py")]
    word = re.compile(rf"\b{name}\b")
    naming = [path.name for path in sources if word.search(path.read_text(encoding="utf-8"))]
    assert len(naming) <= 3, naming


def test_declarations_need_no_torch() -> None:
    """So that `--help` and schemas of nodes are instant."""
    code = (
        "import sys; from framepack_core.headless import options, training_options; "
        "from framepack_core.training import config, dataset_config; "
        "from framepack_core.cli import build_parser; build_parser(); "
        "heavy = {'torch', 'numpy', 'transformers', 'av'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
