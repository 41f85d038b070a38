"""Values that cannot be paths are told as files that are not there; texts have to be UTF-8."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from cli_runs import paths, picture, small
from reports.inputs import error_of

from framepack_core.cli import main
from framepack_core.lora.files import load_lora
from framepack_core.models.prompt import check_prompt
from framepack_core.parsing.json_toml import parse_json, read_table
from framepack_core.parsing.sample_prompts import load_sample_prompts
from framepack_core.runtime.files import is_file, is_folder, list_folder, read_text
from framepack_core.runtime.images import load_image
from framepack_core.runtime.video_reader import VideoFile
from framepack_core.sampling.latents import load_latents
from framepack_core.training.dataset import TrainingSet
from framepack_core.weights.layouts import find_component

IMPOSSIBLE = {
    "long": "n" * 300,
    "long in bytes": "語" * 100,
    "long folder": "n" * 300 + "/a",
    "deep": "a/" * 3000,
    "NUL": "a\0b",
    "surrogate": "a\udcffb",
    "half of a character": "a\ud83db",
    "empty": "",
    "line break": "a\nb",
}
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("value", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
@pytest.mark.parametrize(
    "read",
    [
        load_image,
        VideoFile.open,
        load_latents,
        load_sample_prompts,
        TrainingSet.load,
        read_text,
        lambda path: read_table(Path(f"{path}.toml")),
        lambda path: load_lora(path, {}),
        lambda path: find_component(path, "dit"),
        lambda path: list_folder(Path(path)),
    ],
)
def test_every_reader_says_so(read, value: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not is_file(value) and not is_folder(value)
    if value:  # the empty text is this folder
        from framepack_core.runtime.errors import FramePackError

        with pytest.raises(FramePackError):
            read(value)


def test_no_probe_of_a_path_can_raise() -> None:
    """Path.is_file() and its like raise for names of more than 255 bytes: ours do not."""
    raising = {"is_file", "is_dir", "exists"}
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for folder in ("framepack_core", "nodes")
        for file in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr in raising and ast.unparse(node.func.value) != "os.path"
        if "toyworld" not in file.parts
    ]
    assert found == []


@pytest.mark.parametrize(
    "option",
    [
        "--image_path",
        "--end_image_path",
        "--lora_weight",
        "--dit",
        "--snapshot",
        "--image_mask_path",
    ],
)
@pytest.mark.parametrize("value", ["n" * 300, "a\0b"], ids=["long", "NUL"])
def test_options_of_generate(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = small("generate", tmp_path / "out", "--image_path", picture(tmp_path / "a.png"))
    command += ["--prompt", "a ball", "--video_sections", "1", option, value]
    assert main(command) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--dataset_config", "n" * 300),
        ("--output_name", "n" * 300),
        ("--sample_prompts", "n" * 300),
    ],
)
def test_options_of_train(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clips").mkdir()
    command = ["train", "--dataset_config", str(tmp_path / "clips"), "--output_name", "x"]
    command += ["--output_dir", str(tmp_path / "out"), "--sample_at_first", option, value]
    assert main(command) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_one_line_of_a_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = picture(tmp_path / "a.png")
    lines = [f"a ball --i {image}", f"a ball --i {'n' * 300}", f"a cube --i {image}"]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    command = small("batch", tmp_path / "out", "--from_file", str(tmp_path / "lines.txt"))
    assert main([*command, "--video_sections", "1"]) == 2
    said = capsys.readouterr()
    assert len(paths(said.out)) == 2
    assert "line 2: image nnn" in said.err and "no such file" in said.err


def test_bytes_that_are_not_utf8_in_a_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the shell of Linux hands on Latin-1."""
    prompt = b"caf\xe9".decode("utf-8", "surrogateescape")
    for option in ("--prompt", "--negative_prompt", "--custom_system_prompt"):
        command = small("generate", tmp_path / "out", "--image_path", picture(tmp_path / "a.png"))
        command += ["--prompt", "a ball", "--video_sections", "1", option, prompt]
        assert main(command) == 2
        assert f"error: {option}: 'caf\\udce9' holds bytes" in capsys.readouterr().err
    assert "not UTF-8" in error_of(check_prompt, prompt)


@pytest.mark.parametrize("text", [r'["a\ud83d"]', r'{"caption": "\udc00"}'])
def test_halves_of_characters_in_json(text: str) -> None:
    assert "v.jsonl line 3: it holds half of a character" in error_of(
        parse_json, text, "v.jsonl line 3"
    )
    assert parse_json(r'["\ud83d\ude00"]', "x") == ["😀"]


@pytest.mark.parametrize("option", ["--save_path", "--ledger"])
@pytest.mark.parametrize("value", [IMPOSSIBLE["long"], IMPOSSIBLE["NUL"]])
def test_output_folders_are_told_before_anything_is_loaded(
    option: str, value: str, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = small("generate", tmp_path, "--image_path", picture(tmp_path / "a.png"))
    command = [word for word in command if word != "--no_ledger"]
    assert main([*command, "--prompt", "a ball", option, value]) == 2
    told = capsys.readouterr()
    assert "cannot be made" in told.err and "encoding" not in told.out
