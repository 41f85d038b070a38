"""Sound of videos: read from files, cut to the length, at rates that players know."""

from __future__ import annotations

import wave
from pathlib import Path

import av
import numpy as np
import pytest
from cli_runs import failure, files, make_clip, picture, small

from framepack_core.runtime.audio import Audio, read_audio
from framepack_core.runtime.errors import FramePackError
from framepack_core.runtime.video import VideoWriter

PITCH = 440.0


def tone(seconds: float, rate: int, pitch: float = PITCH) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype("f4")


def write_wave(path: Path, seconds: float = 3, rate: int = 44100) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((tone(seconds, rate) * 32767).astype("<i2").tobytes())
    return path


def write_video(path: Path, frames: int, audio: Audio | None) -> Path:
    with VideoWriter(path, width=64, height=64, fps=30, audio=audio) as video:
        for _ in range(frames):
            video.write(np.zeros((64, 64, 3), np.uint8))
    return path


def heard(path: Path) -> tuple[float, float]:
    """The length in seconds of a video's sound, and its pitch."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        seconds = float(stream.duration * stream.time_base)
    sound = read_audio(path, "sound")
    strength = np.abs(np.fft.rfft(sound.samples[0]))
    return seconds, float(strength.argmax() * sound.rate / sound.samples.shape[1])


@pytest.mark.parametrize("rate", [44100, 7350])
def test_sound_is_cut_to_the_length_of_the_video(tmp_path: Path, rate: int) -> None:
    sound = read_audio(write_wave(tmp_path / "a.wav", rate=rate), "--audio")
    assert sound.samples.shape[1] / sound.rate == pytest.approx(3, abs=0.01)
    seconds, pitch = heard(write_video(tmp_path / "a.mp4", 37, sound))
    assert seconds == pytest.approx(37 / 30, abs=0.01)
    assert pitch == pytest.approx(PITCH, abs=3)


def test_what_is_heard_after_a_time() -> None:
    sound = Audio(np.concatenate([tone(1, 8000), tone(1, 8000, 660)])[None], 8000)
    assert np.array_equal(sound.after(1).samples, tone(1, 8000, 660)[None])
    assert sound.after(0).samples.shape == (1, 16000) and sound.after(3).samples.shape == (1, 0)


def test_a_short_sound_ends_before_the_video(tmp_path: Path) -> None:
    sound = Audio(np.stack([tone(0.5, 7350), tone(0.5, 7350)]), 7350).resampled()
    path = write_video(tmp_path / "a.mp4", 60, sound)
    assert heard(path)[0] == pytest.approx(0.5, abs=0.03)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 60


def test_a_file_without_sound_is_named(tmp_path: Path) -> None:
    silent, none = write_video(tmp_path / "a.mp4", 3, None), tmp_path / "none.wav"
    with pytest.raises(FramePackError, match=r"^--audio .*a\.mp4: has no sound; name a file"):
        read_audio(silent, "--audio")
    with pytest.raises(FramePackError, match="no such file"):
        read_audio(none, "--audio")
    none.write_bytes(b"nothing")
    with pytest.raises(FramePackError, match="its sound cannot be read"):
        read_audio(none, "--audio")


def test_a_video_gets_the_sound_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = write_wave(tmp_path / "a.wav")
    given = ("--prompt", "x", "--image_path", picture(tmp_path / "a.png"))
    given = (*given, "--video_sections", "2", "--audio")
    command = small("generate", tmp_path / "out", *given, str(sound), "--output_type", "video")
    seconds, pitch = heard(files(command, capsys)[0])
    assert seconds == pytest.approx(9 / 30, abs=0.01) and pitch == pytest.approx(PITCH, abs=10)
    write_wave(sound, seconds=0.2)
    shorter = files([*command, "--drop_first_frames", "2"], capsys)[0]
    assert heard(shorter)[0] == pytest.approx(0.2 - 2 / 30, abs=0.01)
    make_clip(tmp_path / "silent.mp4")
    command[command.index(str(sound))] = str(tmp_path / "silent.mp4")
    message = failure(command, capsys)
    assert message.startswith(f"error: --audio {tmp_path / 'silent.mp4'}: has no sound"), message
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 2
