"""Files whose names hold numbers come in the order of the numbers, not of the letters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from reports.inputs import captioned, clips_toml, write_clip, write_picture

from framepack_core.runtime.files import list_folder, natural_key
from framepack_core.runtime.video import ImageSequenceWriter
from framepack_core.training.dataset import TrainingSet


def test_a_clip_as_ffmpeg_writes_its_pictures(tmp_path: Path) -> None:
    """ffmpeg -i clip.mp4 %d.png: 1.png to 40.png."""
    for number in range(1, 41):
        write_picture(tmp_path / "clips" / "walk" / f"{number}.png", level=6 * number)
    captioned(tmp_path / "clips" / "walk")
    [item] = TrainingSet.load(clips_toml(tmp_path / "clips")).items
    levels = item.load()[:, 0, 0, 0]
    assert levels.tolist() == [6 * number for number in range(1, 1 + item.used_frames)]


def test_the_packs_own_sequence_from_number_1000_on(tmp_path: Path) -> None:
    with ImageSequenceWriter(tmp_path / "a", "a") as writer:
        writer.count = 998
        for _ in range(4):
            writer.write(np.zeros((16, 16, 3), np.uint8))
    names = [path.name for path in list_folder(tmp_path / "a")]
    assert names == ["a_998.png", "a_999.png", "a_1000.png", "a_1001.png"]


def test_clips_of_a_folder(tmp_path: Path) -> None:
    for name in ("clip10", "clip9", "clip 2", "clip1"):
        captioned(write_clip(tmp_path / "clips" / f"{name}.mp4"))
    found = TrainingSet.load(clips_toml(tmp_path / "clips")).items
    assert [item.source.stem for item in found] == ["clip1", "clip9", "clip10", "clip 2"]


def test_numbers_count_by_value_wherever_they_stand() -> None:
    names = ["v2.10", "v10.1", "v2.9", "v2", "2", "10", "1a", "", "a01", "a1"]
    expected = ["", "1a", "2", "10", "a01", "a1", "v2", "v2.9", "v2.10", "v10.1"]
    assert sorted(names, key=natural_key) == expected
