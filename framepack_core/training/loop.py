"""The training loop: one function over settings, a denoiser and batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models.attention import use_attention
from ..models.attention_kernels import training_attention
from ..models.compiling import prepare_compiling
from ..models.products import choose_products
from ..runtime.display import Display, say, warn
from ..runtime.distributed import Team, Workers, launched_count
from ..runtime.errors import FramePackError
from ..runtime.fingerprint import fingerprint
from ..runtime.memory import GIB, limited_memory, peak_of
from ..sampling.flow import FlowDenoiser
from ..weights.files import open_weights
from .adapters import RATE_FACTOR, Adapters, with_dim_of_weights
from .batches import Batches
from .blocks import wrapped_blocks
from .checkpoint import require_state
from .config import TrainConfig
from .fitting import Fit, fit_step
from .objective import Objective
from .optimizers import make_optimizer, set_mode, weights_in_use
from .rng import draw_seed
from .run_files import RunFiles
from .schedules import learning_rates

RESUMABLE = "the state that was saved last resumes the run"
PACE = 0.9  # how much of the pace of updates is remembered


@dataclass(frozen=True)
class StepReport:
    """After an update: how many are done of how many, its loss and rate, and how long is left."""

    step: int
    total: int
    epoch: int
    loss: float
    rate: float
    grad_norm: float
    seconds_a_step: float
    validation: float | None = None

    @property
    def seconds_left(self) -> float:
        return (self.total - self.step) * self.seconds_a_step


@dataclass(frozen=True)
class Callbacks:
    """What a host wants to hear of; on_step and on_save may raise to stop, and nothing is lost.

    on_sample(step) is called with the adapter at work, when samples are due, on the first process,
    and with shard_weights on all. They are a display: what fails there is reported and the training
    continues, but for a pass of a sharded model, which ends the run.
    """

    on_step: Callable[[StepReport], None] = lambda _report: None
    on_save: Callable[[Path], None] = lambda _path: None
    on_sample: Callable[[int], None] | None = None


SILENT = Callbacks()


@dataclass(frozen=True)
class TrainResult:
    """The finished adapter and the loss of every update."""

    path: Path
    adapters: Adapters
    losses: list[float] = field(repr=False)


def check_run(config: TrainConfig) -> None:
    """Refuse before any model is loaded what `train` would refuse after; raises FramePackError."""
    config.check_name()
    training_attention(config.attn_mode)
    if config.shard_weights and launched_count() == 1:
        raise FramePackError(
            "shard_weights: one process has nobody to share with; start several by torchrun or "
            "accelerate launch, or leave it out"
        )
    learning_rates(config, config.steps)
    make_optimizer(config, [nn.Parameter(torch.zeros(1))])
    if config.resume:
        require_state(config.resumed_state)
    elif config.network_weights is not None:
        open_weights(config.network_weights)


def train(
    config: TrainConfig,
    denoiser: FlowDenoiser,
    batches: Batches,
    callbacks: Callbacks = SILENT,
    *,
    validation: Batches | None = None,
    device: torch.device | str = "cpu",
    metadata: Mapping[str, str] | None = None,
    base: str = "",
) -> TrainResult:
    """Train an adapter of the denoiser's DiT, whose own weights stay as they are.

    The adapter and all that resuming needs are on disk every `save_every_steps` and when the run
    ends, by itself, by an exception or by an interrupt. base: what `base_identity` says of the
    DiT. Raises FramePackError if the loss is not finite, with the state from before it saved, and
    if a run is to be resumed on another base or other data.
    """
    # A host may have turned gradients off for everything that it runs.
    place, config = torch.device(device), with_dim_of_weights(config)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        limited_memory(config.gpu_memory, place) as budget,
        Workers.joined(place, config.ddp_timeout, RESUMABLE) as workers,
    ):
        objective = Objective(config, denoiser, batches, place)
        run = _Run(objective, validation, metadata or {}, base, budget, workers)
        if config.quantized_matmul and not choose_products(denoiser.dit, place, denoiser.dtype):
            warn("quantized_matmul: no effect, as no weight of the model is quantised")
        blocks = wrapped_blocks(
            denoiser.dit,
            place,
            checkpointing=config.gradient_checkpointing,
            swapped=run.fit.swapped,
            inputs_to_cpu=run.fit.inputs_to_cpu,
            keep_attention=config.keep_attention,
            keep_blocks=config.keep_blocks,
            compilation=config.compilation if config.compile else None,
            team=Team(workers.rank, workers.count) if config.shard_weights else None,
        )
        if config.compile:
            prepare_compiling(config.compile_cache_size_limit)
        attention = use_attention(denoiser.dit, training_attention(config.attn_mode))
        with run.adapters.attached(denoiser.dit), blocks, attention, _cuda_settings(config):
            try:
                run.run(callbacks)
            except BaseException:
                run.save_on_error()
                raise
    return TrainResult(
        config.adapter_path, run.adapters, [e["loss"] for e in run.files.progress.log]
    )


@contextmanager
def _cuda_settings(config: TrainConfig) -> Iterator[None]:
    """What options say of PyTorch's own settings, for as long as the run lasts."""
    cuda: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    before = cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    if config.allow_tf32:
        cuda.allow_tf32 = cudnn.allow_tf32 = True
    if config.cudnn_benchmark:
        cudnn.benchmark = True
    try:
        yield
    finally:
        cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


