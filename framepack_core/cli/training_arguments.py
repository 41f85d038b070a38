"""Options of `framepack cache` and `framepack train`, named as in musubi-tuner."""

from __future__ import annotations

from argparse import SUPPRESS, Action, ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..runtime.errors import FramePackError
from ..training.settings import read_table
from .arguments import add_decode_arguments, add_model_arguments, positive_float, positive_int

# Options of musubi-tuner's that change nothing here, so that its command lines carry over.
NEEDLESS_FLAGS = (
    *("--sdpa", "--split_attn", "--save_state", "--save_state_on_train_end"),
    *("--persistent_data_loader_workers", "--keep_cache"),
)
NEEDLESS_VALUES = ("--num_workers", "--max_data_loader_n_workers")
OPTIMIZERS = "adamw, adamw8bit, pagedadamw8bit, adafactor, prodigy, adamwschedulefree"


def add_cache_command_arguments(parser: ArgumentParser) -> None:
    """Everything `framepack cache` understands."""
    add_dataset_arguments(parser)
    what = parser.add_argument_group("what is cached")
    what.add_argument(
        "--only", choices=("latents", "text"), help="one of both, with its encoders alone"
    )
    what.add_argument("--one_frame_no_2x", action="store_true", help="leave out the blank 2x")
    what.add_argument("--one_frame_no_4x", action="store_true", help="leave out the blank 4x")
    what.add_argument(
        "--end_frames", action="store_true", help="also the last frames, to train with --end_frame"
    )
    what.add_argument(
        "--skip_existing",
        action=BooleanOptionalAction,
        default=True,
        help="leave what is cached and still fits",
    )
    add_model_arguments(parser)
    add_decode_arguments(parser)
    _add_needless(parser)


def add_train_arguments(parser: ArgumentParser) -> None:
    """Everything `framepack train` understands."""
    parser.add_argument(
        *("--config", "--config_file"),
        action=_ConfigFile,
        metavar="TOML",
        help="options from a file, by their names; the command line's win",
    )
    add_dataset_arguments(parser)
    _add_output_arguments(parser)
    _add_network_arguments(parser)
    _add_optimizer_arguments(parser)
    _add_timestep_arguments(parser)
    _add_conditioning_arguments(parser)
    _add_memory_arguments(parser)
    _add_sample_arguments(parser)
    add_model_arguments(parser)
    add_decode_arguments(parser)
    _add_needless(parser)


def add_dataset_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("data set")
    group.add_argument(
        "--dataset_config",
        metavar="PATH",
        help="a .toml or .json file, or simply a folder of clips with captions beside them",
    )
    mode = group.add_mutually_exclusive_group()
    mode.add_argument("--f1", action="store_true", help="for the F1 model")
    mode.add_argument("--one_frame", action="store_true", help="edits of pictures, not videos")
    group.add_argument(
        "--resolution",
        nargs="+",
        type=positive_int,
        metavar="N",
        help="W H or one number for both, where the data set names none (default: 640, 64 for "
        "toyworld)",
    )
    group.add_argument("--batch_size", type=positive_int, metavar="N", help="likewise (default: 1)")
    group.add_argument(
        "--latent_window_size", type=positive_int, metavar="N", help="likewise (default: 9)"
    )


def _add_output_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument(
        "--output_dir", type=Path, default=Path("output"), metavar="DIR", help="default: output"
    )
    group.add_argument("--output_name", metavar="NAME", help="default: framepack-lora")
    group.add_argument("--resume", action="store_true", help="go on from the state on disk")
    group.add_argument("--seed", type=int, help="equal seeds give equal LoRAs (default: 42)")
    group.add_argument("--max_train_steps", type=positive_int, metavar="N", help="default: 1600")
    group.add_argument("--max_train_epochs", type=positive_int, metavar="N", help="wins over it")
    group.add_argument(
        "--gradient_accumulation_steps",
        type=positive_int,
        metavar="N",
        help="batches an update is the mean of (default: 1)",
    )
    group.add_argument("--save_every_n_steps", type=positive_int, metavar="N", help="default: 250")
    group.add_argument(
        "--save_every_n_epochs", type=positive_int, metavar="N", help="also after so many"
    )
    group.add_argument("--save_last_n", type=positive_int, metavar="N", help="how many are kept")
    group.add_argument("--save_precision", choices=("bf16", "fp16", "fp32"), help="default: bf16")
    group.add_argument("--training_comment", metavar="TEXT", help="into the file's metadata")
    group.add_argument("--validation_clips", type=int, metavar="N", help="held out (default: 0)")
    group.add_argument(
        "--validate_every_n_steps", type=positive_int, metavar="N", help="default: 100"
    )
    group.add_argument(
        "--log_with", choices=("tensorboard", "wandb", "all"), help="besides NAME-log.jsonl"
    )
    group.add_argument("--logging_dir", type=Path, metavar="DIR", help="default: in --output_dir")


def _add_network_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("network")
    group.add_argument(
        "--network_module",
        metavar="NAME",
        help="networks.lora_framepack (default), networks.loha, networks.lokr; lora, loha, lokr",
    )
    group.add_argument("--network_dim", type=positive_int, metavar="RANK", help="default: 32")
    group.add_argument("--network_alpha", type=positive_float, metavar="X", help="default: 16")
    group.add_argument("--network_dropout", type=float, metavar="X", help="0 to below 1")
    group.add_argument(
        "--network_args",
        nargs="+",
        metavar="NAME=VALUE",
        help="rank_dropout, module_dropout, include_patterns, exclude_patterns, factor",
    )
    group.add_argument("--network_weights", type=Path, metavar="FILE", help="a LoRA to start from")
    group.add_argument(
        "--base_weights",
        dest="lora_weight",
        nargs="*",
        metavar="FILE",
        help="LoRAs that are part of the model below the new one",
    )
    group.add_argument(
        "--base_weights_multiplier",
        dest="lora_multiplier",
        nargs="*",
        type=float,
        metavar="X",
        help="strengths, one for each file (default: 1)",
    )


