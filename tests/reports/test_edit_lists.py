"""Clips that were trimmed without encoding again hold more packets than they show frames."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from reports.inputs import captioned, clips_toml, error_of, greys, trim, write_stored

from framepack_core.runtime.video_reader import VideoFile
from framepack_core.training.dataset import TrainingSet

FRAMES = 30


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    levels = range(0, 8 * FRAMES, 8)
    return captioned(write_stored(tmp_path / "clips" / "a.mp4", greys(levels), gop=FRAMES))


def packets(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))


@pytest.mark.parametrize("cut", [1, 7, 20])
def test_frames_are_counted_that_are_shown(cut: int, clip: Path) -> None:
    trim(clip, cut)
    video = VideoFile.open(clip)
    shown = [int(frame[0, 0, 0]) for frame in video.frames()]
    assert len(video) == len(shown) == FRAMES - cut
    assert packets(clip) > len(video)
    assert np.abs(np.array(shown) - range(8 * cut, 8 * FRAMES, 8)).max() <= 2


def test_all_that_passes_the_check_can_be_loaded(clip: Path) -> None:
    trim(clip, 20)
    toml = clips_toml(clip.parent, "max_frames = 100000")
    [item] = TrainingSet.load(toml).items
    assert item.used_frames == 9
    assert item.load().shape[0] == 9


def test_a_clip_that_is_too_short_once_trimmed(clip: Path) -> None:
    trim(clip, 26)
    error = error_of(TrainingSet.load, clips_toml(clip.parent))
    assert "a.mp4: 4 frames, but 5 are needed" in error
