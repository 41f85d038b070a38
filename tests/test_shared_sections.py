"""Sections of FramePack-eichi: what its zip means, and what a damaged or hostile one does."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_zip import ENDS, LIST, PICTURES, picture, write_zip

from framepack_core.cli import main
from framepack_core.headless.job import parse_prompt_line
from framepack_core.parsing import shared_sections
from framepack_core.parsing.section_spec import parse_spec
from framepack_core.parsing.shared_sections import read_shared_sections
from framepack_core.runtime.errors import FramePackError

SLEEPS, WAKES, WAITS = "it sleeps", "it wakes --slowly: #1", "it waits"


def read(path: Path) -> shared_sections.SharedSections:
    return read_shared_sections(path, path.name)


def test_numbers_are_those_of_making_and_pictures_hold_down_to_the_next(tmp_path: Path) -> None:
    shared = read(write_zip(tmp_path / "a.zip"))
    assert (shared.prompt, shared.seed, shared.least) == (WAITS, 42, 3)
    assert (shared.start, shared.end, shared.lost) == ("start.png", "end.png", ("lora_settings",))
    made = [(SLEEPS, "000.png"), (WAITS, "002.png"), (WAKES, "002.png"), (WAITS, None)]
    assert shared.in_time(4, forward=True) == made
    assert shared.in_time(4, forward=False) == made[::-1]
    colours = {"000.png": 10, "002.png": 20, "start.png": 30, "end.png": 40}
    assert dict(shared.pictures) == {name: picture((red, 0, 0)) for name, red in colours.items()}


@pytest.mark.parametrize("forward", [False, True])
def test_specs_mean_the_same_for_longer_videos(tmp_path: Path, forward: bool) -> None:
    shared = read(write_zip(tmp_path / "a.zip"))
    for count in (3, 4) if forward else (3, 4, 9):
        words = shared.in_time(count, forward)
        texts = parse_spec(format_texts(shared.prompt_texts(forward))).resolve(count)
        if forward:  # behind the last one named the first counts, which a spec cannot say otherwise
            texts, words = texts[:3], words[:3]
        assert texts == [word.prompt for word in words]
        images = parse_spec(format_texts(shared.image_texts(forward))).resolve(count)
        assert images[: len(words)] == [word.image or "start.png" for word in words]


def format_texts(texts: dict[int, str]) -> str:
    return " ;;; ".join(f"{key}:{text}" for key, text in texts.items())


@pytest.mark.parametrize(
    ("options", "prompt", "images"),
    [
        ((), [WAKES, WAITS, SLEEPS], ["002.png", "002.png", "000.png"]),
        (("--f1",), [SLEEPS, WAITS, WAKES], ["000.png", "002.png", "002.png"]),
    ],
)
def test_the_command_writes_a_prompt_file_that_batch_reads(
    tmp_path: Path,
    options: tuple[str, ...],
    prompt: list[str],
    images: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_zip(tmp_path / "猫 a.zip")
    for name in ("猫 a", "猫 a_2"):
        assert main(["convert", str(path), *options]) == 0
        out = capsys.readouterr().out.splitlines()
        folder = tmp_path / name
        assert out[0] == "not taken over: lora_settings; set it by hand"
        assert out[-1] == str(folder / "prompts.txt")
        values = parse_prompt_line((folder / "prompts.txt").read_text(encoding="utf-8"))
        assert (values["video_sections"], values["seed"]) == (3, 42)
        assert values["end_image_path"] == str(folder / "end.png")
        assert parse_spec(values["prompt"]).resolve(3) == prompt
        found = parse_spec(values["image_path"]).resolve(3)
        assert found == [str(folder / image) for image in images]
        assert all(Path(image).is_file() for image in found)


def test_a_zip_of_prompts_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_zip(tmp_path / "a.zip", "section_info: [{section: 1, prompt: runs}]", {})
    assert main(["convert", str(path), "--output", str(tmp_path / "to" / "there")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "no start picture in it; give one by --i"
    [made] = (tmp_path / "to" / "there").iterdir()
    assert made.read_text() == "-2:runs --vs 2\n"


def test_f1_has_no_effect_on_a_workflow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text("{}")
    assert main(["convert", str(tmp_path / "a.json"), "--f1"]) == 2
    assert "warning: --f1 has no effect on a workflow" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1]", "sections.yaml: it should hold section_info and default_prompt"),
        ("a: [", "sections.yaml: not YAML (while parsing"),
        (b"a: \xff", "sections.yaml: not YAML ("),
        ("default_prompt: [1]", "default_prompt: [1] is no text"),
        ("SEED: x", "SEED: 'x' is no seed"),
        ("section_info: {}", None),
        ("section_info: a", "section_info: it should be a list"),
        ("section_info: [a]", "section_info.0: no section and prompt in it"),
        ("section_info: [{section: -1}]", "section_info.0.section: -1 is no section; use 0 to 499"),
        ("section_info: [{section: true}]", "section_info.0.section: True is no section"),
        ("section_info: [{section: 0, prompt: 3}]", "section_info.0.prompt: 3 is no text"),
        (f"default_prompt: {'a' * 10_001}", "default_prompt: longer than 10000 characters"),
        ("a" * (1 << 20) + "a", "sections.yaml: too large; nothing of it was read"),
    ],
)
def test_mistakes_in_the_list_are_named(
    tmp_path: Path, text: str | bytes, problem: str | None
) -> None:
    path = write_zip(tmp_path / "a.zip", text, {})
    if problem is None:
        assert read(path).least == 1
        return
    with pytest.raises(FramePackError) as error:
        read(path)
    assert str(error.value).startswith("a.zip: ") and problem in str(error.value)


def test_what_is_no_such_zip_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_zip(tmp_path / "a.zip", name="other.yaml")
    assert main(["convert", str(other)]) == 2
    assert f"error: {other}: no sections.yaml in it; take a zip" in capsys.readouterr().err
    with pytest.raises(FramePackError, match="x: not a zip file, or a damaged one"):
        read_shared_sections(io.BytesIO(b"PK"), "x")
    large = write_zip(tmp_path / "b.zip", pictures={"999.png": (1, 2, 3)})
    with pytest.raises(FramePackError, match=r"999\.png: 999 is no section; use 0 to 499"):
        read(large)
    monkeypatch.setattr(shared_sections, "MAX_PICTURES", 300)
    with pytest.raises(FramePackError, match="pictures: too large; nothing of it was read"):
        read(write_zip(tmp_path / "c.zip"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "b.zip", "c.zip"]


def test_names_in_the_zip_lead_nowhere(tmp_path: Path) -> None:
    pictures = {"../../000.png": (1, 0, 0), "/end.png": (2, 0, 0), "C:\\start.png": (3, 0, 0)}
    shared = read(write_zip(tmp_path / "a.zip", pictures=pictures))
    folder = shared.write_pictures(tmp_path / "b" / "c")
    assert folder == tmp_path / "b" / "c"
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert found[:2] == ["b/c/000.png", "b/c/end.png"]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_zip_is_read_or_one_error(data: st.DataObject) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sections.yaml", LIST)
        for name in {**PICTURES, **ENDS}:
            archive.writestr(name, b"picture" * 9)
    raw = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        shared = read_shared_sections(io.BytesIO(bytes(raw)), "x")
    except FramePackError as error:
        assert str(error).startswith("x: ")
    else:
        assert shared.least >= 1
