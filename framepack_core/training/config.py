"""Settings of a training run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from ..runtime.errors import FramePackError
from ..sampling.flow import GUIDANCE
from .adapters import AdapterConfig
from .dataset import TrainMode
from .schedules import Scheduler, library_rates, rate_factor
from .settings import Settings
from .timesteps import Timesteps


class TrainConfig(Settings):
    """How an adapter is trained; a run with the same settings and seed is the same to the bit.

    steps counts updates, of `accumulation` batches a process each; epochs, if given, wins over it.
    scheduler_type: the class path of another scheduler, in place of scheduler and warmup. warmup:
    updates, or below 1 a share of them. guidance: the distilled scale, as in inference.
    caption_dropout, end_frame: how often the caption is left out, and how often the end frame is
    shown (its latents must be cached). network_weights: an adapter to start from. blocks_to_swap:
    how many blocks wait on the CPU; gradient_checkpointing_cpu_offload: so does the input of every
    block. validation_clips: how many clips are held out. keep_last: how
    many of the numbered files stay.
    """

    output_dir: Path
    output_name: str = Field("framepack-lora", min_length=1, pattern=r"^[^/\\]+$")
    mode: TrainMode = "framepack"
    seed: NonNegativeInt = 42
    steps: PositiveInt = 1600
    epochs: PositiveInt | None = None
    adapter: AdapterConfig = AdapterConfig()
    network_weights: Path | None = None
    timesteps: Timesteps = Timesteps()
    guidance: NonNegativeFloat = GUIDANCE
    caption_dropout: float = Field(0.0, ge=0, lt=1)
    end_frame: float = Field(0.0, ge=0, le=1)

    optimizer: str = "adamw"
    optimizer_args: dict[str, Any] = Field(default_factory=dict)
    learning_rate: PositiveFloat = 2e-4
    scheduler: Scheduler = "constant"
    scheduler_type: str = ""
    scheduler_args: dict[str, Any] = Field(default_factory=dict)
    warmup: NonNegativeFloat = 0
    accumulation: PositiveInt = 1
    max_grad_norm: NonNegativeFloat = 1.0
    gradient_checkpointing: bool = True
    gradient_checkpointing_cpu_offload: bool = False
    blocks_to_swap: NonNegativeInt = 0

    save_every_steps: PositiveInt | None = 250
    save_every_epochs: PositiveInt | None = None
    keep_last: PositiveInt | None = None
    save_dtype: str = "bf16"
    validation_clips: NonNegativeInt = 0
    validate_every_steps: PositiveInt = 100
    sample_every_steps: PositiveInt | None = None
    sample_every_epochs: PositiveInt | None = None
    sample_at_first: bool = False
    resume: bool = False

    def total_steps(self, batches: int, processes: int = 1) -> int:
        """Updates of the whole run, of `batches` an epoch."""
        if self.epochs is None:
            return self.steps
        return max(1, self.epochs * self.steps_an_epoch(batches, processes))

    def steps_an_epoch(self, batches: int, processes: int = 1) -> int:
        """Updates it takes to see everything once."""
        return -(-batches // (self.accumulation * processes))

    def rates(self, total: int) -> Callable[[int], float]:
        """The learning rate of an update, 0 first."""
        if self.scheduler_type:
            factor = library_rates(self.scheduler_type, self.scheduler_args)
            return lambda step: self.learning_rate * factor(step)
        return lambda step: (
            self.learning_rate * rate_factor(self.scheduler, step, total, self.warmup)
        )

    @property
    def exists(self) -> bool:
        """Whether a run of this name left files, which a new one would replace."""
        return self.adapter_path.exists() or self.state_path.exists()

    def check_name(self) -> None:
        """Refuse to write over a run; raises FramePackError."""
        if self.exists and not self.resume:
            raise FramePackError(
                f"{self.adapter_path}: this run is there already; resume it, or give another "
                "output_name"
            )

    def renamed(self) -> TrainConfig:
        """The same under the first name, by a number behind it, that no run has yet."""
        found, number = self, 1
        while found.exists:
            number += 1
            found = self.model_copy(update={"output_name": f"{self.output_name}_{number}"})
        return found

    @property
    def adapter_path(self) -> Path:
        """The finished adapter."""
        return self.output_dir / f"{self.output_name}.safetensors"

    @property
    def state_path(self) -> Path:
        """What a stopped run goes on from."""
        return self.output_dir / f"{self.output_name}-state.pt"

    @property
    def log_path(self) -> Path:
        """A line of JSON for every update."""
        return self.output_dir / f"{self.output_name}-log.jsonl"
