"""Sound for videos: read from any file that has some, written beside the frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import OutputContainer
from numpy.typing import NDArray

from .errors import FramePackError
from .files import is_file
from .video_reader import READ_OPTIONS, UNREADABLE

CODEC = "aac"
LAYOUTS = {1: "mono", 2: "stereo"}
# Of AAC; what has another rate is resampled to the last.
RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


@dataclass(frozen=True)
class Audio:
    """Sound as float32 [channels, samples] in -1..1, of one channel or two, rate a second."""

    samples: NDArray[np.float32]
    rate: int

    def after(self, seconds: float) -> Audio:
        """The same without its beginning."""
        return Audio(self.samples[:, round(seconds * self.rate) :], self.rate)

    def resampled(self) -> Audio:
        """The same at a rate that videos can have."""
        if self.rate in RATES:
            return self
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(self.samples), "fltp", LAYOUTS[len(self.samples)]
        )
        frame.rate, rate = self.rate, RATES[-1]
        resampler = AudioResampler(format="fltp", layout=frame.layout, rate=rate)
        return Audio(_joined([*resampler.resample(frame), *resampler.resample(None)]), rate)


def check_audio(path: Path, name: str) -> None:
    """Refuse a file without sound; `name` is what errors call it."""
    _read(path, name, whole=False)


def read_audio(path: Path, name: str) -> Audio:
    """The sound of a file, a video too; more than two channels are mixed to two."""
    return _read(path, name, whole=True)


def _read(path: Path, name: str, whole: bool) -> Audio:
    if not is_file(path):
        raise FramePackError(f"{name} {path}: no such file")
    try:
        with av.open(str(path), **READ_OPTIONS) as container:
            stream = next(iter(container.streams.audio), None)
            if stream is None:
                raise FramePackError(f"{name} {path}: has no sound; name a file that has, or none")
            channels = min(2, stream.codec_context.channels)
            rate = stream.rate if stream.rate in RATES else RATES[-1]
            resampler = AudioResampler(format="fltp", layout=LAYOUTS[channels], rate=rate)
            parts: list[av.AudioFrame] = []
            for frame in container.decode(stream):
                parts += resampler.resample(frame)
                if not whole:
                    break
            parts += resampler.resample(None)
    except UNREADABLE as error:
        raise FramePackError(f"{name} {path}: its sound cannot be read ({error})") from error
    return Audio(_joined(parts) if parts else np.zeros((channels, 0), np.float32), rate)


def _joined(frames: Sequence[av.AudioFrame]) -> NDArray[np.float32]:
    parts = [frame.to_ndarray() for frame in frames]
    return np.concatenate(parts, axis=1).astype(np.float32, copy=False)


class SoundTrack:
    """The sound of a video that is being written, which ends with it."""

    def __init__(self, container: OutputContainer, audio: Audio) -> None:
        self.container, self.audio, self._written = container, audio, 0
        self.stream = cast(AudioStream, container.add_stream(CODEC, rate=audio.rate))
        self.stream.layout = LAYOUTS[audio.samples.shape[0]]

    def write_until(self, seconds: float) -> None:
        """Encode what is heard before a time of the video, beside its pictures."""
        end = min(round(seconds * self.audio.rate), self.audio.samples.shape[1])
        if end <= self._written:
            return
        samples = np.ascontiguousarray(self.audio.samples[:, self._written : end])
        frame = av.AudioFrame.from_ndarray(samples, "fltp", self.stream.layout.name)
        frame.rate, frame.pts = self.audio.rate, self._written
        frame.time_base = Fraction(1, self.audio.rate)
        self._written = end
        self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        """Encode what is held back."""
        self.container.mux(self.stream.encode(None))
