"""Video files read as players show them: upright, square pixels, at a constant frame rate."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.reformatter import Colorspace
from av.video.stream import VideoStream

from .errors import FramePackError
from .files import is_file
from .images import Pixels, Size, resize_lanczos

RESAMPLED = 30.0  # frames per second of what has no constant rate: those of FramePack's motion
LONGEST = 60.0  # seconds that a frame may stay: one damaged time stamp makes a clip of hours
ROUNDING = 1e-3  # seconds: many containers count milliseconds
MAX_ASPECT = 16  # of a pixel; more is a mistake in the file
# Codecs whose packets are frames, one each, if the container has a time stamp for all of them.
FRAME_CODECS = {"h264", "hevc", "av1", "vp9", "mjpeg", "prores", "png", "ffv1", "dnxhd"}
# PyAV before 19 refuses tags that are not UTF-8, unless it is to replace them; 19 never does.
READ_OPTIONS: dict[str, Any] = (
    {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}
)
# What PyAV raises for files that are not videos or are damaged.
UNREADABLE = (FFmpegError, IndexError, ValueError)


@dataclass(frozen=True)
class VideoFile:
    """A video as it is shown; frames are decoded when they are asked for.

    size: (width, height). order: for each shown frame the number of the stored one, which is not
    its own where the time stamps are uneven; then fps is 30. traits: what makes it look other than
    it is stored, () for most files.
    """

    path: Path
    size: Size
    fps: float
    order: Sequence[int]
    traits: tuple[object, ...] = ()

    @classmethod
    def open(cls, path: Path | str) -> VideoFile:
        """Look at the first frame and at all time stamps; raises FramePackError naming the file."""
        path = Path(path)
        with _opened(path) as (container, stream):
            first = next(container.decode(stream), None)
            rate = stream.average_rate or stream.guessed_rate
            if first is None or not rate:
                raise FramePackError(f"video {path}: holds no frames")
            aspect, matrix = _pixel_aspect(stream), _display_matrix(first)
            height, width = _as_shown(first, aspect).shape[:2]
        with _opened(path) as (container, stream):
            times, last = _time_stamps(container, stream, first.interlaced_frame)
        fps = float(rate)
        order: Sequence[int] = range(len(times))
        traits: list[object] = [(float(aspect), matrix)] if matrix or aspect != 1 else []
        if not _is_constant(times):
            fps, order = RESAMPLED, _resampled(times, last)
            traits.append(order)
        return cls(path, (width, height), fps, order, tuple(traits))

    def __len__(self) -> int:
        """How many frames are shown."""
        return len(self.order)

    @property
    def is_constant(self) -> bool:
        """Whether the file has a constant frame rate, so that every stored frame is shown once."""
        return isinstance(self.order, range)

    def frames(self, first: int = 0, count: int | None = None) -> Iterator[Pixels]:
        """Frames uint8 [H, W, 3] from the first-th on; fewer if it is damaged."""
        wanted = iter(self.order[first : None if count is None else first + count])
        number = next(wanted, None)
        with _opened(self.path) as (container, stream):
            aspect = _pixel_aspect(stream)
            for i, frame in enumerate(container.decode(stream)):
                if number is None:
                    return
                if i < number:
                    continue
                pixels = _as_shown(frame, aspect)
                while number == i:
                    yield pixels
                    number = next(wanted, None)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    if not is_file(path):
        raise FramePackError(f"video {path}: no such file")
    try:
        with av.open(str(path), **READ_OPTIONS) as container:
            stream = container.streams.video[0]
            if cast(Any, stream).codec_context is None:  # PyAV 13 to 17 crash where it decodes
                raise ValueError("no decoder for its codec")
            stream.thread_type = "AUTO"
            yield container, stream
    except UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FramePackError(
            f"video {path}: cannot be read ({reason}); is it a video file? convert it again"
        ) from error


# --- time stamps ----------------------------------------------------------------------------------


def _time_stamps(
    container: InputContainer, stream: VideoStream, interlaced: bool
) -> tuple[list[float], float]:
    """Seconds of every frame after the first, in order, and how long the last one stays.

    Packets tell without decoding, unless some of them are no frames: those that an edit list cuts
    away, fields, hidden frames.
    """
    stamps: dict[int, int | None] = {}
    odd = interlaced or stream.codec_context.name not in FRAME_CODECS
    for packet in container.demux(stream):  # none of them is kept: they hold the whole file
        if not packet.size:
            continue
        pts = packet.pts
        if odd or packet.is_discard or packet.is_corrupt or pts is None or pts in stamps:
            odd = True
            break
        stamps[pts] = packet.duration
    if not odd:
        ticks = sorted(stamps)
        last = stamps[ticks[-1]] if ticks else 0
    else:
        with _opened(Path(container.name)) as (again, same):
            found = [(frame.pts, getattr(frame, "duration", 0)) for frame in again.decode(same)]
        ticks, last = [pts for pts, _ in found], found[-1][1] if found else 0
    known = [tick for tick in ticks if tick is not None]
    if len(known) < len(ticks):  # the container has none: its rate is all there is
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        if not rate:
            raise ValueError("neither time stamps nor a frame rate")
        return [i / rate for i in range(len(ticks))], 1 / rate
    unit = float(stream.time_base or 0)
    times, last = [(tick - known[0]) * unit for tick in known], (last or 0) * unit
    longest = max([*np.diff(times), last])
    if longest > LONGEST:
        raise ValueError(f"its time stamps let a frame stay for {longest:.0f} s")
    return times, last


def _is_constant(times: Sequence[float]) -> bool:
    """Whether all frames stay equally long, within the rounding of a container's time stamps."""
    stays = np.diff(times)
    if not len(stays):
        return True
    typical = float(np.median(stays))
    return bool((np.abs(stays - typical) <= max(typical / 2, ROUNDING)).all())