class _Run:
    """A run in progress."""

    def __init__(
        self,
        objective: Objective,
        held_out: Batches | None,
        metadata: Mapping[str, str],
        base: str,
        budget: int | None,
        workers: Workers,
    ) -> None:
        self.objective, self.held_out = objective, held_out
        self.config, self.device = objective.config, objective.device
        config, batches = self.config, objective.batches
        if config.end_frame_prob and not any(sample.end for sample in batches.samples):
            raise FramePackError(
                "end_frame: no end frames are cached; cache the latents with end_frames, or set it "
                "to 0"
            )
        self.workers = workers
        dit = objective.denoiser.dit
        self.adapters = Adapters.create(dit, config.adapter).to(self.device)
        self.parameters = list(self.adapters.named_tensors().values())
        self.fit = self._fitted(budget)
        self.optimizer = make_optimizer(config, self.adapters.parameter_groups())
        self.total = config.total_steps(len(batches), self.workers.count)
        self.rate = learning_rates(config, self.total)
        self.epoch_steps = config.steps_an_epoch(len(batches), self.workers.count)
        names = [sample.latents.name for sample in batches.samples]
        digests = {"base": base, "data": fingerprint(names)}
        self.files = RunFiles(
            config,
            self.adapters,
            self.optimizer,
            {**config.model_dump(mode="json"), **digests},
            metadata,
            self.epoch_steps,
            self.workers.is_main,
        )
        self._pace: float | None = None
        self._between_updates = True  # what the weights are now may be saved

    def _fitted(self, budget: int | None) -> Fit:
        """As the options say, or what keeps to a budget of bytes."""
        config, dit = self.config, self.objective.denoiser.dit
        if budget is None:
            return Fit(config.blocks_to_swap, config.gradient_checkpointing_cpu_offload)
        number = self.objective.batches.largest()

        def step() -> None:
            with self.adapters.training_step(0):
                self.objective.loss(number, whole=True).backward()

        def trial(fit: Fit) -> int:
            blocks = wrapped_blocks(
                dit,
                self.device,
                checkpointing=True,
                swapped=fit.swapped,
                inputs_to_cpu=fit.inputs_to_cpu,
                keep_attention=config.keep_attention,
            )
            attention = use_attention(dit, training_attention(config.attn_mode))
            try:
                with self.adapters.attached(dit), blocks, attention:
                    return peak_of(step, self.device)
            finally:
                self.adapters.zero_grad(set_to_none=True)

        trained = sum(parameter.nbytes for parameter in self.parameters)
        fit = fit_step(dit, budget, trained, trial, self.device)
        say(f"within {budget / GIB:.1f} GiB of GPU memory: {fit}")
        return fit

    @property
    def step(self) -> int:
        """Updates done."""
        return self.files.progress.step

    def run(self, callbacks: Callbacks) -> None:
        """All updates that are left, with what is due after each."""
        if self.config.sample_at_first and self.step == 0:
            self._sample(callbacks)
        set_mode(self.optimizer, training=True)
        while self.step < self.total:
            callbacks.on_step(self._timed_update())
            self._after_step(callbacks)
        self._save(self.config.adapter_path, callbacks)

    def save_on_error(self) -> None:
        """Save what was reached, unless the weights are in the middle of an update."""
        if self._between_updates and self.files.behind:
            self._save(self.files.after_step(), SILENT)

    def _timed_update(self) -> StepReport:
        started = time.monotonic()
        loss, norm, rate = self._update()
        entry = {"step": self.step, "loss": loss, "rate": rate}
        if self.held_out is not None and self._due(self.config.validate_every_steps):
            with weights_in_use(self.optimizer):
                entry["validation"] = self.objective.validation(self.held_out)
        self.files.record(entry)
        return StepReport(
            self.step,
            self.total,
            self.step // self.epoch_steps,
            loss,
            rate,
            norm,
            self._keep_pace(time.monotonic() - started),
            entry.get("validation"),
        )

    def _keep_pace(self, seconds: float) -> float:
        """Seconds an update, smoothed; the first one is slow and counts until the next."""
        if self._pace is not None and self.step > 2:
            seconds = PACE * self._pace + (1 - PACE) * seconds
        self._pace = seconds
        return seconds

    def _update(self) -> tuple[float, float, float]:
        """Loss, gradient norm and learning rate of one update."""
        config, step = self.config, self.step
        total = torch.zeros((), device=self.device)
        count = config.gradient_accumulation_steps
        for i in range(count):
            number = (step * count + i) * self.workers.count + self.workers.rank
            with self.adapters.training_step(draw_seed("dropout", config.seed, number)):
                loss = self.objective.loss(number) / count
                if loss.requires_grad:  # module_dropout may have left out every layer
                    loss.backward()
            total += loss.detach()
        self._average(total)
        value = total.item()
        if not math.isfinite(value):
            raise FramePackError(
                f"step {step + 1}: the loss is {value}; train with a lower learning_rate, or check "
                "the clips and the precision of the model"
            )
        norm = self._clip()
        rate = self.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get(RATE_FACTOR, 1.0)
        self._between_updates = False
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if config.scale_weight_norms is not None:
            self.adapters.limit_norms(config.scale_weight_norms)
        self.files.progress.step += 1
        self._between_updates = True
        return value, norm, rate

    def _average(self, loss: Tensor) -> None:
        """The gradients and the loss become their means over the processes.

        By module_dropout a layer can have a gradient in some of them only; where none has one it
        stays without, as it would in one process that sees all batches.
        """
        if self.workers.count == 1:
            return
        found = [parameter.grad for parameter in self.parameters]
        pairs = zip(self.parameters, found, strict=True)
        gradients = [torch.zeros_like(p) if grad is None else grad for p, grad in pairs]
        used = torch.tensor([float(grad is not None) for grad in found], device=self.device)
        self.workers.average([*gradients, used, loss])
        shares = used.tolist()
        for parameter, gradient, share in zip(self.parameters, gradients, shares, strict=True):
            parameter.grad = gradient if share else None

    def _clip(self) -> float:
        limit = self.config.max_grad_norm or math.inf
        return float(nn.utils.clip_grad_norm_(self.parameters, limit))

    def _after_step(self, callbacks: Callbacks) -> None:
        config = self.config
        if self.step == self.total:
            if config.sample_every_steps or config.sample_every_epochs:
                self._sample(callbacks)
            return
        if self._due(config.save_every_steps):
            self._save(self.files.after_step(), callbacks)
        elif self._epoch_due(config.save_every_epochs):
            self._save(self.files.after_epoch(), callbacks)
        if self._due(config.sample_every_steps) or self._epoch_due(config.sample_every_epochs):
            self._sample(callbacks)

    def _due(self, every: int | None) -> bool:
        return every is not None and self.step % every == 0

    def _epoch_due(self, every: int | None) -> bool:
        return every is not None and self.step % (every * self.epoch_steps) == 0

    def _save(self, path: Path, callbacks: Callbacks) -> None:
        self.files.save(path)
        if self.workers.is_main:
            callbacks.on_save(path)

    def _sample(self, callbacks: Callbacks) -> None:
        together = self.config.shard_weights
        if callbacks.on_sample is None or not (together or self.workers.is_main):
            return
        # Other processes would wait for ever for the passes that one has left out.
        shown = nullcontext() if together else Display(f"samples of step {self.step}", "samples")
        with weights_in_use(self.optimizer), torch.no_grad(), shown:
            callbacks.on_sample(self.step)
