"""Latent files to videos, without any model but the VAE: `framepack generate --latent_path`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..headless.crew import follow, joined
from ..headless.jobs import shown
from ..headless.models import SMALLER_DECODE, explain_out_of_memory, open_models
from ..headless.options import DecodingOptions
from ..headless.output import LATENT_SUFFIX, Output
from ..runtime.errors import FramePackError
from ..sampling.decode import Decode, check_drop, cut, decode_frames, decode_slices, decode_video
from ..sampling.latents import fps_of, load_latents, loops, window_of
from ..sampling.sections import LATENT_STRIDE
from .commands import Generate


@dataclass(frozen=True)
class LatentFile:
    """Latents [1, 16, T, h, w] of a file, with the settings that made them."""

    latents: Tensor
    metadata: Mapping[str, str]
    window: int
    drop: int = 0

    @classmethod
    def read(cls, path: Path, window: int | None) -> LatentFile:
        """`window` replaces what the file says of it."""
        latents, metadata = load_latents(path)
        return cls(latents, metadata, window or window_of(metadata))

    @property
    def fps(self) -> float:
        return fps_of(self.metadata)

    @property
    def single(self) -> bool:
        """Whether it is one edited frame."""
        return self.latents.shape[2] == 1

    @property
    def frames(self) -> int:
        """Video frames."""
        return 4 * self.latents.shape[2] - (4 if self.loops else 3) - self.drop

    @property
    def loops(self) -> bool:
        return loops(self.metadata)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        height, width = self.latents.shape[3:]
        return LATENT_STRIDE * width, LATENT_STRIDE * height

    def check(self, decoding: DecodingOptions) -> None:
        """Refuse what cannot be decoded by sections of this window."""
        if not (decoding.bulk_decode or self.single):
            decode_slices(self.latents.shape[2], self.window, decoding.decode_overlap)

    def write(self, output: Output, decode: Decode, decoding: DecodingOptions) -> Path:
        """Decode into the output's files."""
        if self.single:
            clips = decode_frames(decode, self.latents)
        else:
            way = {"bulk": decoding.bulk_decode, "overlap": decoding.decode_overlap}
            clips = decode_video(decode, self.latents, self.window, loop=self.loops, **way)
            clips = cut(clips, self.drop)
        return output.write(clips, self.size, self.frames, self.metadata, self.drop)


def run(command: Generate) -> None:
    """Check all files, then decode each under its own name, or one with a number that is free."""
    if not (command.models.vae or command.models.snapshot):
        raise FramePackError("--latent_path: name the VAE that fits, with --vae or --snapshot")
    if command.output.output_type == "latent":
        raise FramePackError("--output_type latent: the latents are in a file already")
    todo: list[tuple[LatentFile, Output]] = []
    for path in command.latent_path:
        file = LatentFile.read(path, command.prompt.latent_window_size)
        file.check(command.decoding)
        if not file.single:
            drop = command.guidance.drop_first_frames
            check_drop(drop, file.frames, file.loops, "--drop_first_frames")
            file = replace(file, drop=drop)
        name = path.stem.removesuffix(LATENT_SUFFIX)
        output = Output(command.output, name, file.fps, file.single)
        output = output.unused([other.name for _, other in todo])
        output.check(latent_bytes=0)
        todo.append((file, output))
    with joined(command.models.device) as crew:
        models = open_models(command.models, ["vae"], decoding=command.decoding, crew=crew)
        if crew is not None and not crew.leads:
            follow(models, crew)
            return
        with models.decoder() as decoder, explain_out_of_memory(SMALLER_DECODE):
            for file, output in todo:
                shown(file.write(output, decoder, command.decoding))
