"""Where results go: names, early checks, and frames written as they are decoded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..runtime.audio import check_audio, read_audio
from ..runtime.display import Bar
from ..runtime.errors import FramePackError
from ..runtime.files import atomic_path
from ..runtime.images import save_png, to_uint8
from ..runtime.video import ImageSequenceWriter, VideoWriter, probe_encoder
from ..sampling.latents import save_latents
from ..sampling.plan import FPS
from .job import WITH_VIDEO, OutputOptions, OutputType

LATENT_SUFFIX = "_latent"
LAST = "_last"
LAST_FRAME, LAST_LATENT = f"{LAST}.png", f"{LAST}{LATENT_SUFFIX}.safetensors"
SECTIONS = "_sections.json"
HANDED_ON = (LAST_FRAME, LAST_LATENT, SECTIONS)
OWN_SUFFIXES = (".mp4", ".png", f"{LATENT_SUFFIX}.safetensors", *HANDED_ON)


@dataclass(frozen=True)
class Output:
    """The files of one result: folder/name.mp4, folder/name/name_000.png, or the latents alone.

    own_fps: of the file where the options name none. A result of one frame, `single`, is
    folder/name.png instead of video or pictures.
    """

    options: OutputOptions
    name: str
    own_fps: float = FPS
    single: bool = False

    @property
    def folder(self) -> Path:
        return self.options.save_path

    @property
    def kind(self) -> OutputType:
        return self.options.output_type

    @property
    def fps(self) -> float:
        return self.options.fps or self.own_fps

    @property
    def ledger(self) -> Path | None:
        """The folder of finished sections, None to keep none."""
        return None if self.options.no_ledger else self.options.ledger_folder

    @property
    def paths(self) -> tuple[Path, ...]:
        """Everything that it can write: video, picture, folder of pictures and latents."""
        return (*map(self.beside, OWN_SUFFIXES), self.folder / self.name)

    def beside(self, suffix: str) -> Path:
        """A file of its name with something behind it."""
        return self.folder / f"{self.name}{suffix}"

    def unused(self, taken: Collection[str] = ()) -> Output:
        """The same under the first name, by a number behind it, that writes over no file.

        taken: names that others will use.
        """
        found, number = self, 1
        while found.name in taken or any(map(os.path.lexists, found.paths)):
            number += 1
            found = replace(self, name=f"{self.name}_{number}")
        return found

    @property
    def keeps_latents(self) -> bool:
        return self.kind in ("latent", "both", "latent_images")

    @property
    def decodes(self) -> bool:
        return self.kind != "latent"

    @property
    def makes_video(self) -> bool:
        return not self.single and self.kind in WITH_VIDEO

    @property
    def latent_path(self) -> Path:
        return self.beside(f"{LATENT_SUFFIX}.safetensors")

    def check(self, latent_bytes: int) -> None:
        """Refuse a folder that cannot be written, a full disk and an encoder that fails."""
        _check_folder("output folder", self.folder)
        if self.options.ledger is not None and not self.options.no_ledger:
            _check_folder("--ledger", self.options.ledger)
        if shutil.disk_usage(self.folder).free < latent_bytes:
            raise FramePackError(
                f"output folder {self.folder}: the disk is full, the latents alone need "
                f"{latent_bytes / 1e6:.1f} MB; free some space"
            )
        if self.makes_video:
            probe_encoder(self.options.codec)
            if self.options.audio is not None:
                check_audio(self.options.audio, "--audio")

    def write(
        self,
        clips: Iterable[Tensor],
        size: tuple[int, int],
        frames: int,
        metadata: Mapping[str, str],
        drop: int = 0,
    ) -> Path:
        """Write clips [1, 3, F, H, W] in -1..1, one after another; the file or folder made.

        size is (width, height), frames the number of all frames, drop that of those left out before
        them, which take their sound along.
        """
        text = {
            "title": metadata.get("prompt", ""),
            "comment": json.dumps(dict(metadata), sort_keys=True),
        }
        text = text if metadata and not self.options.no_metadata else {}
        pictures = (frame for clip in clips for frame in to_uint8(clip))
        if self.single:
            path = self.folder / f"{self.name}.png"
            save_png(path, next(pictures), text)
            return path
        path, writer = self._writer(size, text, drop)
        last = None
        with Bar("decoding", frames, unit="frame") as bar, writer:
            for last in pictures:
                writer.write(last)
                bar.move()
        if self.options.hand_on and last is not None:
            save_png(self.beside(LAST_FRAME), last, text)
        return path

    def hand_on(self, latents: Tensor, sections: list[dict[str, Any]]) -> None:
        """Write the last latent of [1, 16, T, h, w] and the list of sections."""
        save_latents(self.beside(LAST_LATENT), latents[:, :, -1:])
        with atomic_path(self.beside(SECTIONS)) as temporary:
            text = json.dumps(sections, indent=1, ensure_ascii=False)
            temporary.write_text(f"{text}\n", encoding="utf-8")

    def _writer(
        self, size: tuple[int, int], text: dict[str, str], drop: int
    ) -> tuple[Path, VideoWriter | ImageSequenceWriter]:
        if not self.makes_video:
            path = self.folder / self.name
            return path, ImageSequenceWriter(path, self.name, metadata=text)
        path = self.folder / f"{self.name}.mp4"
        width, height = size
        options = {"fps": self.fps, "crf": self.options.crf, "codec": self.options.codec}
        if self.options.audio is not None:
            options["audio"] = read_audio(self.options.audio, "--audio").after(drop / self.fps)
        return path, VideoWriter(path, width=width, height=height, **options, metadata=text)


def _check_folder(name: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise FramePackError(f"{name} {folder}: cannot be made ({reason}); name another") from error
    if not os.access(folder, os.W_OK):
        raise FramePackError(f"{name} {folder}: is read-only; name another folder")
