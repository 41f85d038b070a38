"""Video files: what is written can be read, whole or not at all, and encoders are checked first."""

from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np
import pytest

from framepack_core.runtime import video
from framepack_core.runtime.errors import FramePackError
from framepack_core.runtime.images import load_image
from framepack_core.runtime.video import (
    ImageSequenceWriter,
    VideoWriter,
    contact_sheet,
    probe_encoder,
    read_video,
)
from framepack_core.training import media

COLOURS = [(200, 40, 90), (20, 160, 60), (30, 60, 220), (128, 128, 128), (250, 250, 10)]


def frames(width: int = 48, height: int = 32) -> np.ndarray:
    return np.array([np.full((height, width, 3), c) for c in COLOURS], dtype=np.uint8)


def write(path: Path, **settings: object) -> None:
    with VideoWriter(path, width=48, height=32, fps=30, crf=4, **settings) as writer:
        for frame in frames():
            writer.write(frame)


def test_colours_length_and_rate_survive(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4")
    read, fps = read_video(tmp_path / "a.mp4")
    assert fps == 30
    assert read.shape == (5, 32, 48, 3)
    assert np.abs(read.astype(int) - frames()).max() <= 4


def test_file_plays_everywhere(tmp_path: Path) -> None:
    comment = '{"prompt": "ünïcode", "seed": 1}'
    write(tmp_path / "a.mp4", metadata={"title": "a cat", "comment": comment})
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.codec_context.colorspace == video.BT709
        assert container.metadata["title"] == "a cat"
        assert container.metadata["comment"] == comment


def test_a_codec_without_a_decoder_is_told(tmp_path: Path) -> None:
    """PyAV 13 to 17 end the process where such a stream is decoded."""
    path = tmp_path / "a.mp4"
    write(path)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(FramePackError, match="no decoder for its codec"):
        read_video(path)


def test_fractional_rates(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", width=48, height=32, fps=23.976) as writer:
        for frame in np.concatenate([frames()] * 3):
            writer.write(frame)
    assert read_video(tmp_path / "a.mp4")[1] == pytest.approx(23.976, abs=1e-3)


def test_an_interrupted_video_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"old")
    with (
        pytest.raises(KeyboardInterrupt),
        VideoWriter(tmp_path / "a.mp4", width=48, height=32, fps=30) as writer,
    ):
        writer.write(frames()[0])
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"old"


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes to stand in for a disk")
def test_a_full_disk_is_one_error_and_no_file(tmp_path: Path) -> None:
    import resource

    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, old[1]))
    try:
        with (
            pytest.raises(FramePackError, match=r"a\.mp4"),
            VideoWriter(tmp_path / "a.mp4", width=64, height=64, fps=30, crf=1) as writer,
        ):
            for frame in noise:
                writer.write(frame)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert list(tmp_path.iterdir()) == []


def test_odd_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FramePackError, match="33x48 is odd"):
        VideoWriter(tmp_path / "a.mp4", width=33, height=48, fps=30)


def test_encoders_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    probe_encoder("libx264")
    with pytest.raises(FramePackError, match=r"'h265x' is not available; this PyAV has .*libx264"):
        probe_encoder("h265x")
    monkeypatch.setitem(video.ENCODERS, "libx264", ("crf", {"profile": "nonsense"}))
    with pytest.raises(FramePackError, match="'libx264' does not work here"):
        probe_encoder("libx264")


def test_unreadable_videos(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(FramePackError, match=r"text\.mp4: cannot be read"):
        read_video(tmp_path / "text.mp4")
    with pytest.raises(FramePackError, match=r"none\.mp4: no such file"):
        read_video(tmp_path / "none.mp4")


def test_tags_that_are_not_utf8_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write(path, metadata={"title": "TITLE"})
    data = path.read_bytes()
    assert data.count(b"TITLE") == 1
    path.write_bytes(data.replace(b"TITLE", b"\xffITLE"))
    assert len(read_video(path)[0]) == len(COLOURS)
    clip = media.open_clip(path)
    assert (len(clip), clip.size) == (len(COLOURS), (48, 32))
    crop = media.read_crop(clip, [0, 1], (48, 32))
    assert np.array_equal(crop, read_video(path)[0][:2])


def test_image_sequence(tmp_path: Path) -> None:
    with ImageSequenceWriter(tmp_path / "out", "clip") as writer:
        for frame in frames():
            writer.write(frame)
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == [f"clip_{i:03d}.png" for i in range(5)]
    assert np.array_equal(load_image(tmp_path / "out" / "clip_002.png"), frames()[2])


def test_contact_sheet_holds_the_first_and_the_last_frame() -> None:
    sheet = contact_sheet(frames(), count=3, columns=2, gap=4)
    assert sheet.shape == (2 * 36 + 4, 2 * 52 + 4, 3)
    corners = [sheet[4, 4], sheet[4, 56], sheet[40, 4], sheet[40, 56]]
    assert [tuple(c) for c in corners] == [COLOURS[0], COLOURS[2], COLOURS[4], (255, 255, 255)]
