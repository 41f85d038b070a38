"""What lies in a folder of a data set: companions of a Mac, other kinds, empty captions."""

from __future__ import annotations

from pathlib import Path

import pytest
from reports.inputs import captioned, clips_toml, error_of, pictures_toml, write_clip, write_picture

from framepack_core.training.dataset import TrainingSet
from framepack_core.training.media import is_frames


def names(toml: Path) -> list[str]:
    return [item.source.path.name for item in TrainingSet.load(toml).items]


def test_companions_of_a_mac_are_no_clips(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    captioned(write_clip(folder / "clip.mp4"))
    for name in ("._clip.mp4", "._clip.txt", ".DS_Store", "._other.mp4"):
        (folder / name).write_bytes(b"\0\5\x16\7 not a clip")
    assert names(clips_toml(folder)) == ["clip.mp4"]


def test_companions_of_a_mac_are_no_frames(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    for number in range(5):
        write_picture(folder / "walk" / f"{number}.png", level=10 * number)
        (folder / "walk" / f"._{number}.png").write_bytes(b"\0\5\x16\7")
    captioned(folder / "walk")
    [item] = TrainingSet.load(clips_toml(folder)).items
    assert item.load()[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40]
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "._0.png").write_bytes(b"\0\5\x16\7")
    assert not is_frames(tmp_path / "none")


def test_companions_of_a_mac_are_no_controls(tmp_path: Path) -> None:
    captioned(write_picture(tmp_path / "images" / "a.png"))
    control = write_picture(tmp_path / "control" / "a.png")
    (tmp_path / "control" / "._a.png").write_bytes(b"\0\5\x16\7")
    [item] = TrainingSet.load(pictures_toml(tmp_path / "images", tmp_path / "control")).items
    assert item.controls == (control,)


@pytest.mark.parametrize("suffix", [".3gp", ".ts", ".MTS", ".m2ts"])
def test_clips_of_phones_and_cameras(suffix: str, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    (tmp_path / "clips").mkdir()
    captioned(clip.rename(tmp_path / "clips" / f"a{suffix}"))
    assert names(clips_toml(tmp_path / "clips")) == [f"a{suffix}"]


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".tif"])
def test_pictures_under_other_names(suffix: str, tmp_path: Path) -> None:
    captioned(write_picture(tmp_path / "images" / f"a{suffix}"))
    write_picture(tmp_path / "control" / f"a{suffix}")
    toml = pictures_toml(tmp_path / "images", tmp_path / "control")
    assert names(toml) == [f"a{suffix}"]


def test_a_captioned_file_that_is_not_read_is_named(tmp_path: Path) -> None:
    captioned(write_clip(tmp_path / "clips" / "a.mp4"))
    (tmp_path / "clips" / "b.rmvb").write_bytes(b"film")
    (tmp_path / "clips" / "b.json").write_text("{}")
    toml = clips_toml(tmp_path / "clips")
    assert names(toml) == ["a.mp4"]  # no caption: not meant
    captioned(tmp_path / "clips" / "b.rmvb")
    error = error_of(TrainingSet.load, toml)
    assert "b.rmvb: it has a caption, but .rmvb is not read; convert it to one of" in error
    assert ".mp4" in error


def test_a_control_image_that_is_not_read_is_named(tmp_path: Path) -> None:
    captioned(write_picture(tmp_path / "images" / "a.png"))
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / "a.heic").write_bytes(b"picture")
    error = error_of(TrainingSet.load, pictures_toml(tmp_path / "images", tmp_path / "control"))
    assert "a.heic: it is named as a control image of a, but .heic is not read" in error


def test_notes_next_to_clips_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    captioned(write_clip(folder / "a.mp4"))
    for name in ("prompts.txt", "prompts.json", "readme.md", "a.srt", "a.json", "a.sections.json"):
        (folder / name).write_text("{}")
    assert names(clips_toml(folder)) == ["a.mp4"]


def test_an_empty_caption_is_an_empty_caption(tmp_path: Path) -> None:
    """As in musubi-tuner; a caption that is missing is an error still."""
    captioned(write_clip(tmp_path / "clips" / "a.mp4"), " \n")
    [item] = TrainingSet.load(clips_toml(tmp_path / "clips")).items
    assert item.captions == ("",)
    (tmp_path / "clips" / "a.txt").unlink()
    assert "a.mp4: no caption" in error_of(TrainingSet.load, clips_toml(tmp_path / "clips"))
