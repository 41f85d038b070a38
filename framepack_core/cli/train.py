"""`framepack train`: a LoRA from a cached data set; `accelerate launch` uses several GPUs."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch

from ..headless.models import Models, explain_out_of_memory
from ..parsing.sample_prompts import SamplePrompt, load_sample_prompts
from ..runtime.display import Bar, Display, say
from ..runtime.errors import FramePackError
from ..sampling.flow import FlowDenoiser
from ..training.adapters import AdapterConfig, Kind
from ..training.batches import open_batches
from ..training.config import TrainConfig
from ..training.dataset import TrainingSet
from ..training.distributed import launched_rank
from ..training.encoders import base_identity, check_model
from ..training.logs import LOGGERS, open_log
from ..training.loop import Callbacks, StepReport, train
from ..training.metadata import NETWORK_MODULES, dataset_metadata
from ..training.samples import PreparedSample, check_prompts, prepare_samples, sample_writer
from ..training.settings import parse_pairs, validate
from ..training.timesteps import Timesteps
from ..weights.layouts import Component
from .cache import latent_encoders_of, mode_of, open_dataset, text_encoder_of

ENCODERS: tuple[Component, ...] = ("vae", "llama", "clip", "image_encoder")
LESS_MEMORY = (
    "add --gradient_checkpointing, a smaller --batch_size, --blocks_to_swap 10 or more, or "
    "--gradient_checkpointing_cpu_offload"
)
# Fields of a config by the option that sets them, where their names differ.
RENAMED = {
    "steps": "max_train_steps",
    "epochs": "max_train_epochs",
    "guidance": "guidance_scale",
    "optimizer": "optimizer_type",
    "scheduler": "lr_scheduler",
    "scheduler_type": "lr_scheduler_type",
    "warmup": "lr_warmup_steps",
    "accumulation": "gradient_accumulation_steps",
    "save_every_steps": "save_every_n_steps",
    "save_every_epochs": "save_every_n_epochs",
    "keep_last": "save_last_n",
    "save_dtype": "save_precision",
    "validate_every_steps": "validate_every_n_steps",
    "sample_every_steps": "sample_every_n_steps",
    "sample_every_epochs": "sample_every_n_epochs",
}
TIMESTEPS = {
    "mode": "timestep_sampling",
    "shift": "discrete_flow_shift",
    "weighting": "weighting_scheme",
    "preserve_shape": "preserve_distribution_shape",
    "buckets": "num_timestep_buckets",
}
ADAPTER = {"rank": "network_dim", "alpha": "network_alpha", "dropout": "network_dropout"}
NETWORK_ARGS = {
    "rank_dropout": "rank_dropout",
    "module_dropout": "module_dropout",
    "include_patterns": "include",
    "exclude_patterns": "exclude",
    "factor": "factor",
}


def run(args: Namespace) -> None:
    """Train what the options ask for; every mistake that can be seen before is told before."""
    config, found = config_of(args), open_dataset(args)
    config.check_name()
    found.check_mode(config.mode)
    prompts = _sample_prompts(args, config, found)
    models = Models.from_args(args, ["dit", *(ENCODERS if prompts else ())])
    check_model(models.paths["dit"], config.mode)
    batches, validation = open_batches(found, config)
    with Display("summary of the run"):
        _say(f"{found.describe()}\n{_plan(config, len(batches))}")
    with explain_out_of_memory(LESS_MEMORY), _progress(args, config) as on_step:
        samples = _prepare(prompts, config, found, models)
        with _placed(models, config).dit() as dit:
            denoiser = FlowDenoiser(dit, models.dtype)
            write = sample_writer(
                samples,
                denoiser,
                models.decoder,
                config.output_dir,
                config.output_name,
                device=models.device,
                on_file=_shown,
            )
            result = train(
                config,
                denoiser,
                batches,
                Callbacks(on_step, on_sample=write if samples else None),
                validation=validation,
                device=models.device,
                metadata={**dataset_metadata(found), **_about(args, models)},
                base=base_identity(models.paths["dit"], models.loras),
            )
    _say(str(result.path))


def _placed(models: Models, config: TrainConfig) -> Models:
    """Where blocks wait in main memory the whole model would not fit on the device first."""
    return replace(models, device=torch.device("cpu")) if config.blocks_to_swap else models


# --- options --------------------------------------------------------------------------------------


def config_of(args: Namespace) -> TrainConfig:
    """The settings of a command line; what it leaves out is the config's own default."""
    if args.dtype is None and args.mixed_precision is not None:
        args.dtype = "fp32" if args.mixed_precision == "no" else args.mixed_precision
    values = _given(args, TrainConfig.model_fields, RENAMED)
    timesteps = _given(args, Timesteps.__dataclass_fields__, TIMESTEPS)
    nested = {"mode": mode_of(args), "timesteps": timesteps, "adapter": _adapter(args)}
    pairs = {
        "optimizer_args": parse_pairs(args.optimizer_args or (), "--optimizer_args"),
        "scheduler_args": parse_pairs(args.lr_scheduler_args or (), "--lr_scheduler_args"),
    }
    return validate(TrainConfig, {**values, **nested, **pairs}, "command line")


