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
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
END_POLICIES = ("persistent", "first_section")


def positive_int(text: str) -> int:
    return _positive(int, "a whole number", text)


def positive_float(text: str) -> float:
    return _positive(float, "a number", text)


def non_negative_float(text: str) -> float:
    return 0.0 if text.strip() == "0" else positive_float(text)


def block_count(text: str) -> int:
    return 0 if text.strip() == "0" else positive_int(text)


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
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--latent_path", nargs="+", metavar="FILE", help="only decode these latent files"
    )
    source.add_argument("--from_file", metavar="FILE", help="as `framepack batch`")
    source.add_argument("--interactive", action="store_true", help="as `framepack interactive`")
    add_common_arguments(parser)
    add_one_frame_arguments(parser)


def add_batch_arguments(parser: ArgumentParser) -> None:
    """Everything `framepack batch` understands."""
    parser.add_argument(
        "--from_file",
        required=True,
        metavar="FILE",
        help="a prompt a line, with options of its own behind it: a cat --w 640 --h 480 --d 42; "
        "what a line leaves out is taken from this command line",
    )
    add_common_arguments(parser)
    add_one_frame_arguments(parser)


def add_interactive_arguments(parser: ArgumentParser) -> None:
    """Everything `framepack interactive` understands."""
    add_common_arguments(parser)
    add_one_frame_arguments(parser)


def add_check_arguments(parser: ArgumentParser) -> None:
    """Everything `framepack check` understands: the options of the run to check."""
    add_common_arguments(parser)
    add_one_frame_arguments(parser)


def add_ledger_arguments(parser: ArgumentParser) -> None:
    """Everything `framepack ledger` understands."""
    parser.add_argument("action", choices=("list", "prune"))
    parser.add_argument("--ledger", type=Path, metavar="DIR", help="as given to the run")
    parser.add_argument("--save_path", type=Path, default=Path("output"), metavar="DIR")
    parser.add_argument(
        "--limit",
        type=non_negative_float,
        metavar="GB",
        help="how much may stay, the longest unused go first (default: 2; 0 empties it)",
    )


