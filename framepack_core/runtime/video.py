"""Video files and picture sequences written through PyAV, one frame at a time."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import cast

import av
import numpy as np
from av.container import OutputContainer
from av.error import FFmpegError
from av.video.reformatter import Colorspace
from av.video.stream import VideoStream

from .audio import Audio, SoundTrack
from .codecs import ENCODERS
from .errors import FramePackError
from .files import DISK_FULL, atomic_path
from .images import Pixels, save_png
from .video_reader import VideoFile

BT709, LIMITED_RANGE = 1, 1
MP4_KEYS = {"title", "comment"}
PROBE_SIZE = 256  # hardware encoders refuse frames much smaller


class VideoWriter:
    """Encode uint8 [H, W, 3] frames into an mp4 that gets its name only when complete.

    crf is constant quality, lower is better. 8-bit 4:2:0 in BT.709 with the index in front plays
    everywhere. metadata: title and comment, which every program shows, or keys of one's own. audio:
    begins with the first frame and ends with the last one, or before it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        width: int,
        height: int,
        fps: float,
        crf: int = 16,
        codec: str = "libx264",
        metadata: Mapping[str, str] | None = None,
        audio: Audio | None = None,
    ) -> None:
        if width % 2 or height % 2:
            raise FramePackError(
                f"video {path}: {width}x{height} is odd; yuv420p needs even width and height"
            )
        _check_encoder(codec)
        self.path = Path(path)
        self.width, self.height, self.fps = width, height, fps
        self.crf, self.codec = crf, codec
        self.metadata, self.audio = dict(metadata or {}), audio

    def __enter__(self) -> VideoWriter:
        self._session = self._run()
        self._session.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._session.__exit__(kind, error, trace)

    def write(self, frame: Pixels) -> None:
        """Encode the next frame, uint8 [H, W, 3]."""
        if frame.shape != (self.height, self.width, 3) or frame.dtype != np.uint8:
            size = f"{self.width}x{self.height}"
            raise ValueError(f"frame {frame.shape} {frame.dtype} in a video of {size}")
        picture = _to_yuv(frame)
        picture.pts, self._count = self._count, self._count + 1
        with _video_errors(self.path):
            _encode(self._container, self._stream, picture)
            if self._sound is not None:
                self._sound.write_until(self._count / self.fps)

    @contextmanager
    def _run(self) -> Iterator[None]:
        with atomic_path(self.path) as temporary:
            # Keys of one's own need another kind of tags, which fewer programs show.
            tags = "" if self.metadata.keys() <= MP4_KEYS else "+use_metadata_tags"
            options = {"movflags": f"+faststart{tags}"}
            with _video_errors(self.path):
                self._container = av.open(str(temporary), "w", format="mp4", options=options)
            try:
                self._container.metadata.update(self.metadata)
                self._stream = _add_stream(self._container, self.codec, self.crf, self.fps)
                self._stream.width, self._stream.height = self.width, self.height
                self._count = 0
                self._sound = self.audio and SoundTrack(self._container, self.audio)
                yield
                with _video_errors(self.path):
                    _encode(self._container, self._stream, None)
                    if self._sound is not None:
                        self._sound.close()
                    self._container.close()
            except BaseException:
                with suppress(FFmpegError):  # Windows cannot remove a file that is still open
                    self._container.close()
                raise


def _add_stream(container: OutputContainer, codec: str, crf: int, fps: float) -> VideoStream:
    rate = Fraction(fps).limit_denominator(1001)
    stream = cast(VideoStream, container.add_stream(codec, rate=rate))
    quality, options = ENCODERS[codec]
    stream.options = {quality: str(crf), **options}
    stream.pix_fmt = "yuv420p"
    # Players guess the colour matrix of untagged video, each in its own way.
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = BT709
    context.color_range = LIMITED_RANGE
    return stream


def _to_yuv(frame: Pixels) -> av.VideoFrame:
    rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    return rgb.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)


def _encode(container: OutputContainer, stream: VideoStream, picture: av.VideoFrame | None) -> None:
    """Encode one picture, or with None what the encoder still holds back."""
    for packet in stream.encode(picture):
        container.mux(packet)


@contextmanager
def _video_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FFmpegError as error:
        if error.errno in DISK_FULL:  # atomic_path tells how much space is left
            raise
        raise FramePackError(
            f"video {path}: cannot be written ({error.strerror}); no file was left under that name"
        ) from error


def _check_encoder(codec: str) -> None:
    if codec not in ENCODERS or codec not in av.codecs_available:
        raise FramePackError(f"video codec {codec!r} is not available; {_alternatives(codec)}")


def _alternatives(codec: str) -> str:
    others = [name for name in ENCODERS if name in av.codecs_available and name != codec]
    return f"this PyAV has {', '.join(others) or 'no other'}; or save images"


def probe_encoder(codec: str) -> None:
    """Encode one frame in memory, so that a missing or broken encoder shows before a long run."""
    _check_encoder(codec)
    frame = np.zeros((PROBE_SIZE, PROBE_SIZE, 3), np.uint8)
    try:
        with av.open(io.BytesIO(), "w", format="mp4") as container:
            stream = _add_stream(container, codec, crf=16, fps=30)
            stream.width = stream.height = PROBE_SIZE
            _encode(container, stream, _to_yuv(frame))
            _encode(container, stream, None)
    except FFmpegError as error:
        raise FramePackError(
            f"video codec {codec!r} does not work here ({error.strerror}); {_alternatives(codec)}"
        ) from error


def read_video(path: str | Path) -> tuple[Pixels, float]:
    """All frames of a video as it is shown, uint8 [F, H, W, 3], and its frames per second."""
    video = VideoFile.open(path)
    return np.stack(list(video.frames())), video.fps


class ImageSequenceWriter(AbstractContextManager["ImageSequenceWriter"]):
    """Write uint8 [H, W, 3] frames as folder/stem_000.png, _001.png and so on."""

    def __init__(
        self, folder: str | Path, stem: str, *, metadata: Mapping[str, str] | None = None
    ) -> None:
        self.folder, self.stem = Path(folder), stem
        self.metadata = dict(metadata or {})
        self.count = 0

    def __exit__(self, *error: object) -> None:
        """Keep what was written: every picture of the sequence is whole."""

    def write(self, frame: Pixels) -> None:
        """Save the next frame."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_png(self.folder / f"{self.stem}_{self.count:03d}.png", frame, self.metadata)
        self.count += 1


def contact_sheet(
    frames: Pixels, *, count: int = 12, columns: int = 4, gap: int = 4, enlarge: int = 1
) -> Pixels:
    """A white-ruled grid of `count` frames spread evenly over [F, H, W, 3], both ends included.

    `enlarge` repeats every pixel, so that small frames can be looked at.
    """
    picked = frames[np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)]
    picked = picked.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    height, width = picked.shape[1:3]
    rows = -(-len(picked) // columns)
    size = (rows * (height + gap) + gap, columns * (width + gap) + gap, 3)
    sheet = np.full(size, 255, dtype=np.uint8)
    for i, frame in enumerate(picked):
        row, column = divmod(i, columns)
        top, left = gap + row * (height + gap), gap + column * (width + gap)
        sheet[top : top + height, left : left + width] = frame
    return sheet
