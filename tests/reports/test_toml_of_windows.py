"""TOML files as people have them: byte order marks, Windows paths, other encodings, wrong types."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from reports.inputs import captioned, error_of, write_clip

from framepack_core.parsing.json_toml import parse_toml
from framepack_core.training.dataset import TrainingSet
from framepack_core.training.dataset_config import load_datasets

BODY = "[general]\nresolution = [32, 32]\n[[datasets]]\nvideo_directory = '{}'\n"


@pytest.fixture
def toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    captioned(write_clip(tmp_path / "Größe 語" / "a.mp4", 37))
    path = tmp_path / "data.toml"
    path.write_text(BODY.format("Größe 語"), encoding="utf-8")
    return path


def test_a_byte_order_mark(toml: Path) -> None:
    toml.write_bytes(codecs.BOM_UTF8 + toml.read_bytes())
    assert len(TrainingSet.load(toml).items) == 1
    assert parse_toml("\ufeffa = 1", "toml") == {"a": 1}  # pasted into a node


@pytest.mark.parametrize("ending", ["\r\n", "\n"])
def test_line_ends(ending: str, toml: Path) -> None:
    toml.write_bytes(toml.read_text(encoding="utf-8").replace("\n", ending).encode())
    assert len(TrainingSet.load(toml).items) == 1


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("utf-16", "UTF-16, not UTF-8; save it as UTF-8"),
        ("shift_jis", "not UTF-8 (byte"),
        ("latin-1", "not UTF-8 (byte"),
    ],
)
def test_other_encodings(encoding: str, words: str, toml: Path) -> None:
    text = toml.read_text(encoding="utf-8").replace("Größe ", "")
    text = text.replace("語", "ö") if encoding == "latin-1" else text
    toml.write_bytes(text.encode(encoding))
    error = error_of(load_datasets, toml)
    assert error.startswith(f"{toml}: ") and words in error


@pytest.mark.parametrize(
    "path",
    [
        r"D:\new\train\bob",
        r"C:\Users\me\clips",  # \U alone is an error of TOML's own
        r"\\server\share\clips",
        r".\clips\new",
        r"clips\train",
        r"D:\clips",
    ],
)
def test_windows_paths_in_double_quotes(path: str, tmp_path: Path) -> None:
    toml = tmp_path / "data.toml"
    toml.write_text(BODY.replace("'{}'", f'"{path}"'), encoding="utf-8")
    error = error_of(load_datasets, toml)
    assert error == (
        f"{toml} line 4: in double quotes a backslash is no part of a path; write "
        f"'{path}' in single quotes, or / for \\"
    )


@pytest.mark.parametrize(
    "line",
    [
        r'a = "D:\\new\\train"',
        r"a = 'D:\new\train'",
        r'prompt = "first\nsecond"',
        r'a = "one \"two\" three"',
        r'# a = "D:\new"',
        r'a = "D:/new/train"',
    ],
)
def test_what_is_written_well(line: str) -> None:
    assert isinstance(parse_toml(line, "toml"), dict)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("target_frames = 25", "target_frames: 25 is not a list"),
        ("target_frames = ['a']", "target_frames"),
        ("resolution = 'large'", "resolution"),
        ("batch_size = '2x'", "batch_size: '2x' is not a whole number"),
        ("enable_bucket = 'maybe'", "enable_bucket: 'maybe' is neither true nor false"),
        ("video_directory = 3", "video_directory: 3 is not a path"),
    ],
)
def test_wrong_types(line: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "data.toml").write_text(f"[[datasets]]\nvideo_directory = 'x'\n{line}\n".replace(
        "video_directory = 'x'\nvideo_directory", "video_directory"
    ))  # fmt: skip
    error = error_of(load_datasets, tmp_path / "data.toml")
    assert words in error
    for jargon in ("Input should", "pydantic", "tuple", "valid integer"):
        assert jargon not in error
