"""Command line options, named as in musubi-tuner so that its command lines carry over."""

from __future__ import annotations

import math
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

Number = TypeVar("Number", int, float)

OUTPUT_TYPES = ("video", "images", "latent", "both", "latent_images")


def positive_int(text: str) -> int:
    return _positive(int, "a whole number", text)


def positive_float(text: str) -> float:
    return _positive(float, "a number", text)


def _positive(kind: Callable[[str], Number], name: str, text: str) -> Number:
    with suppress(ValueError):
        if 0 < kind(text) < math.inf:
            return kind(text)
    raise ArgumentTypeError(f"{text!r} is not {name} above 0")


def constant_quality(text: str) -> int:
    """1 to 51: 0 is lossless in x264, in a profile that few players know."""
    with suppress(ValueError):
        if 1 <= int(text) <= 51:
            return int(text)
    raise ArgumentTypeError(f"{text!r} is not a whole number from 1 (best) to 51")


def ratios(text: str) -> tuple[float, ...]:
    """Comma-separated numbers; empty for a lone 0, which stands for the built-in list."""
    try:
        values = tuple(float(value) for value in text.split(","))
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not 0 or a list like 1.0,1.07,1.29") from None
    return () if values == (0,) else values


def add_generate_arguments(parser: ArgumentParser) -> None:
    """Everything `framepack generate` understands."""
    add_model_arguments(parser)
    add_video_arguments(parser)
    add_sampling_arguments(parser)
    add_cache_arguments(parser)
    add_decode_arguments(parser)
    add_output_arguments(parser)


def add_model_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("models", "a file, any shard of it, or a folder, each")
    group.add_argument(
        "--snapshot",
        metavar="DIR",
        help="folder with all models in sub-folders, or toyworld, the built-in model (the default "
        "if no model is named); the options below replace parts of it",
    )
    group.add_argument("--dit", metavar="PATH", help="FramePack or F1 transformer")
    group.add_argument("--vae", metavar="PATH", help="HunyuanVideo VAE")
    group.add_argument("--text_encoder1", metavar="PATH", help="LLaMA")
    group.add_argument("--text_encoder2", metavar="PATH", help="CLIP-L")
    group.add_argument("--image_encoder", metavar="PATH", help="SigLIP")
    group.add_argument("--device", help="such as cuda, cuda:1, mps, cpu (default: the best here)")
    group.add_argument("--dtype", help="of the transformer (default: bf16, on cpu fp32)")
    group.add_argument("--attn_mode", default="torch", choices=("torch", "sdpa"))


def add_video_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("video")
    group.add_argument("--image_path", metavar="FILE", help="the start image")
    group.add_argument("--prompt", help="what happens in the video")
    group.add_argument("--negative_prompt", help="needs a --guidance_scale above 1")
    group.add_argument("--custom_system_prompt", metavar="TEXT", help="for LLaMA")
    group.add_argument(
        "--video_size",
        nargs=2,
        type=positive_int,
        metavar=("H", "W"),
        help="multiples of 16; the image is scaled and cropped to it (default: FramePack's 640 "
        "size nearest in shape to the image; 64 64 for toyworld)",
    )
    group.add_argument("--video_seconds", type=positive_float, metavar="S", help="default: 5")
    group.add_argument("--video_sections", type=int, metavar="N", help="length in sections instead")
    group.add_argument("--f1", action="store_true", help="forward in time, with an F1 transformer")
    group.add_argument("--latent_window_size", type=int, metavar="N", help="default: 9")
    group.add_argument("--fps", type=positive_float, help="of the file (default: 30)")


def add_sampling_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--seed", type=int, help="default: random, and printed")
    group.add_argument("--infer_steps", type=positive_int, default=25, metavar="N")
    group.add_argument("--embedded_cfg_scale", type=float, default=10.0, metavar="X")
    group.add_argument("--guidance_scale", type=float, default=1.0, metavar="X", help="real CFG")
    group.add_argument("--guidance_rescale", type=float, default=0.0, metavar="X")
    group.add_argument("--flow_shift", type=positive_float, metavar="X", help="default: by size")
    group.add_argument("--sample_solver", default="unipc", choices=("unipc",))
    group.add_argument("--unipc_variant", default="bh1", choices=("bh1", "bh2"))
    group.add_argument(
        "--rope_scaling_timestep_threshold",
        type=float,
        metavar="T",
        help="scale positions while the timestep is at least this (about 800 to begin with)",
    )
    group.add_argument("--rope_scaling_factor", type=positive_float, default=0.5, metavar="X")


def add_cache_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("skipping steps")
    group.add_argument("--teacache", type=positive_float, metavar="THRESHOLD", help="0.15 is usual")
    group.add_argument(
        "--magcache_mag_ratios", type=ratios, metavar="LIST", help="0 for the built-in ratios"
    )
    group.add_argument("--magcache_retention_ratio", type=float, default=0.2, metavar="X")
    group.add_argument("--magcache_threshold", type=float, default=0.24, metavar="X")
    group.add_argument("--magcache_k", type=positive_int, default=6, metavar="N")
    group.add_argument("--magcache_calibration", action="store_true", help="measure the ratios")


def add_decode_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("decoding")
    group.add_argument(
        "--vae_chunk_size", type=positive_int, metavar="N", help="less memory, same pixels"
    )
    group.add_argument("--vae_tiling", action="store_true", help="in tiles of 256 pixels")
    group.add_argument("--vae_spatial_tile_sample_min_size", type=positive_int, metavar="PIXELS")
    group.add_argument("--bulk_decode", action="store_true", help="all sections in one call")


def add_output_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--save_path", type=Path, default=Path("output"), metavar="DIR")
    group.add_argument("--output_type", default="video", choices=OUTPUT_TYPES)
    group.add_argument("--latent_path", metavar="FILE", help="only decode this latent file")
    group.add_argument("--crf", type=constant_quality, default=16, help="1 to 51, lower is better")
    group.add_argument("--codec", default="libx264", help="video encoder")
    group.add_argument("--no_metadata", action="store_true", help="leave prompt and settings out")