def _given(args: Namespace, fields: Mapping[str, Any], renamed: Mapping[str, str]) -> dict:
    """The values of a config's fields that the command line has."""
    named = {name: renamed.get(name, name) for name in fields}
    values = {name: getattr(args, option, None) for name, option in named.items()}
    return {name: value for name, value in values.items() if value is not None}


def _adapter(args: Namespace) -> dict[str, Any]:
    values = _given(args, AdapterConfig.__dataclass_fields__, ADAPTER)
    if args.network_module is not None:
        values["kind"] = _kind(args.network_module)
    given = parse_pairs(args.network_args or (), "--network_args")
    for name, value in given.items():
        if name not in NETWORK_ARGS:
            raise FramePackError(
                f"--network_args: {name}: unknown; known are {', '.join(NETWORK_ARGS)}"
            )
        several = name.endswith("patterns") and isinstance(value, str)
        values[NETWORK_ARGS[name]] = [value] if several else value
    return values


def _kind(module: str) -> str:
    kinds = {name: kind for kind, name in NETWORK_MODULES.items()} | {k: k for k in get_args(Kind)}
    if module not in kinds:
        raise FramePackError(f"--network_module: {module!r} is unknown; use {', '.join(kinds)}")
    return kinds[module]


# --- what is said and saved -----------------------------------------------------------------------


def _plan(config: TrainConfig, batches: int) -> str:
    total = config.total_steps(batches)
    return f"{total} steps, {config.adapter.kind} of rank {config.adapter.rank}: {config.mode}"


def _about(args: Namespace, models: Models) -> dict[str, str]:
    about = {"ss_sd_model_name": models.paths["dit"].name}
    if args.training_comment:
        about["ss_training_comment"] = args.training_comment
    return about


def _say(text: str) -> None:
    """Print it once, however many processes there are."""
    if launched_rank() == 0:
        say(text)


@contextmanager
def _progress(args: Namespace, config: TrainConfig) -> Iterator[Callable[[StepReport], None]]:
    """A bar with loss and time left, and the loggers asked for."""
    if launched_rank() > 0:
        yield lambda _report: None
        return
    names = list(LOGGERS) if args.log_with == "all" else [args.log_with]
    folder = (args.logging_dir or config.output_dir / "logs") / config.output_name
    with ExitStack() as stack:
        loggers = [stack.enter_context(open_log(name, folder)) for name in names if name]
        bar: Bar | None = None

        def on_step(report: StepReport) -> None:
            nonlocal bar
            if bar is None:
                bar = stack.enter_context(Bar("training", report.total, done=report.step - 1))
            bar.move(note=f"loss {report.loss:.4f}")
            for log in loggers:
                log(report)

        yield on_step


# --- samples --------------------------------------------------------------------------------------


def _sample_prompts(args: Namespace, config: TrainConfig, found: TrainingSet) -> list[SamplePrompt]:
    """Checked prompts, if samples are to be made."""
    due = config.sample_every_steps or config.sample_every_epochs or config.sample_at_first
    if args.sample_prompts is None:
        if due:
            raise FramePackError("--sample_prompts missing; name a file, or make no samples")
        return []
    if not due:
        raise FramePackError(
            "--sample_prompts: add --sample_every_n_steps, --sample_every_n_epochs or "
            "--sample_at_first to say when"
        )
    prompts = load_sample_prompts(args.sample_prompts)
    check_prompts(prompts, config.mode, found.window)
    return prompts


def _prepare(
    prompts: Sequence[SamplePrompt], config: TrainConfig, found: TrainingSet, models: Models
) -> list[PreparedSample]:
    if not prompts:
        return []
    with latent_encoders_of(models) as latent, text_encoder_of(models) as text:
        return prepare_samples(
            prompts,
            config.mode,
            found.window,
            latent,
            text,
            seed=config.seed,
            device=models.device,
        )


def _shown(path: Path, _sample: PreparedSample) -> None:
    say(str(path))