def _resampled(times: Sequence[float], last: float) -> tuple[int, ...]:
    """The frame that is shown at each 30th of a second."""
    end = times[-1] + (last or float(np.median(np.diff(times))))
    moments = np.arange(max(1, round(end * RESAMPLED))) / RESAMPLED + ROUNDING
    return tuple((np.searchsorted(times, moments, side="right") - 1).clip(min=0).tolist())


# --- frames ---------------------------------------------------------------------------------------


def _as_shown(frame: av.VideoFrame, aspect: Fraction) -> Pixels:
    pixels = _to_rgb(frame)
    height, width = pixels.shape[:2]
    if aspect > 1:
        pixels = resize_lanczos(pixels, round(width * aspect), height)
    elif aspect < 1:
        pixels = resize_lanczos(pixels, width, round(height / aspect))
    return _turned(pixels, _display_matrix(frame))


def _to_rgb(frame: av.VideoFrame) -> Pixels:
    """Pixels uint8 [H, W, 3] of a frame as it is stored."""
    # PyAV before 14 honours the frame's own matrix only when the target's differs from it.
    shown = frame.reformat(format="rgb24", dst_colorspace=Colorspace.ITU601)
    return cast(Pixels, shown.to_ndarray())


def _pixel_aspect(stream: VideoStream) -> Fraction:
    """Width over height of a pixel; 1 where the file says nothing or what cannot be."""
    aspect = cast(Fraction | None, stream.sample_aspect_ratio)
    return aspect if aspect and 1 / MAX_ASPECT <= aspect <= MAX_ASPECT else Fraction(1)


def _display_matrix(frame: av.VideoFrame) -> tuple[int, ...]:
    """The signs (a, b, c, d) of the matrix by which a player turns a frame; () for upright ones.

    A stored pixel (x, y) is shown at (a x + c y, b x + d y): ISO/IEC 14496-12, 6.2.2. Of other
    than quarter turns it is the nearest quarter turn.
    """
    for i in range(len(frame.side_data)):
        data = cast(Any, frame.side_data)[i]
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
            if abs(a) + abs(d) >= abs(b) + abs(c):
                b = c = 0
            else:
                a = d = 0
            signs = tuple((x > 0) - (x < 0) for x in (a, b, c, d))
            return () if signs in ((1, 0, 0, 1), (0, 0, 0, 0)) else signs
    return ()


def _turned(pixels: Pixels, matrix: tuple[int, ...]) -> Pixels:
    if not matrix:
        return pixels
    a, b, c, d = matrix
    if a == 0:
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
