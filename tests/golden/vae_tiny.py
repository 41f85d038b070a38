"""The tiny VAE: encode, decode, and both kinds of tiling."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from framepack_core.models.vae import AutoencoderKL, VAEConfig, draw
from framepack_core.models.vae_tiling import Tiles, Tiling, tiled_decode, tiled_moments
from golden.result import Case, compare

RTOL, ATOL = 1e-4, 2e-5
WHOLE = Tiling()


def check(folder: Path) -> Iterator[Case]:
    notes = json.loads((folder / "vae_tiny.json").read_text())
    data = load_file(folder / "vae_tiny.safetensors")
    vae = load_vae(folder, notes)
    with torch.no_grad():
        yield from _plain(vae, data)
        yield from _image(vae, data)
        for name, tiling in _tilings(notes).items():
            yield from _tiled(vae, data, name, tiling)
        yield from _long(vae, data, _long_tiling(notes))


def load_vae(folder: Path, notes: dict[str, Any]) -> AutoencoderKL:
    """The VAE of the folder, in fp64: the reference's own rounding takes most of the tolerance."""
    config = json.loads((folder / notes["config"]).read_text())
    weights = load_file(folder / notes["weights"].split(",")[0])
    vae = AutoencoderKL(VAEConfig.from_dict(config), device="meta")
    vae.load_state_dict({k: v.double() for k, v in weights.items()}, assign=True)
    return vae


def _close(name: str, actual: Tensor, expected: Tensor) -> Case:
    return compare(name, actual, expected, RTOL, ATOL)


def _pixels(data: dict[str, Tensor]) -> Tensor:
    return data["video_uint8"].double() / 127.5 - 1


def _plain(vae: AutoencoderKL, data: dict[str, Tensor]) -> Iterator[Case]:
    moments = vae.moments(_pixels(data))
    scaled = vae.encode(_pixels(data))
    yield _close("moments", moments, data["moments"])
    yield _close("scaled_latents", scaled, data["scaled_latents"])
    yield _close("sampled", draw(moments, data["sample_noise"].double()), data["sampled"])
    yield _close("decoded", vae.decode(data["scaled_latents"].double()), data["decoded"])
    for chunk_size in (1, 2, 3):
        vae.chunk_size = chunk_size
        decoded = vae.decode(data["scaled_latents"].double())
        yield _close(f"moments.chunk_{chunk_size}", vae.moments(_pixels(data)), data["moments"])
        yield _close(f"decoded.chunk_{chunk_size}", decoded, data["decoded"])
    vae.chunk_size = None


def _image(vae: AutoencoderKL, data: dict[str, Tensor]) -> Iterator[Case]:
    yield _close("image.moments", vae.moments(_pixels(data)[:, :, :1]), data["image.moments"])
    mean = data["image.moments"].double().chunk(2, dim=1)[0]
    yield from _decoded(vae, "image.decoded_sub2", mean, WHOLE, data)


def _tilings(notes: dict[str, Any]) -> dict[str, Tiling]:
    """The tilings as the notes on `tiled.*` and `musubi_tiled.*` state them."""
    given = json.loads(re.search(r"\{.*\}", notes["tensors"]["tiled.*"]).group())
    height, width, frames = (
        Tiles(given[f"tile_sample_min_{axis}"], given[f"tile_sample_stride_{axis}"])
        for axis in ("height", "width", "num_frames")
    )
    musubi = notes["tensors"]["musubi_tiled.*"]
    size = int(re.search(r"tile_sample_min_size (\d+)", musubi).group(1))
    overlap = float(re.search(r"overlap factor ([\d.]+)", musubi).group(1))
    return {
        "tiled": Tiling(height=height, width=width, frames=frames),
        "musubi_tiled": Tiling.square(size, overlap),
    }


def _tiled(
    vae: AutoencoderKL, data: dict[str, Tensor], name: str, tiling: Tiling
) -> Iterator[Case]:
    moments = tiled_moments(vae, _pixels(data), tiling)
    yield _close(f"{name}.moments", moments, data[f"{name}.moments"])
    mean = data["moments"].double().chunk(2, dim=1)[0]
    yield from _decoded(vae, f"{name}.decoded_sub2", mean, tiling, data)


def _long_tiling(notes: dict[str, Any]) -> Tiling:
    size, stride = re.search(
        r"tiles of (\d+) pictures \+ 1, stride (\d+)", notes["tensors"]["long.*"]
    ).groups()
    return Tiling(frames=Tiles(int(size), int(stride)))


def _long(vae: AutoencoderKL, data: dict[str, Tensor], in_time: Tiling) -> Iterator[Case]:
    video, latents = data["long.video"].double(), data["long.latents"].double()
    for name, tiling in {"default": in_time, "whole": WHOLE}.items():
        moments = tiled_moments(vae, video, tiling)
        yield _close(f"long.moments_{name}", moments, data[f"long.moments_{name}"])
    decodes = {"default": in_time, "musubi_temporal16": in_time, "whole": WHOLE}
    for name, tiling in decodes.items():
        yield from _decoded(vae, f"long.decoded_{name}_sub2", latents, tiling, data)


def _decoded(
    vae: AutoencoderKL, name: str, unscaled: Tensor, tiling: Tiling, data: dict[str, Tensor]
) -> Iterator[Case]:
    pixels = tiled_decode(vae, unscaled * vae.config.scaling_factor, tiling)
    yield _close(name, pixels[..., ::2, ::2], data[name])
