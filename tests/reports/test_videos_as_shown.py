"""Clips train and extend as players show them: turned, with square pixels, at the right speed."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from reports.inputs import (
    TURNS,
    captioned,
    clips_toml,
    error_of,
    greys,
    turn,
    write_picture,
    write_stored,
)

from framepack_core.runtime.video import read_video
from framepack_core.runtime.video_reader import VideoFile
from framepack_core.training.cache import ALL_CONTEXTS, source_digest
from framepack_core.training.dataset import TrainingSet

CORNERS = np.zeros((32, 64, 3), np.uint8)
CORNERS[:16, :32], CORNERS[:16, 32:] = (250, 0, 0), (0, 250, 0)
CORNERS[16:, :32], CORNERS[16:, 32:] = (0, 0, 250), (250, 250, 250)


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    """The same picture but for what the encoder does at edges."""
    return found.shape == expected.shape and bool(
        np.abs(found.astype(int) - expected.astype(int)).mean() < 6
    )


@pytest.mark.parametrize("degrees", TURNS)
def test_a_clip_of_a_phone(degrees: int, tmp_path: Path) -> None:
    clip = turn(write_stored(tmp_path / "clips" / "a.mp4", [CORNERS] * 6), TURNS[degrees])
    upright = np.rot90(CORNERS, -degrees // 90)  # np.rot90 turns to the left
    frames, fps = read_video(clip)
    assert fps == pytest.approx(30, abs=0.1)
    assert close(frames[5], upright)
    toml = clips_toml(captioned(clip).parent, "resolution = [64, 64]\nenable_bucket = true")
    [item] = TrainingSet.load(toml).items
    width, height = item.size
    assert (width > height) == (upright.shape[1] > upright.shape[0])
    assert item.load().shape[1:3] == (height, width)


def test_a_mirrored_clip(tmp_path: Path) -> None:
    """Front cameras write a -1 into the matrix."""
    clip = turn(write_stored(tmp_path / "a.mp4", [CORNERS] * 3), (-1, 0, 0, 1))
    assert close(read_video(clip)[0][0], CORNERS[:, ::-1])
    clip = turn(write_stored(tmp_path / "b.mp4", [CORNERS] * 3), (0, 1, 1, 0))
    assert close(read_video(clip)[0][0], CORNERS.swapaxes(0, 1))


@pytest.mark.parametrize(
    ("aspect", "size"), [(Fraction(4, 3), (85, 32)), (Fraction(3, 4), (64, 43)), (None, (64, 32))]
)
def test_pixels_that_are_not_square(
    aspect: Fraction, size: tuple[int, int], tmp_path: Path
) -> None:
    clip = write_stored(tmp_path / "a.mp4", [CORNERS] * 3, pixel_aspect=aspect)
    video = VideoFile.open(clip)
    assert video.size == size
    [frame] = video.frames(1, 1)
    assert frame.shape == (size[1], size[0], 3)


def test_pixels_that_are_not_square_in_a_turned_clip(tmp_path: Path) -> None:
    """The aspect is that of stored pixels, so it counts before the turn."""
    clip = write_stored(tmp_path / "a.mp4", [CORNERS] * 3, pixel_aspect=Fraction(2, 1))
    assert VideoFile.open(turn(clip, TURNS[90])).size == (32, 128)


def test_a_variable_frame_rate(tmp_path: Path) -> None:
    """60 frames over 7 s: one in 200 ms for the first 5 s, then one in 57 ms."""
    times = [200 * i for i in range(25)] + [5000 + round(i * 2000 / 35) for i in range(35)]
    clip = write_stored(tmp_path / "clips" / "a.mp4", greys(range(4, 244, 4)), times)
    video = VideoFile.open(clip)
    assert (video.fps, video.is_constant) == (30, False)
    assert len(video) in (209, 210)  # how long the last frame stays is a guess of the muxer
    levels = np.array([frame[0, 0, 0] for frame in video.frames()])
    # At second t the frame is the one shown last before t.
    for second in (0, 1, 2.5, 4.9, 5.5, 6.9):
        shown = np.searchsorted(times, 1000 * second + 1, side="right") - 1
        assert abs(int(levels[round(30 * second)]) - (4 + 4 * shown)) <= 2
    toml = clips_toml(captioned(clip).parent, "source_fps = 60\nmax_frames = 100000")
    [item] = TrainingSet.load(toml).items
    assert item.used_frames == 209  # source_fps is for constant rates


def test_a_damaged_time_stamp(tmp_path: Path) -> None:
    """Three frames would become half an hour of pictures."""
    clip = write_stored(tmp_path / "a.mkv", [CORNERS] * 3, times=[0, 33, 1_800_000])
    error = error_of(VideoFile.open, clip)
    assert "a.mkv: cannot be read (its time stamps let a frame stay for 1800 s)" in error


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize("fps", [24, 30, 60])
def test_constant_rates_stay_as_they_are(fps: int, suffix: str, tmp_path: Path) -> None:
    """Also where the container rounds time stamps to milliseconds."""
    times = [round(1000 * i / fps) for i in range(20)]
    clip = write_stored(tmp_path / f"a{suffix}", greys(range(0, 200, 10)), times)
    video = VideoFile.open(clip)
    assert video.is_constant and len(video) == 20
    levels = [int(frame[0, 0, 0]) for frame in video.frames()]
    assert np.abs(np.array(levels) - range(0, 200, 10)).max() <= 2


def test_how_a_clip_is_shown_counts_for_its_caches(tmp_path: Path) -> None:
    clip = write_stored(tmp_path / "clips" / "a.mp4", [CORNERS] * 6)
    toml = clips_toml(captioned(clip).parent)

    def item() -> object:
        return TrainingSet.load(toml).items[0]

    assert item().clip.traits == ()
    plain = source_digest(item(), "framepack", ALL_CONTEXTS)
    turn(clip, TURNS[180])
    assert item().clip.traits
    assert source_digest(item(), "framepack", ALL_CONTEXTS) != plain


def test_a_folder_of_pictures_is_a_clip_too(tmp_path: Path) -> None:
    for i in range(7):
        write_picture(tmp_path / "clips" / "walk" / f"{i}.png", 30 * i)
    captioned(tmp_path / "clips" / "walk")
    [item] = TrainingSet.load(clips_toml(tmp_path / "clips")).items
    assert item.load()[:, 0, 0, 0].tolist() == [0, 30, 60, 90, 120]
