"""Lists whose quotes a shell took away are an error that says how to write them."""

from __future__ import annotations

import pytest
from reports.inputs import error_of

from framepack_core.cli import main
from framepack_core.runtime.options import parse_pairs


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("include_patterns=[.*single.*]", "\"include_patterns=['.*single.*']\""),
        ("exclude_patterns=[.*norm.*,.*mod.*]", "['.*norm.*', '.*mod.*']"),
        ("betas=(0.9,o.99)", "('0.9', 'o.99')"),
        ("milestones=[a]", "['a']"),
        ("x={a}", "{'a'}"),
    ],
)
def test_brackets_without_quotes(word: str, advice: str) -> None:
    error = error_of(parse_pairs, [word], "--network_args")
    assert error.startswith(f"--network_args: {word.partition('=')[0]}: ")
    assert "its quotes are missing" in error and advice in error


@pytest.mark.parametrize("word", ["betas=(0.9,0.99", "x=[a, [b]", "x={'a': 1"])
def test_brackets_without_an_end(word: str) -> None:
    error = error_of(parse_pairs, [word], "--optimizer_args")
    assert error.startswith(f"--optimizer_args: {word.partition('=')[0]}: ")
    assert "is missing at its end" in error


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("include_patterns=['.*single.*']", [".*single.*"]),
        ("include_patterns=.*single.*", ".*single.*"),
        ("include_patterns=[qk]_proj", "[qk]_proj"),  # a character class within an expression
        ("betas=(0.9,0.99)", (0.9, 0.99)),
        ("milestones=[]", []),
        ("name=", ""),
        ("path=a=b", "a=b"),
    ],
)
def test_what_is_written_well(word: str, value: object) -> None:
    assert parse_pairs([word], "x") == {word.partition("=")[0]: value}


def test_the_command_line(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "clips").mkdir()
    command = ["train", "--dataset_config", str(tmp_path / "clips"), "--output_name", "x"]
    command += ["--output_dir", str(tmp_path), "--network_args", "include_patterns=[.*single.*]"]
    assert main(command) == 2
    assert "['.*single.*']" in capsys.readouterr().err