def _add_optimizer_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("optimizer")
    group.add_argument("--optimizer_type", metavar="NAME", help=f"{OPTIMIZERS}, or a class path")
    group.add_argument(
        "--optimizer_args", nargs="+", metavar="NAME=VALUE", help="such as weight_decay=0.1"
    )
    group.add_argument("--learning_rate", type=positive_float, metavar="X", help="default: 2e-4")
    group.add_argument(
        "--lr_scheduler",
        metavar="NAME",
        help="constant, linear, cosine, cosine_with_restarts, polynomial, rex",
    )
    group.add_argument(
        "--lr_scheduler_type",
        metavar="PATH",
        help="class path of another, such as torch.optim.lr_scheduler.StepLR",
    )
    group.add_argument(
        "--lr_scheduler_args", nargs="+", metavar="NAME=VALUE", help="such as step_size=100"
    )
    group.add_argument(
        "--lr_warmup_steps", type=float, metavar="N", help="steps, or below 1 a share of all"
    )
    group.add_argument("--max_grad_norm", type=float, metavar="X", help="default: 1, 0 is off")


def _add_timestep_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("noise levels")
    group.add_argument(
        "--timestep_sampling",
        metavar="NAME",
        help="shift (default), uniform, sigmoid, flux_shift, logsnr, sigma, qinglong_flux",
    )
    group.add_argument(
        "--discrete_flow_shift", type=positive_float, metavar="X", help="of shift (default: 3)"
    )
    group.add_argument(
        "--weighting_scheme",
        metavar="NAME",
        help="none (default), logit_normal, mode, cosmap, sigma_sqrt",
    )
    for name, user in (
        ("sigmoid_scale", "sigmoid, shift, flux_shift"),
        ("logit_mean", "logsnr and logit_normal"),
        ("logit_std", "logsnr and logit_normal"),
        ("mode_scale", "mode"),
    ):
        group.add_argument(f"--{name}", type=float, metavar="X", help=f"of {user}")
    for name in ("min_timestep", "max_timestep"):
        group.add_argument(f"--{name}", type=float, metavar="T", help="0 to 1000")
    group.add_argument(
        "--preserve_distribution_shape",
        action="store_true",
        default=None,
        help="draw again until a level lies in the range, in place of squeezing all into it",
    )
    group.add_argument(
        "--num_timestep_buckets",
        type=positive_int,
        metavar="N",
        help="spread levels evenly over so many parts of their distribution",
    )


def _add_conditioning_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("what the model sees")
    group.add_argument(
        "--guidance_scale", type=float, metavar="X", help="the distilled one (default: 10)"
    )
    group.add_argument("--caption_dropout", type=float, metavar="SHARE", help="default: 0")
    group.add_argument(
        "--end_frame", type=float, metavar="SHARE", help="how often the end frame is shown"
    )


def _add_memory_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("memory")
    group.add_argument(
        "--gradient_checkpointing",
        action=BooleanOptionalAction,
        default=None,
        help="compute activations twice instead of keeping them (default: on)",
    )
    group.add_argument(
        "--gradient_checkpointing_cpu_offload",
        action="store_true",
        default=None,
        help="keep the inputs of all blocks on the CPU",
    )
    group.add_argument("--blocks_to_swap", type=int, metavar="N", help="blocks kept on the CPU")
    group.add_argument("--fp8_base", dest="fp8", action="store_true", help="as --fp8")
    group.add_argument(
        "--mixed_precision", choices=("no", "fp16", "bf16"), help="as --dtype; no is fp32"
    )


def _add_sample_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("samples")
    group.add_argument("--sample_prompts", metavar="FILE", help="a .txt, .toml or .json file")
    group.add_argument(
        "--sample_at_first", action="store_true", default=None, help="before the first step too"
    )
    for name in ("steps", "epochs"):
        group.add_argument(
            f"--sample_every_n_{name}", type=positive_int, metavar="N", help="and at the end"
        )


def _add_needless(parser: ArgumentParser) -> None:
    known = parser._option_string_actions
    for flag in NEEDLESS_FLAGS:
        if flag not in known:
            parser.add_argument(flag, action="store_true", help=SUPPRESS)
    for flag in NEEDLESS_VALUES:
        parser.add_argument(flag, help=SUPPRESS)


class _ConfigFile(Action):
    """Take options from a file, except where the command line has said something else."""

    def __call__(
        self,
        parser: ArgumentParser,
        namespace: Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        try:
            words = list(_words(parser, read_table(Path(str(values))), str(values)))
        except FramePackError as error:
            parser.error(str(error))
        for name, value in vars(parser.parse_args(words)).items():
            if getattr(namespace, name, None) == parser.get_default(name):
                setattr(namespace, name, value)


def _words(parser: ArgumentParser, table: dict[str, Any], place: str) -> Iterator[str]:
    """The command line that a table stands for; sections only group it."""
    known = parser._option_string_actions
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _words(parser, value, place)
        elif f"--{name}" not in known:
            parser.error(f"{place}: {name}: unknown; use the names of `framepack train --help`")
        elif isinstance(value, bool):
            yield from _switch(known, name, value)
        else:
            yield f"--{name}"
            yield from map(str, value if isinstance(value, list) else [value])


def _switch(known: dict[str, Action], name: str, value: bool) -> Iterator[str]:
    if value:
        yield f"--{name}"
    elif f"--no-{name}" in known:
        yield f"--no-{name}"
