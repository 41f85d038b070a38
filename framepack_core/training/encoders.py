"""Loaded models as the encoders of the caches, and whether a DiT is the right one for a mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from ..lora.apply import LoraUse
from ..models.image import ImageEncoder
from ..models.text import TextEncoders
from ..models.vae import AutoencoderKL
from ..models.vae_tiling import tiled_encode
from ..runtime.errors import FramePackError
from ..runtime.fingerprint import fingerprint
from ..weights.layouts import find_component
from ..weights.names import mode_by_name
from .cache import LatentEncoders, TextEncoder
from .config import TrainMode

NUMBERS = 4  # of a parameter that tell models apart


def latent_encoders(
    vae: AutoencoderKL, image_encoder: ImageEncoder, identity: str, *, tile: int | None = None
) -> LatentEncoders:
    """The encoders of a latent cache; tile: side in pixels, None encodes a frame whole."""
    weight = next(vae.parameters())

    @torch.no_grad()
    def encode(pixels: Tensor) -> Tensor:
        pixels = pixels.to(weight)
        return vae.encode(pixels) if tile is None else tiled_encode(vae, pixels, tile)

    return LatentEncoders(encode, image_encoder.encode, latent_identity(identity, tile))


def latent_identity(identity: str, tile: int | None) -> str:
    """Of models that encode in tiles: the seams are in the latents."""
    return f"{identity} tile {tile}"


def loaded_late(load: Callable[[], LatentEncoders], identity: str) -> LatentEncoders:
    """Encoders that are loaded when the first item needs them: often all are cached already."""
    loaded = cache(load)
    return LatentEncoders(
        lambda pixels: loaded().vae(pixels), lambda image: loaded().image(image), identity
    )


def text_loaded_late(load: Callable[[], TextEncoder], identity: str) -> TextEncoder:
    """Likewise for captions."""
    loaded = cache(load)
    return TextEncoder(lambda caption: loaded().encode(caption), identity)


def text_encoder(
    encoders: TextEncoders, identity: str, system_prompt: str | None = None
) -> TextEncoder:
    """The encoder of a caption cache."""
    return TextEncoder(
        lambda caption: encoders.encode(caption, system_prompt),
        text_identity(identity, system_prompt),
    )


def text_identity(identity: str, system_prompt: str | None = None) -> str:
    """Of models that read captions behind a system prompt."""
    return f"{identity} {system_prompt or ''}"


def model_identity(paths: Iterable[Path]) -> str:
    """A digest of model files, so that caches of other models are known to be stale."""
    return f"files:{fingerprint(sorted(paths))}"


def base_identity(path: Path, loras: Sequence[LoraUse] = ()) -> str:
    """A digest of the model below an adapter: the files of the DiT, and the LoRAs on it."""
    merged = [use.identity for use in loras if use.strength]
    return fingerprint([sorted(find_component(path, "dit").weights), merged])


def state_identity(models: Mapping[str, nn.Module]) -> str:
    """Likewise of models whose files a host does not tell: a few numbers of each parameter."""
    numbers = {
        f"{kind} {name}": [list(tensor.shape), _few(tensor)]
        for kind, model in models.items()
        for name, tensor in model.state_dict().items()
    }
    return f"weights:{fingerprint(numbers)}"


def _few(tensor: Tensor) -> list[float]:
    """The first numbers, rounded as every type that weights are loaded in rounds them."""
    return tensor.flatten()[:NUMBERS].float().cpu().to(torch.bfloat16).tolist()


def check_mode_of_file(path: Path | str, mode: TrainMode) -> None:
    """Refuse a DiT whose name says that it is of the other mode: its weights have the same shapes.

    A path that says nothing is taken.
    """
    known = mode_by_name(path)
    if mode == "f1" and known == "framepack":
        raise FramePackError(
            f"{path} is the original FramePack model; give the F1 one, or train another mode"
        )
    if mode != "f1" and known == "f1":
        raise FramePackError(
            f"{path} is an F1 model; train it in the mode f1, or give the original FramePack model"
        )