def add_extend_arguments(parser: ArgumentParser) -> None:
    """Everything `framepack extend` understands."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--latent_path", metavar="FILE", help="the latents of a finished run")
    source.add_argument("--video_path", metavar="FILE", help="any video; --video_size fits it")
    parser.add_argument(
        "--direction",
        choices=("forward", "backward"),
        default="forward",
        help="backward needs the original model and a new --image_path to begin with",
    )
    add_common_arguments(parser)
    parser.set_defaults(one_frame_inference=None, one_frame_auto_resize=False)
    parser.set_defaults(control_image_path=None, control_image_mask_path=None)


def add_common_arguments(parser: ArgumentParser) -> None:
    """What every command that makes something understands."""
    add_model_arguments(parser)
    add_execution_arguments(parser)
    add_lora_arguments(parser)
    add_saving_arguments(parser, required=False)
    add_video_arguments(parser)
    add_guidance_arguments(parser)
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
    group.add_argument("--fp8_llm", action="store_true", help="LLaMA in fp8")
    group.add_argument(
        "--disable_numpy_memmap", action="store_true", help="not needed: NumPy reads no weights"
    )
    add_fp8_arguments(parser)


def add_execution_arguments(parser: ArgumentParser) -> None:
    """How the transformer is run."""
    group = parser.add_argument_group("little memory, more speed")
    group.add_argument(
        "--blocks_to_swap",
        type=block_count,
        default=0,
        metavar="N",
        help="blocks of the transformer that wait in main memory and visit the GPU one at a time; "
        "of the 60, each takes 0.4 GB (0.2 GB in fp8) less there",
    )
    group.add_argument(
        "--use_pinned_memory_for_block_swap",
        action="store_true",
        help="they visit faster, but take their size of main memory",
    )
    group.add_argument(
        "--compile", action="store_true", help="with torch.compile: slow at first, then faster"
    )
    group.add_argument("--compile_backend", default="inductor")
    group.add_argument("--compile_mode", default="default", choices=COMPILE_MODES)
    group.add_argument("--compile_dynamic", choices=("true", "false", "auto"))
    group.add_argument("--compile_fullgraph", action="store_true")
    group.add_argument("--compile_cache_size_limit", type=positive_int, metavar="N")


def add_fp8_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("fp8", "files that are in fp8 already need no option")
    group.add_argument("--fp8", action="store_true", help="the transformer in fp8, by a plain cast")
    group.add_argument(
        "--fp8_scaled", action="store_true", help="in fp8 with scales, which is nearer to bf16"
    )


def add_lora_arguments(parser: ArgumentParser) -> None:
    """LoRAs and what becomes of them."""
    group = parser.add_argument_group(
        "LoRA",
        "of any trainer, for FramePack or HunyuanVideo; works beside the weights, which stay as "
        "they are",
    )
    group.add_argument("--lora_weight", nargs="*", metavar="FILE", help="one or several")
    group.add_argument(
        "--lora_multiplier",
        nargs="*",
        type=float,
        metavar="X",
        help="strengths, one for each file (default: 1)",
    )
    group.add_argument(
        "--include_patterns",
        nargs="*",
        metavar="REGEX",
        help="one for each file: only modules in whose name it is found; '' for all",
    )
    group.add_argument(
        "--exclude_patterns",
        nargs="*",
        metavar="REGEX",
        help="likewise, which modules to leave out",
    )
    group.add_argument(
        "--lycoris", action="store_true", help="not needed: LyCORIS files are read like any other"
    )


def add_saving_arguments(parser: ArgumentParser, required: bool) -> None:
    """Where a merged model goes."""
    group = parser.add_argument_group("merged model")
    group.add_argument(
        "--save_merged_model",
        required=required,
        metavar="PATH",
        help="a .safetensors file, or with --shard_size a folder"
        + ("" if required else "; nothing is generated then"),
    )
    group.add_argument(
        "--shard_size", type=positive_float, metavar="GB", help="in files of this size"
    )


def add_merge_arguments(parser: ArgumentParser) -> None:
    """Everything `framepack merge` understands."""
    _add_transformer_arguments(parser, "model", "a file, any shard of it, or a folder")
    parser.add_argument("--device", help="where it is merged, such as cuda (default: cpu)")
    parser.add_argument("--dtype", help="bf16 (default) or fp16")
    add_fp8_arguments(parser)
    add_lora_arguments(parser)
    add_saving_arguments(parser, required=True)


def add_inspect_arguments(parser: ArgumentParser) -> None:
    """Everything `framepack lora` understands."""
    parser.add_argument("action", choices=("inspect",), help="report what files are")
    parser.add_argument("file", nargs="+", metavar="FILE", help="a LoRA of any trainer")
    _add_transformer_arguments(parser, "compared with", "the released model, unless one is named")


def _add_transformer_arguments(parser: ArgumentParser, title: str, about: str) -> None:
    group = parser.add_argument_group(title, about)
    group.add_argument("--dit", metavar="PATH", help="FramePack or F1 transformer")
    group.add_argument("--snapshot", metavar="DIR", help="folder with all models, or toyworld")
    group.add_argument("--f1", action="store_true", help="the snapshot's F1 transformer")
    parser.set_defaults(vae=None, text_encoder1=None, text_encoder2=None, image_encoder=None)


def add_video_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("video")
    group.add_argument(
        "--image_path",
        metavar="FILE",
        help="the start image; or one for each of some sections, as --prompt",
    )
    group.add_argument(
        "--prompt",
        help="what happens in the video; or in its sections: 0:walks;;;1-2:sits;;;-1:waves, where "
        "0 is the first and -1 the last section; the others take that of section 0",
    )
    group.add_argument("--negative_prompt", help="needs another --guidance_scale than 1")
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


def add_guidance_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("steering")
    group.add_argument("--image_mask_path", metavar="FILE", help="hides of the start image: black")
    group.add_argument("--end_image_path", metavar="FILE", help="what the video ends with; not F1")
    group.add_argument("--end_image_strength", type=float, metavar="X", help="0 to 1 (default: 1)")
    group.add_argument(
        "--end_image_policy",
        choices=END_POLICIES,
        help="whether all sections or only the one made first see it (default: persistent)",
    )
    group.add_argument(
        "--latent_paddings",
        metavar="LIST",
        help="windows between start image and section, last section first (default for four: "
        "3,2,1,0); at 0 a section goes on from its image, above it the image is a reference",
    )
    group.add_argument(
        "--section_seeds", metavar="SPEC", help="for some sections, such as 1:7;;;-1:8"
    )
    group.add_argument(
        "--section_guidance", metavar="SPEC", help="--embedded_cfg_scale for some sections"
    )
    group.add_argument(
        "--section_lora_strengths",
        metavar="SPEC",
        help="times --lora_multiplier in some sections, such as 0:0;;;-1:0.5: none of the LoRAs in "
        "the first, half in the last (0 to 10, default: 1)",
    )


def add_one_frame_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("one frame", "an edited picture instead of a video")
    group.add_argument(
        "--one_frame_inference",
        metavar="OPTIONS",
        help="default, or any of no_2x,no_4x,no_post,target_index=1,control_index=0;10",
    )
    group.add_argument(
        "--control_image_path",
        nargs="+",
        metavar="FILE",
        help="pictures that the edit starts from; --image_path is then only seen by SigLIP "
        "(default for it: the first of these)",
    )
    group.add_argument(
        "--control_image_mask_path",
        nargs="+",
        metavar="FILE",
        help="one for each, black where it does not count (default: its transparency)",
    )
    group.add_argument(
        "--one_frame_auto_resize",
        action="store_true",
        help="the shape of the first control image, of about the pixels of --video_size",
    )


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
    group.add_argument("--magcache_retention_ratio", type=float, metavar="X", help="0.2")
    group.add_argument("--magcache_threshold", type=float, metavar="X", help="0.24")
    group.add_argument("--magcache_k", type=positive_int, metavar="N", help="6")
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
    group.add_argument("--crf", type=constant_quality, default=16, help="1 to 51, lower is better")
    group.add_argument("--codec", default="libx264", help="video encoder")
    group.add_argument("--no_metadata", action="store_true", help="leave prompt and settings out")
    group.add_argument(
        "--ledger",
        type=Path,
        metavar="DIR",
        help="where each finished section is kept, so that the same command goes on after a stop "
        "(default: .ledger in --save_path)",
    )
    group.add_argument("--no_ledger", action="store_true", help="keep no sections to go on from")
