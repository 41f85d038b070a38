"""Which models a command uses, and each one loaded only while it is needed."""

from __future__ import annotations

import gc
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models.attention import Attention, sdpa
from ..models.build import load_dit, load_image_encoder, load_text_encoders, load_vae
from ..models.prompt import TextCondition
from ..models.vae_tiling import tiled_decode
from ..runtime.device import default_device, parse_device, parse_dtype
from ..runtime.errors import FramePackError
from ..runtime.images import Pixels, to_tensor
from ..sampling.decode import Decode
from ..sampling.flow import FlowDenoiser, RopeScaling
from ..toyworld import SNAPSHOT
from ..weights.files import TORCH, open_weights
from ..weights.layouts import F1_FOLDER, TITLES, Component, find_component
from ..weights.names import UNKNOWN_KIND, guess_kind

TOYWORLD = "toyworld"
FLAGS: dict[Component, str] = {
    "dit": "dit",
    "vae": "vae",
    "llama": "text_encoder1",
    "clip": "text_encoder2",
    "image_encoder": "image_encoder",
}
DEFAULT_TILE = 256  # pixels
ATTENTION: dict[str, Attention] = {"torch": sdpa, "sdpa": sdpa}


def uses_toyworld(args: Namespace) -> bool:
    """Whether the transformer is the built-in one."""
    named = any(getattr(args, flag) for flag in FLAGS.values())
    return not args.dit and (args.snapshot == TOYWORLD or not (args.snapshot or named))


def find_models(args: Namespace, needed: Sequence[Component]) -> dict[Component, Path]:
    """The path of every component needed: its own option, or a part of the snapshot."""
    given = {component: getattr(args, flag) for component, flag in FLAGS.items()}
    snapshot = args.snapshot or (None if any(given.values()) else TOYWORLD)
    root = SNAPSHOT if snapshot == TOYWORLD else snapshot and Path(snapshot)
    missing = [f"--{FLAGS[c]}" for c in needed if not (given[c] or root)]
    if missing:
        raise FramePackError(f"{', '.join(missing)} missing; name it, or give a --snapshot")
    paths = {c: Path(given[c]) if given[c] else root for c in needed}
    if "dit" in needed and args.f1 and not args.dit and (root / F1_FOLDER).is_dir():
        paths["dit"] = root / F1_FOLDER
    for component, path in paths.items():
        _check_files(component, path)
    return paths


def _check_files(component: Component, path: Path) -> None:
    """Refuse an incomplete or mistaken model by its headers, before any other is loaded."""
    weights = find_component(path, component).weights
    if weights[0].suffix.lower() in TORCH:
        return  # it has no header: to look into it is to load it
    kind, title = guess_kind(open_weights(weights)), TITLES[component]
    if kind != UNKNOWN_KIND and not kind.startswith(title):
        raise FramePackError(
            f"--{FLAGS[component]} {path} is a {kind}, not a {title}; give another file"
        )


@dataclass(frozen=True)
class Decoding:
    """How latents are decoded: all at once or by sections, and how the VAE saves memory.

    chunk_size: frames that a convolution computes at once; tile: side of a tile in pixels.
    """

    bulk: bool = False
    chunk_size: int | None = None
    tile: int | None = None

    @classmethod
    def from_args(cls, args: Namespace) -> Decoding:
        tile = args.vae_spatial_tile_sample_min_size
        if tile is None and args.vae_tiling:
            tile = DEFAULT_TILE
        return cls(args.bulk_decode, args.vae_chunk_size, tile)


@dataclass(frozen=True)
class Models:
    """The models of a run by path; each method loads what it needs and lets go of it."""

    paths: dict[Component, Path]
    device: torch.device
    dtype: torch.dtype
    attention: Attention = sdpa

    @classmethod
    def from_args(cls, args: Namespace, needed: Sequence[Component]) -> Models:
        device = parse_device(args.device) if args.device else default_device()
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        return cls(
            find_models(args, needed),
            device,
            parse_dtype(args.dtype) if args.dtype else dtype,
            ATTENTION[args.attn_mode],
        )

    def denoiser(self, rope_scaling: RopeScaling | None = None) -> FlowDenoiser:
        """The transformer, on the device."""
        dit = load_dit(
            self.paths["dit"], dtype=self.dtype, device=self.device, attention=self.attention
        )
        return FlowDenoiser(dit, self.dtype, rope_scaling)

    @torch.no_grad()
    def encode_texts(
        self, prompts: Sequence[str], system_prompt: str | None = None
    ) -> list[TextCondition]:
        """The condition of each prompt."""
        encoders = load_text_encoders(self.paths["llama"], self.paths["clip"], **self._encoder)
        return [encoders.encode(prompt, system_prompt) for prompt in prompts]

    @torch.no_grad()
    def encode_images(self, images: Sequence[Pixels]) -> list[tuple[Tensor, Tensor]]:
        """(latent [1, 16, 1, h, w], SigLIP tokens [1, N, C]) of each uint8 [H, W, 3]."""
        vae = load_vae(self.paths["vae"], **self._encoder)
        latents = [vae.encode(to_tensor(image).to(**self._encoder)).float() for image in images]
        encoder = load_image_encoder(self.paths["image_encoder"], **self._encoder)
        return [(x, encoder.encode(image)) for x, image in zip(latents, images, strict=True)]

    def decoder(self, decoding: Decoding) -> Decode:
        """The VAE's decoder; its pixels come back in fp32 on the CPU."""
        vae = load_vae(self.paths["vae"], **self._encoder)
        vae.chunk_size = decoding.chunk_size

        @torch.no_grad()
        def decode(latents: Tensor) -> Tensor:
            latents = latents.to(**self._encoder)
            if decoding.tile is None:
                return vae.decode(latents).float().cpu()
            return tiled_decode(vae, latents, decoding.tile).float().cpu()

        return decode

    def release(self) -> None:
        """Give back the memory of models that nothing refers to any more."""
        gc.collect()  # transformers' models refer to themselves
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def _encoder(self) -> dict[str, Any]:
        """Half precision, as FramePack's own encoders; a CPU would be slow in it."""
        dtype = torch.float32 if self.device.type == "cpu" else torch.float16
        return {"dtype": dtype, "device": self.device}


@contextmanager
def explain_out_of_memory(advice: str) -> Iterator[None]:
    """Turn the GPU's out-of-memory error into one line with advice."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise FramePackError(f"the GPU ran out of memory; {advice}") from error
