"""The training loop: one function over settings, a denoiser and batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..runtime.device import parse_dtype
from ..runtime.display import Display
from ..runtime.distributed import Workers
from ..runtime.errors import FramePackError
from ..runtime.fingerprint import fingerprint
from ..sampling.flow import FlowDenoiser, Guided
from ..weights.files import open_weights, save_weights
from .adapters import Adapters
from .batches import Batch, Batches
from .blocks import wrapped_blocks
from .checkpoint import Progress, append_log, load_state, save_state, write_log
from .config import TrainConfig
from .metadata import adapter_metadata
from .rng import draw_seed, generator
from .schedules import learning_rates, make_optimizer
from .timesteps import NoiseLevels, loss_weight

PACE = 0.9  # how much of the pace of updates is remembered
VALIDATION_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)


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

    on_sample(step) is called with the adapter at work, when samples are due. They are a display:
    what fails there is reported and the training continues.
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
    with torch.inference_mode(False), torch.enable_grad():
        place = torch.device(device)
        run = _Run(config, denoiser, batches, validation, place, metadata or {}, base)
        blocks = wrapped_blocks(
            denoiser.dit,
            place,
            checkpointing=config.gradient_checkpointing,
            swapped=config.blocks_to_swap,
            inputs_to_cpu=config.gradient_checkpointing_cpu_offload,
        )
        with run.adapters.attached(denoiser.dit), blocks:
            try:
                run.run(callbacks)
            except BaseException:
                run.save_on_error()
                raise
    run.workers.leave()
    return TrainResult(config.adapter_path, run.adapters, [e["loss"] for e in run.progress.log])


class _Run:
    """A run in progress."""

    def __init__(
        self,
        config: TrainConfig,
        denoiser: FlowDenoiser,
        batches: Batches,
        validation: Batches | None,
        device: torch.device,
        metadata: Mapping[str, str],
        base: str,
    ) -> None:
        self.config, self.denoiser, self.batches = config, denoiser, batches
        self.validation, self.device, self.metadata = validation, device, metadata
        if config.end_frame_prob and not any(sample.end for sample in batches.samples):
            raise FramePackError(
                "end_frame: no end frames are cached; cache the latents with end_frames, or set it "
                "to 0"
            )
        self.workers = Workers.join(device)
        self.adapters = Adapters.create(denoiser.dit, config.adapter).to(device)
        self.parameters = list(self.adapters.named_tensors().values())
        self.optimizer = make_optimizer(
            config.optimizer, self.parameters, config.learning_rate, config.optimizer_args
        )
        self.total = config.total_steps(len(batches), self.workers.count)
        self.rate = learning_rates(config, self.total)
        self.levels = NoiseLevels(config.timesteps)
        self.epoch_steps = config.steps_an_epoch(len(batches), self.workers.count)
        names = [sample.latents.name for sample in batches.samples]
        digests = {"base": base, "data": fingerprint(names)}
        self.settings = {**config.model_dump(mode="json"), **digests}
        self.progress = self._start()
        self._saved = self.progress.step
        self._pace: float | None = None
        self._loss_log = Display("log of losses")
        self._between_updates = True  # what the weights are now may be saved

    def _start(self) -> Progress:
        if self.config.resume:
            progress = load_state(
                self.config.state_path, self.adapters, self.optimizer, self.settings
            )
        else:
            self.config.check_name()
            progress = Progress()
            if self.config.network_weights is not None:
                self.adapters.load_tensors(open_weights(self.config.network_weights))
        if self.workers.is_main:
            write_log(self.config.log_path, progress.log)
        return progress

    def run(self, callbacks: Callbacks) -> None:
        if self.config.sample_at_first and self.progress.step == 0:
            self._sample(callbacks)
        _set_mode(self.optimizer, training=True)
        while self.progress.step < self.total:
            started = time.monotonic()
            loss, norm, rate = self._update()
            entry = {"step": self.progress.step, "loss": loss, "rate": rate}
            if self._due(self.config.validate_every_steps) and self.validation is not None:
                entry["validation"] = self._validate()
            self._record(entry)
            report = StepReport(
                self.progress.step,
                self.total,
                self.progress.step // self.epoch_steps,
                loss,
                rate,
                norm,
                self._keep_pace(time.monotonic() - started),
                entry.get("validation"),
            )
            callbacks.on_step(report)
            self._after_step(callbacks)
        self._save(self.config.adapter_path, callbacks)

    def _keep_pace(self, seconds: float) -> float:
        """Seconds an update, smoothed; the first one is slow and counts until the next."""
        first = self._pace is None or self.progress.step <= 2
        self._pace = seconds if first else PACE * self._pace + (1 - PACE) * seconds
        return self._pace

    def save_on_error(self) -> None:
        """Save what was reached, unless the weights are in the middle of an update."""
        if self._between_updates and self.progress.step > self._saved:
            path = self._numbered(f"step{self.progress.step:08d}")
            self._save(path, Callbacks())

    # --- an update --------------------------------------------------------------------------------

    def _update(self) -> tuple[float, float, float]:
        """Loss, gradient norm and learning rate of one update."""
        config, step = self.config, self.progress.step
        total = torch.zeros((), device=self.device)
        count = config.gradient_accumulation_steps
        for i in range(count):
            number = (step * count + i) * self.workers.count + self.workers.rank
            with self.adapters.training_step(draw_seed("dropout", config.seed, number)):
                loss = self._loss(self._batch(number), number) / count
                loss.backward()
            total += loss.detach()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        self.workers.average([*gradients, total])
        value = total.item()
        if not math.isfinite(value):
            raise FramePackError(
                f"step {step + 1}: the loss is {value}; train with a lower learning_rate, or check "
                "the clips and the precision of the model"
            )
        norm = self._clip()
        rate = self.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._between_updates = False
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        self._between_updates = True
        return value, norm, rate

    def _clip(self) -> float:
        limit = self.config.max_grad_norm or math.inf
        return float(nn.utils.clip_grad_norm_(self.parameters, limit))

    def _batch(self, number: int) -> Batch:
        count = len(self.batches.pick(number))
        seed = self.config.seed
        captions = torch.rand(count, generator=generator("captions", seed, number))
        ends = torch.rand(count, generator=generator("ends", seed, number))
        dropped = (captions < self.config.caption_dropout).tolist()
        ended = (ends < self.config.end_frame_prob).tolist()
        return self.batches.load(number, dropped, ended).to(self.device)

    def _loss(self, batch: Batch, number: int) -> Tensor:
        """The weighted loss of a batch, at the noise that belongs to its number."""
        sigma = self.levels.draw(len(batch.latents), batch.shape, self.config.seed, number)
        noise = torch.randn(
            batch.latents.shape, generator=generator("noise", self.config.seed, number)
        )
        loss = self._loss_at(batch, noise, sigma)
        weight = loss_weight(sigma, self.config.timesteps.weighting)
        return (loss if weight is None else loss * weight.to(self.device)).mean()

    def _loss_at(self, batch: Batch, noise: Tensor, sigma: Tensor) -> Tensor:
        return self.denoiser.loss(
            batch.latents,
            noise.to(self.device),
            sigma.to(self.device),
            Guided(batch.text, batch.image_embeds, self.config.guidance),
            latent_indices=batch.latent_indices,
            context=batch.context,
        )

    @torch.no_grad()
    def _validate(self) -> float:
        """The mean loss over the held-out clips, at the same noise and levels every time."""
        assert self.validation is not None
        losses = []
        _set_mode(self.optimizer, training=False)
        for number in range(len(self.validation)):
            batch = self.validation.load(number).to(self.device)
            draws = generator("validation", self.config.seed, number)
            noise = torch.randn(batch.latents.shape, generator=draws)
            for level in VALIDATION_LEVELS:
                sigma = torch.full((len(batch.latents),), level)
                losses.append(self._loss_at(batch, noise, sigma).mean().item())
        _set_mode(self.optimizer, training=True)
        return sum(losses) / len(losses)

    # --- files ------------------------------------------------------------------------------------

    def _record(self, entry: dict[str, float]) -> None:
        self.progress.log.append(entry)
        if self.workers.is_main:
            with self._loss_log:
                append_log(self.config.log_path, entry)

    def _after_step(self, callbacks: Callbacks) -> None:
        config, step = self.config, self.progress.step
        if step == self.total:
            if config.sample_every_steps or config.sample_every_epochs:
                self._sample(callbacks)
            return
        if self._due(config.save_every_steps):
            self._save(self._numbered(f"step{step:08d}"), callbacks)
        elif self._epoch_due(config.save_every_epochs):
            self._save(self._numbered(f"{step // self.epoch_steps:06d}"), callbacks)
        if self._due(config.sample_every_steps) or self._epoch_due(config.sample_every_epochs):
            self._sample(callbacks)

    def _due(self, every: int | None) -> bool:
        return every is not None and self.progress.step % every == 0

    def _epoch_due(self, every: int | None) -> bool:
        return every is not None and self.progress.step % (every * self.epoch_steps) == 0

    def _numbered(self, number: str) -> Path:
        return self.config.output_dir / f"{self.config.output_name}-{number}.safetensors"

    def _save(self, path: Path, callbacks: Callbacks) -> None:
        """The adapter first, then the state: whichever a crash leaves is whole."""
        if not self.workers.is_main:
            self._saved = self.progress.step
            return
        _set_mode(self.optimizer, training=False)
        tensors = self.adapters.file_tensors(parse_dtype(self.config.save_dtype))
        _set_mode(self.optimizer, training=True)
        about = adapter_metadata(self.config, self.epoch_steps, self.progress.step)
        save_weights(path, tensors, {**about, **self.metadata})
        save_state(
            self.config.state_path, self.progress, self.adapters, self.optimizer, self.settings
        )
        self._saved = self.progress.step
        self._drop_old()
        callbacks.on_save(path)

    def _drop_old(self) -> None:
        """Remove numbered files of this run beyond the last few."""
        if self.config.keep_last is None:
            return
        files = [
            path
            for path in self.config.output_dir.glob("*.safetensors")
            if self.config.numbered.fullmatch(path.stem)
        ]
        files.sort(key=lambda path: path.stat().st_mtime_ns)
        for path in files[: -self.config.keep_last]:
            path.unlink()

    def _sample(self, callbacks: Callbacks) -> None:
        if callbacks.on_sample is None or not self.workers.is_main:
            return
        _set_mode(self.optimizer, training=False)
        with torch.no_grad(), Display(f"samples of step {self.progress.step}", "samples"):
            callbacks.on_sample(self.progress.step)
        _set_mode(self.optimizer, training=True)


def _set_mode(optimizer: Optimizer, *, training: bool) -> None:
    """Schedule-free optimisers keep two sets of weights, one to train and one to use."""
    change = getattr(optimizer, "train" if training else "eval", None)
    if change is not None:
        change()
