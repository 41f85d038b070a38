"""A LoRA from a cached data set, with samples, loggers and a bar; alone or on several GPUs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from ..models.build import dit_config
from ..models.dit import FramePackDiT
from ..parsing.sample_prompts import SamplePrompt, load_sample_prompts
from ..runtime.display import Bar, Display, say, warn
from ..runtime.distributed import Workers, launched_rank
from ..runtime.memory import limited_memory
from ..runtime.options import leaves
from ..sampling.decode import decode_slices
from ..sampling.flow import FlowDenoiser
from ..sampling.sections import sections_to_hold
from ..training.adapters import check_layers, with_dim_of_weights
from ..training.batches import open_batches
from ..training.checkpoint import seed_of_state
from ..training.config import LESS_MEMORY, MAX_TRAINING_SEED, TrainConfig
from ..training.dataset import TrainingSet
from ..training.encoders import base_identity, check_mode_of_file
from ..training.logs import open_log
from ..training.loop import RESUMABLE, Callbacks, StepReport, TrainResult, check_run, train
from ..training.metadata import dataset_metadata
from ..training.samples import PreparedSample, check_prompts, prepare_samples, sample_writer
from ..training.schedules import unused_options
from .models import Models, explain_out_of_memory
from .options import DecodingOptions
from .training_models import (
    known_models,
    latent_encoders_of,
    open_dataset,
    text_encoder_of,
    train_models,
)
from .training_options import TrainJob


def train_lora(job: TrainJob) -> TrainResult:
    """Train what the options ask for; every mistake that can be seen before is told before."""
    config, found = with_dim_of_weights(job.config), open_dataset(job.data, job.models)
    check_run(config)
    _tell_without_effect(config)
    found.check_mode(config.mode)
    prompts = _sample_prompts(config, found, job.decoding)
    models = train_models(job, samples=bool(prompts))
    check_mode_of_file(models.paths["dit"], config.mode)
    skeleton = FramePackDiT(dit_config(models.paths["dit"]), device="meta")
    check_layers(skeleton, config)
    with Workers.joined(models.device, config.ddp_timeout, RESUMABLE) as workers:
        if job.draws_seed:
            config = config.model_copy(update={"seed": _drawn_seed(config, workers)})
        batches, validation = open_batches(found, config, known_models(job))
        with Display("summary of the run"):
            _say(f"{found.describe()}\n{_plan(config, len(batches), workers.count)}")
        with explain_out_of_memory(LESS_MEMORY), _progress(config) as on_step:
            with limited_memory(config.gpu_memory, models.device) as models.budget:
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
                    bulk=job.decoding.bulk_decode,
                    overlap=job.decoding.decode_overlap,
                    together=config.shard_weights,
                    on_file=_shown,
                )
                result = train(
                    config,
                    denoiser,
                    batches,
                    Callbacks(on_step, on_sample=write if samples else None),
                    validation=validation,
                    device=models.device,
                    metadata={
                        **dataset_metadata(found),
                        "ss_sd_model_name": models.paths["dit"].name,
                    },
                    base=base_identity(models.paths["dit"], models.loras),
                )
    _say(str(result.path))
    return result


def _drawn_seed(config: TrainConfig, workers: Workers) -> int:
    """One that nobody chose: the resumed run's, or a random one that all processes agree on."""
    if config.resume:
        return seed_of_state(config.resumed_state)
    return workers.agree(random.randrange(MAX_TRAINING_SEED + 1))


def _placed(models: Models, config: TrainConfig) -> Models:
    """Where blocks wait in main memory or are shared the whole model may not fit on the device."""
    waits = config.blocks_to_swap or config.gpu_memory or config.shard_weights
    return replace(models, device=torch.device("cpu")) if waits else models


# --- what is said and saved -----------------------------------------------------------------------


def _plan(config: TrainConfig, batches: int, processes: int) -> str:
    total = config.total_steps(batches, processes)
    adapter = f"{config.adapter.kind} of rank {config.adapter.rank}: {config.mode}"
    return f"{total} steps, {adapter}, seed {config.seed}"


def _tell_without_effect(config: TrainConfig) -> None:
    """A line with all options that were given and change nothing."""
    unused = config.unused() | unused_options(config)
    found = [
        leaf.command
        for leaf in leaves(TrainConfig)
        if leaf.name in unused and leaf.of(config) not in (leaf.default, leaf.option.reference)
    ]
    if found:
        _warn(f"{', '.join(found)}: no effect with the other options as they are")


def _say(text: str) -> None:
    """Print it once, however many processes there are."""
    if launched_rank() == 0:
        say(text)


def _warn(text: str) -> None:
    """Warn once, however many processes there are."""
    if launched_rank() == 0:
        warn(text)


@contextmanager
def _progress(config: TrainConfig) -> Iterator[Callable[[StepReport], None]]:
    """A bar with loss and time left, and the loggers asked for."""
    if launched_rank() > 0:
        yield lambda _report: None
        return
    with ExitStack() as stack:
        loggers = [stack.enter_context(open_log(name, config)) for name in config.loggers]
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


def _sample_prompts(
    config: TrainConfig, found: TrainingSet, decoding: DecodingOptions
) -> list[SamplePrompt]:
    """Checked prompts, if samples are to be made; those without an image are passed over."""
    if config.sample_prompts is None or not config.makes_samples:
        _tell_unused(config)
        return []
    every = load_sample_prompts(config.sample_prompts)
    prompts = [prompt for prompt in every if prompt.image_path or prompt.control_image_path]
    for prompt in (prompt for prompt in every if prompt not in prompts):
        _warn(f"sample {prompt.prompt!r} has no start image (--i) and is passed over")
    check_prompts(prompts, config.mode, found.window, sees_end=config.sees_end)
    if config.mode != "one_frame":  # refuses before a run
        decode_slices(1 + found.window, found.window, decoding.decode_overlap)
    for prompt in prompts:
        _tell_changes(prompt, config, found.window)
    return prompts


def _tell_unused(config: TrainConfig) -> None:
    """Options of samples that come to nothing, as what says which or when is missing."""
    if config.sample_prompts is not None:
        _warn(
            "--sample_prompts has no effect without --sample_every_n_steps, "
            "--sample_every_n_epochs or --sample_at_first, which say when"
        )
    elif config.makes_samples:
        _warn("no samples are made without --sample_prompts")


def _tell_changes(prompt: SamplePrompt, config: TrainConfig, window: int) -> None:
    """What of a prompt is not done as it says."""
    frames, shift = prompt.frame_count, config.sample_flow_shift
    made = 4 * window * sections_to_hold(frames or 1, window) + 1
    if config.mode != "one_frame" and not prompt.is_still and frames not in (None, made):
        _say(f"sample {prompt.prompt!r}: {frames} frames become {made}, whole sections")
    if prompt.discrete_flow_shift is not None and shift:
        _warn(
            f"sample {prompt.prompt!r}: --fs {prompt.discrete_flow_shift:g} has no effect with "
            f"--sample_flow_shift {shift:g}, which 0 turns off"
        )


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
            flow_shift=config.sample_flow_shift,
            sees_end=config.sees_end,
            device=models.device,
        )


def _shown(path: Path, _sample: PreparedSample) -> None:
    say(str(path))
