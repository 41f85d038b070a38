"""Loaded models as the encoders of the caches, and whether a DiT is the right one for a mode."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ..models.image import ImageEncoder
from ..models.text import TextEncoders
from ..models.vae import AutoencoderKL
from ..models.vae_tiling import tiled_encode
from ..runtime.errors import FramePackError
from ..sampling.ledger import fingerprint
from .cache import LatentEncoders, TextEncoder
from .dataset import TrainMode

_F1 = re.compile(r"(?:^|[^a-z0-9])f1(?:[^a-z0-9]|$)", re.IGNORECASE)
_ORIGINAL = re.compile(r"framepack_?i2v", re.IGNORECASE)


def latent_encoders(
    vae: AutoencoderKL, image_encoder: ImageEncoder, identity: str, *, tile: int | None = None
) -> LatentEncoders:
    """The encoders of a latent cache; tile: side in pixels, None encodes a frame whole."""
    weight = next(vae.parameters())

    @torch.no_grad()
    def encode(pixels: Tensor) -> Tensor:
        pixels = pixels.to(weight)
        return vae.encode(pixels) if tile is None else tiled_encode(vae, pixels, tile)

    return LatentEncoders(encode, image_encoder.encode, f"{identity} tile {tile}")


def text_encoder(
    encoders: TextEncoders, identity: str, system_prompt: str | None = None
) -> TextEncoder:
    """The encoder of a caption cache."""
    return TextEncoder(
        lambda caption: encoders.encode(caption, system_prompt),
        f"{identity} {system_prompt or ''}",
    )


def model_identity(paths: Iterable[Path]) -> str:
    """A digest of model files, so that caches of other models are known to be stale."""
    return fingerprint(sorted(paths))


def check_model(path: Path | str, mode: TrainMode) -> None:
    """Refuse a DiT whose name says that it is of the other mode: its weights have the same shapes.

    A path that says nothing is taken.
    """
    path = Path(path)
    name = "/".join(path.parts[-3:])
    is_f1 = _F1.search(name) is not None
    if mode == "f1" and not is_f1 and _ORIGINAL.search(name):
        raise FramePackError(
            f"{path} is the original FramePack model; give the F1 one, or train another mode"
        )
    if mode != "f1" and is_f1:
        raise FramePackError(
            f"{path} is an F1 model; train it in the mode f1, or give the original FramePack model"
        )
