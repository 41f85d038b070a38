"""A LoRA from a cached data set, with samples, loggers and a bar; alone or on several GPUs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from ..parsing.sample_prompts import SamplePrompt, load_sample_prompts
from ..runtime.display import Bar, Display, say
from ..runtime.distributed import Workers, launched_rank
from ..runtime.errors import FramePackError
from ..sampling.flow import FlowDenoiser
from ..training.batches import open_batches
from ..training.checkpoint import seed_of_state
from ..training.config import LESS_MEMORY, MAX_TRAINING_SEED, TrainConfig
from ..training.dataset import TrainingSet
from ..training.encoders import base_identity, check_mode_of_file
from ..training.logs import LOGGERS, open_log
from ..training.loop import Callbacks, StepReport, TrainResult, check_run, train
from ..training.metadata import dataset_metadata
from ..training.samples import PreparedSample, check_prompts, prepare_samples, sample_writer
from .models import Models, explain_out_of_memory
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
    config, found = job.config, open_dataset(job.data, job.models)
    check_run(config)
    found.check_mode(config.mode)
    prompts = _sample_prompts(config, found)
    models = train_models(job, samples=bool(prompts))
    check_mode_of_file(models.paths["dit"], config.mode)
    workers = Workers.join(models.device)
    if job.draws_seed:
        config = config.model_copy(update={"seed": _drawn_seed(config, workers)})
    batches, validation = open_batches(found, config, known_models(job))
    with Display("summary of the run"):
        _say(f"{found.describe()}\n{_plan(config, len(batches))}")
    with explain_out_of_memory(LESS_MEMORY), _progress(config) as on_step:
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
                metadata={**dataset_metadata(found), "ss_sd_model_name": models.paths["dit"].name},
                base=base_identity(models.paths["dit"], models.loras),
            )
    workers.leave()
    _say(str(result.path))
    return result


def _drawn_seed(config: TrainConfig, workers: Workers) -> int:
    """One that nobody chose: the resumed run's, or a random one that all processes agree on."""
    if config.resume:
        return seed_of_state(config.state_path)
    return workers.agree(random.randrange(MAX_TRAINING_SEED + 1))


def _placed(models: Models, config: TrainConfig) -> Models:
    """Where blocks wait in main memory the whole model would not fit on the device first."""
    return replace(models, device=torch.device("cpu")) if config.blocks_to_swap else models


# --- what is said and saved -----------------------------------------------------------------------


def _plan(config: TrainConfig, batches: int) -> str:
    total = config.total_steps(batches)
    adapter = f"{config.adapter.kind} of rank {config.adapter.rank}: {config.mode}"
    return f"{total} steps, {adapter}, seed {config.seed}"


def _say(text: str) -> None:
    """Print it once, however many processes there are."""
    if launched_rank() == 0:
        say(text)


@contextmanager
def _progress(config: TrainConfig) -> Iterator[Callable[[StepReport], None]]:
    """A bar with loss and time left, and the loggers asked for."""
    if launched_rank() > 0:
        yield lambda _report: None
        return
    names = list(LOGGERS) if config.log_with == "all" else [config.log_with]
    folder = (config.logging_dir or config.output_dir / "logs") / config.output_name
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


def _sample_prompts(config: TrainConfig, found: TrainingSet) -> list[SamplePrompt]:
    """Checked prompts, if samples are to be made."""
    if config.sample_prompts is None:
        if config.makes_samples:
            raise FramePackError("--sample_prompts missing; name a file, or make no samples")
        return []
    if not config.makes_samples:
        raise FramePackError(
            "--sample_prompts: add --sample_every_n_steps, --sample_every_n_epochs or "
            "--sample_at_first to say when"
        )
    prompts = load_sample_prompts(config.sample_prompts)
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
