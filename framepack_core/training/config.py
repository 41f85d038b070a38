"""Every option of training, declared once: what is trained, on which noise, and what is saved.

Nothing here needs torch, so that `--help` and the schemas of nodes stay instant.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, SecretStr, model_validator

from ..models.compiling import CompileOptions
from ..runtime.errors import FramePackError
from ..runtime.files import check_file_name, is_file, is_folder
from ..runtime.options import RANDOM, Settings, leaves, option
from ..sampling.plan import GUIDANCE, TIME_SCALE

TrainMode = Literal["framepack", "f1", "one_frame"]
Kind = Literal["lora", "loha", "lokr"]
TimestepMode = Literal[
    "shift", "uniform", "sigmoid", "flux_shift", "logsnr", "sigma", "qinglong_flux"
]
Weighting = Literal["none", "logit_normal", "mode", "cosmap", "sigma_sqrt"]
Scheduler = Literal[
    "constant",
    "constant_with_warmup",  # the same: `constant` has a warmup too
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "rex",
    "cosine_with_min_lr",
    "inverse_sqrt",
    "warmup_stable_decay",
    "piecewise_constant",
    "adafactor",
]
ADAFACTOR = "adafactor"  # an optimizer, and the scheduler by which it finds its rate itself

TrainingAttention = Literal[
    "torch", "sdpa", "flash", "xformers", "sageattn", "flash3", "cudnn"
]  # in the order of the node's list

NETWORK_MODULES: dict[Kind, str] = {
    "lora": "networks.lora_framepack",
    "loha": "networks.loha",
    "lokr": "networks.lokr",
}
# Class path and the package that has it, by short name.
OPTIMIZERS: dict[str, tuple[str, str]] = {
    "adamw": ("torch.optim.AdamW", "torch"),
    "adamw8bit": ("bitsandbytes.optim.AdamW8bit", "bitsandbytes"),
    "pagedadamw8bit": ("bitsandbytes.optim.PagedAdamW8bit", "bitsandbytes"),
    "adafactor": ("transformers.optimization.Adafactor", "transformers"),
    "prodigy": ("prodigyopt.Prodigy", "prodigyopt"),
    "adamwschedulefree": ("schedulefree.AdamWScheduleFree", "schedulefree"),
}
# Endings of states: not one of those that ComfyUI lists among the LoRAs, as the earlier one is.
STATE, EARLIER_STATE = ".state", "-state.pt"
MAX_STEPS = 1_000_000  # and the ranges below: of widgets, which have to end somewhere
MAX_TRAINING_SEED = 2**32 - 1

SWAP_HELP = (
    "Block swap: of N, N // 2 double blocks and 2 (N - N // 2) + 1 single ones wait in main memory "
    "and visit the GPU one at a time; 38 leaves one of the 20 and one of the 40 there."
)
SPARING = ("blocks_to_swap", "gradient_checkpointing_cpu_offload")
LESS_MEMORY = (
    "say by --gpu_memory how much there is, or add --gradient_checkpointing, a smaller "
    "--batch_size or --blocks_to_swap 10 or more"
)


def _kind(value: Any) -> Any:
    """musubi-tuner names adapter types by modules."""
    return {module: kind for kind, module in NETWORK_MODULES.items()}.get(value, value)


def _dtype(value: Any) -> Any:
    """musubi-tuner's other name for fp32."""
    return "fp32" if value == "float" else value


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Patterns = Annotated[tuple[str, ...], BeforeValidator(_several)]


class AdapterConfig(Settings):
    """What is trained on which layers."""

    title: ClassVar[str] = "network"
    kind: Annotated[Kind, BeforeValidator(_kind)] = option(
        "lora",
        "Network type: LoRA, or its relatives of LyCORIS, LoHa and LoKr.",
        "network_module",
        node="network",
    )
    rank: int = option(
        32,
        "Rank (network dim): the size of the LoRA. 8 to 32 for a look or a motion, more for much "
        "to learn.",
        "network_dim",
        advanced=False,
        metadata="ss_network_dim",
        gt=0,
        high=1024,
        reference=4,
    )
    alpha: float = option(
        16.0,
        "Alpha: LoRA scale is alpha / rank. Half of the rank is usual.",
        "network_alpha",
        advanced=False,
        metadata="ss_network_alpha",
        gt=0,
        low=0.01,
        high=1024.0,
        step=0.5,
        reference=1.0,
    )
    dropout: float = option(
        0.0,
        "Dropout: share of the LoRA's inner values left out in each step.",
        "network_dropout",
        ge=0,
        lt=1,
        high=0.99,
    )
    rank_dropout: float = option(
        0.0,
        "Rank dropout: share of the ranks left out in each step; for LoHa and LoKr, of the output "
        "rows.",
        "network_args",
        pair="rank_dropout",
        ge=0,
        lt=1,
        high=0.99,
    )
    module_dropout: float = option(
        0.0,
        "Module dropout: share of the layers left out in each step.",
        "network_args",
        pair="module_dropout",
        ge=0,
        lt=1,
        high=0.99,
    )
    include: Patterns = option(
        (),
        "Include patterns: train only layers in whose name one of these regular expressions is "
        "found, with spaces between them, such as attn. Empty takes all of the blocks.",
        "network_args",
        pair="include_patterns",
    )
    exclude: Patterns = option(
        (),
        "Exclude patterns: leave out layers in whose name one of these is found.",
        "network_args",
        pair="exclude_patterns",
    )
    factor: int = option(
        -1,
        "LoKr factor: into what the sides of a weight are cut; -1 cuts them most evenly.",
        "network_args",
        pair="factor",
        node="",
    )

    loraplus: float | None = option(
        None,
        "LoRA+ ratio: how much faster the second factor of a LoRA learns, such as 4 to 16.",
        "network_args",
        pair="loraplus_lr_ratio",
        node="",
        gt=0,
    )

    @model_validator(mode="after")
    def _only_of_lora(self) -> AdapterConfig:
        if self.dropout and self.kind != "lora":
            raise ValueError(f"dropout: {self.kind} has none; use rank_dropout")
        if self.loraplus and self.kind != "lora":
            raise ValueError(f"loraplus_lr_ratio: {self.kind} has none; leave it out")
        return self


class Timesteps(Settings):
    """Which noise levels are trained, and how much each counts."""

    title: ClassVar[str] = "timesteps"
    mode: TimestepMode = option(
        "shift",
        "Timestep sampling: which noise levels are trained. flux_shift is nearest to what "
        "FramePack samples with.",
        "timestep_sampling",
        node="timestep_sampling",
        metadata="ss_timestep_sampling",
        reference="sigma",
    )
    shift: float = option(
        3.0,
        "Flow shift, of the timestep sampling shift: above 1 trains more at strong noise.",
        "discrete_flow_shift",
        metadata="ss_discrete_flow_shift",
        gt=0,
        low=0.01,
        high=100.0,
        reference=1.0,
    )
    weighting: Weighting = option(
        "none",
        "Weighting scheme: how much the loss of each noise level counts.",
        "weighting_scheme",
        metadata="ss_weighting_scheme",
    )
    sigmoid_scale: float = option(
        1.0,
        "Sigmoid scale, of the timestep samplings sigmoid, shift and flux_shift.",
        node="",
        metadata="ss_sigmoid_scale",
    )
    logit_mean: float = option(
        0.0, "Logit mean, of logsnr and logit_normal.", node="", metadata="ss_logit_mean"
    )
    logit_std: float = option(
        1.0, "Logit standard deviation, likewise.", node="", metadata="ss_logit_std"
    )
    mode_scale: float = option(
        1.29, "Mode scale, of the weighting scheme mode.", node="", metadata="ss_mode_scale"
    )
    min_timestep: float = option(
        0.0, "Minimum timestep: the least noise, 0 to 1000.", ge=0, le=TIME_SCALE
    )
    max_timestep: float = option(
        TIME_SCALE, "Maximum timestep: the most noise, 0 to 1000.", ge=0, le=TIME_SCALE
    )
    preserve_shape: bool = option(
        False,
        "Preserve distribution shape: draw again until a timestep lies between minimum and "
        "maximum, in place of squeezing all between them.",
        "preserve_distribution_shape",
        node="",
    )
    show: Literal["console"] | None = option(
        None,
        "Show timesteps: which ones 100000 draws are, for a section of 640x640, and end.",
        "show_timesteps",
        node="",
        mutable=True,
    )
    buckets: int | None = option(
        None,
        "Timestep buckets: spread timesteps evenly over so many parts of their distribution.",
        "num_timestep_buckets",
        node="",
        gt=0,
    )

    @model_validator(mode="after")
    def _range(self) -> Timesteps:
        if self.min_timestep >= self.max_timestep:
            raise ValueError(
                f"min_timestep, max_timestep: {self.min_timestep:g} to {self.max_timestep:g} is "
                "not a range from 0 to 1000"
            )
        return self


class CacheOptions(Settings):
    """What is encoded before training."""

    title: ClassVar[str] = "what is cached"
    only: Literal["latents", "text"] | None = option(
        None, "Only one of both, with its encoders alone.", node=""
    )
    end_frames: bool = option(
        False, "End frames: also keep each clip's last frame, to train with end_frame."
    )
    no_2x: bool = option(
        False, "No 2x context: for one-frame, leave out the blank one.", "one_frame_no_2x"
    )
    no_4x: bool = option(
        False, "No 4x context: for one-frame, leave out the blank one.", "one_frame_no_4x"
    )
    skip_existing: bool = option(
        True, "Skip existing: leave what is cached and still fits.", node="", reference=False
    )
    keep_cache: bool = option(
        True,
        "Keep caches of clips that are gone; without it they are removed, and no others.",
        node="",
        reference=False,
    )
    disable_cudnn_backend: bool = option(False, "No cuDNN, which may help on AMD's GPUs.", node="")


class RunOptions(Settings):
    """How long is trained, from where, and under which name."""

    title: ClassVar[str] = "run"
    output_dir: Path = option(
        Path("output"), "Output folder.", node="", metavar="DIR", mutable=True
    )
    output_name: str = option(
        "framepack-lora",
        "Output name: of the LoRA's file, without the ending.",
        initial="my_lora",
        advanced=False,
        metavar="NAME",
        mutable=True,
        metadata="ss_output_name",
        min_length=1,
    )
    resume: Path | bool = option(
        False,
        "Resume the run of this name from its state, or under a new name from a state file; base "
        "model, clips and settings must be the same.",
        bare=True,
        node="",
        metavar="STATE",
        mutable=True,
    )
    seed: int = option(
        42,
        "Seed: the same seed and settings train the same LoRA, bit-exact.",
        advanced=False,
        metadata="ss_seed",
        ge=0,
        high=MAX_TRAINING_SEED,
        reference=RANDOM,
    )
    steps: int = option(
        1600,
        "Training steps: updates of the LoRA. FramePack Dataset shows how many an epoch has.",
        "max_train_steps",
        advanced=False,
        mutable=True,
        gt=0,
        high=MAX_STEPS,
    )
    epochs: int | None = option(
        None,
        "Epochs: passes over all clips, in place of steps.",
        "max_train_epochs",
        none=0,
        mutable=True,
        gt=0,
        high=MAX_STEPS,
    )
    gradient_accumulation_steps: int = option(
        1,
        "Gradient accumulation steps: batches of which each update is the mean.",
        node="accumulation",
        metadata="ss_gradient_accumulation_steps",
        gt=0,
        high=1024,
    )
    ddp_timeout: int | None = option(
        None,
        "Timeout of several processes: how long they wait for each other.",
        unit="minutes",
        node="",
        absent="PyTorch's",
        mutable=True,
        gt=0,
    )
    network_weights: Path | None = option(
        None, "Network weights: a LoRA to start from.", node="", metavar="FILE"
    )
    dim_from_weights: bool = option(
        False, "Dim from weights: rank and alpha are those of the network weights.", node=""
    )
    training_comment: str = option(
        "",
        "Training comment: a text for the file's metadata.",
        node="",
        mutable=True,
        metadata="ss_training_comment",
    )

    @model_validator(mode="after")
    def _has_weights(self) -> RunOptions:
        if self.dim_from_weights and self.network_weights is None:
            raise ValueError("dim_from_weights: needs network_weights; name the file")
        return self


class OptimizerOptions(Settings):
    """How the weights follow the gradients."""

    title: ClassVar[str] = "optimizer"
    optimizer: str = option(
        "adamw",
        "Optimizer. adamw needs nothing more; the 8-bit ones, prodigy and schedule-free need their "
        "packages installed.",
        "optimizer_type",
        offered=tuple(OPTIMIZERS),
        metavar="NAME",
        metadata="ss_optimizer",
    )
    optimizer_args: dict[str, Any] = option(
        {},
        "Optimizer arguments: NAME=VALUE, with spaces between, such as weight_decay=0.1.",
    )
    learning_rate: float = option(
        2e-4,
        "Learning rate: 1e-4 to 3e-4 for adamw, 1 for prodigy.",
        advanced=False,
        metadata="ss_learning_rate",
        gt=0,
        low=1e-7,
        high=1.0,
        step=1e-6,
        reference=2e-6,
    )
    scheduler: Scheduler = option(
        "constant",
        "Learning rate scheduler: how the rate falls during the run.",
        "lr_scheduler",
    )
    scheduler_type: str = option(
        "",
        "Learning rate scheduler by class path, such as torch.optim.lr_scheduler.StepLR, or by its "
        "name there, in place of scheduler and warmup.",
        "lr_scheduler_type",
        node="",
        metavar="PATH",
    )
    scheduler_args: dict[str, Any] = option(
        {},
        "Arguments of either scheduler, such as step_size=100, rex_alpha=0.1 or, for "
        "piecewise_constant, step_rules=1:100,0.1.",
        "lr_scheduler_args",
        node="",
    )
    warmup: float = option(
        0.0,
        "Warmup steps, over which the learning rate rises; below 1 a share of all.",
        "lr_warmup_steps",
        metadata="ss_lr_warmup_steps",
        ge=0,
        high=1e6,
    )
    decay: float = option(
        0.0,
        "Decay steps, at the end of warmup_stable_decay; below 1 a share of all.",
        "lr_decay_steps",
        node="",
        ge=0,
    )
    cycles: int | None = option(
        None,
        "Cycles of cosine_with_restarts; of cosine_with_min_lr and warmup_stable_decay half waves.",
        "lr_scheduler_num_cycles",
        node="",
        absent="4 restarts, 1 half wave",
        gt=0,
        reference=1,
    )
    power: float | None = option(
        None,
        "Power of polynomial.",
        "lr_scheduler_power",
        node="",
        absent="2",
        reference=1.0,
    )
    timescale: int | None = option(
        None,
        "Timescale of inverse_sqrt: steps.",
        "lr_scheduler_timescale",
        node="",
        absent="the warmup's, or 10000",
        gt=0,
    )
    min_ratio: float | None = option(
        None,
        "Minimum learning rate ratio, of rex, cosine_with_min_lr and warmup_stable_decay: at which "
        "share of the learning rate they end.",
        "lr_scheduler_min_lr_ratio",
        node="",
        absent="0.01 for rex, 0 for warmup_stable_decay",
        ge=0,
        le=1,
    )
    max_grad_norm: float = option(
        1.0,
        "Gradient clipping: longer gradients are cut to this norm; 0 cuts none.",
        metadata="ss_max_grad_norm",
        ge=0,
        high=1000.0,
    )
    scale_weight_norms: float | None = option(
        None,
        "Scale weight norms: after each update the change of every layer is scaled down to this "
        "norm, such as 1.",
        node="",
        gt=0,
    )

    @model_validator(mode="after")
    def _schedules_itself(self) -> OptimizerOptions:
        if self.scheduler == ADAFACTOR and self.optimizer.lower() != ADAFACTOR:
            raise ValueError("lr_scheduler adafactor: needs the optimizer adafactor")
        return self


class ConditionOptions(Settings):
    """What the model sees besides noise."""

    title: ClassVar[str] = "conditioning"
    guidance: float = option(
        GUIDANCE,
        "Guidance scale, the distilled one, as in FramePack Sampler.",
        "guidance_scale",
        metadata="ss_guidance_scale",
        ge=0,
        high=100.0,
        reference=1.0,
    )
    caption_dropout: float = option(
        0.0, "Caption dropout: how often the caption is left out.", ge=0, lt=1, high=0.99
    )
    end_frame_prob: float = option(
        0.0,
        "End frame probability: how often the model sees the clip's end frame. Cache the latents "
        "with end_frames first.",
        "end_frame",
        node="end_frame",
        ge=0,
        le=1,
    )


class MemoryOptions(CompileOptions):
    """What is traded for memory and speed; nothing of it changes the result beyond rounding."""

    title: ClassVar[str] = "memory and speed"
    gradient_checkpointing: bool = option(
        True,
        "Gradient checkpointing: activations are computed twice instead of kept. Much less memory "
        "for a third more time.",
        mutable=True,
        metadata="ss_gradient_checkpointing",
        reference=False,
    )
    blocks_to_swap: int = option(
        0,
        f"{SWAP_HELP} 24 GB: 25 (fp8_scaled: 12), 16 GB: 38.",
        mutable=True,
        ge=0,
        le=60,
    )
    gradient_checkpointing_cpu_offload: bool = option(
        False,
        "CPU offload of activations: what gradient checkpointing keeps waits in main memory too. "
        "For 12 GB, with 37 blocks to swap.",
        mutable=True,
        metadata="ss_gradient_checkpointing_cpu_offload",
    )
    attn_mode: TrainingAttention = option(
        "torch",
        "Attention implementation: torch and sdpa are PyTorch's choice for this GPU; flash, flash3 "
        "and xformers need their packages. sageattn has no gradients and is refused.",
        "attn_mode",
        switches={
            "sdpa": ("sdpa", "SDPA: as --attn_mode sdpa."),
            "flash_attn": ("flash", "Flash attention: as --attn_mode flash."),
            "flash3": ("flash3", "Flash attention 3: as --attn_mode flash3."),
            "xformers": ("xformers", "xformers: as --attn_mode xformers."),
            "sage_attn": ("sageattn", "SageAttention: as --attn_mode sageattn."),
        },
        mutable=True,
    )
    compile: bool = option(
        False,
        "Compile with torch.compile: a tenth less time, after a minute at the first step. Rounds "
        "otherwise than without, so a resumed run keeps to it.",
    )
    allow_tf32: bool = option(
        False,
        "TF32 for products of fp32 numbers on the GPU: faster, rounds more.",
        "cuda_allow_tf32",
        node="",
    )
    cudnn_benchmark: bool = option(
        False,
        "cuDNN measures its convolutions, which only samples have.",
        "cuda_cudnn_benchmark",
        node="",
        mutable=True,
    )
    keep_attention: bool = option(
        False,
        "Selective checkpointing: attention is not computed again, for about a tenth less time. "
        "Keeps its outputs: 7 GB at 640x640.",
        mutable=True,
    )
    quantized_matmul: bool = option(
        False,
        "Quantized matmul: quantised weights are multiplied as they are where that is faster on "
        "this GPU. It rounds the inputs of layers to 8 bits, which no LoRA can learn away.",
        node="",
    )
    gpu_memory: float | None = option(
        None,
        "GPU memory: how much of it the run may take. How many blocks are swapped, and whether "
        "activations wait in main memory, is then found by a step on trial.",
        unit="GiB",
        none=0.0,
        absent="no limit",
        mutable=True,
        gt=0,
        high=1024.0,
    )
    keep_blocks: int = option(
        0,
        "Blocks without checkpointing: so many of the last ones that are not swapped keep all that "
        "their gradients need, about 2 GB each at 640x640, and are not computed again.",
        mutable=True,
        ge=0,
        le=60,
    )

    shard_weights: bool = option(
        False,
        "Shard weights: of several processes each keeps its part of every block, and all bring a "
        "block together while it works. For GPUs that cannot hold the model.",
        node="",
        mutable=True,
    )

    @model_validator(mode="after")
    def _checkpointing(self) -> MemoryOptions:
        if not self.gradient_checkpointing:
            spared = "keep_attention", "keep_blocks", "gpu_memory", "shard_weights"
            for name in (*SPARING, *spared):
                if getattr(self, name):
                    raise ValueError(f"{name}: needs gradient_checkpointing; turn it on")
        if self.gpu_memory and any(getattr(self, name) for name in SPARING):
            raise ValueError(f"gpu_memory: chooses {' and '.join(SPARING)} itself; leave them out")
        if self.shard_weights and (self.blocks_to_swap or self.gpu_memory):
            given = "blocks_to_swap" if self.blocks_to_swap else "gpu_memory"
            raise ValueError(f"shard_weights: cannot be combined with {given}; choose one")
        if self.gpu_memory and self.keep_blocks:
            raise ValueError("keep_blocks: needs all the memory there is; leave gpu_memory out")
        if self.changed and not self.compile:
            raise ValueError(f"{self.changed}: needs compile; turn it on")
        if self.keep_attention and self.attn_mode not in ("torch", "sdpa", "cudnn"):
            raise ValueError(
                "keep_attention: keeps PyTorch's own attention; set attn_mode to torch"
            )
        return self


class SavingOptions(Settings):
    """What is saved meanwhile, and what the loss is measured on."""

    title: ClassVar[str] = "saving"
    save_every_steps: int | None = option(
        250,
        "Save every n steps: a crash loses no more than this, and each save is a LoRA to compare.",
        "save_every_n_steps",
        advanced=False,
        mutable=True,
        gt=0,
        high=MAX_STEPS,
        reference=None,
    )
    save_every_epochs: int | None = option(
        None,
        "Save every n epochs, too.",
        "save_every_n_epochs",
        node="",
        mutable=True,
        gt=0,
    )
    keep_last: int | None = option(
        None,
        "Keep the last n of the numbered files.",
        "save_last_n",
        none=0,
        absent="to keep all",
        mutable=True,
        gt=0,
        high=1000,
    )
    keep_last_epochs: int | None = option(
        None,
        "Keep, of the files of epochs, the last n.",
        "save_last_n_epochs",
        node="",
        absent="to keep all",
        mutable=True,
        gt=0,
    )
    keep_last_steps: int | None = option(
        None,
        "Keep, of the files of steps, those of the last n steps.",
        "save_last_n_steps",
        node="",
        absent="to keep all",
        mutable=True,
        gt=0,
    )
    save_state: bool = option(
        False,
        "Save the state beside every numbered file, to resume from there. The last one is always "
        "saved.",
        node="",
        mutable=True,
    )
    keep_last_epoch_states: int | None = option(
        None,
        "Keep, of the states of epochs, the last n.",
        "save_last_n_epochs_state",
        node="",
        absent="as the files",
        mutable=True,
        gt=0,
    )
    keep_last_step_states: int | None = option(
        None,
        "Keep, of the states of steps, those of the last n steps.",
        "save_last_n_steps_state",
        node="",
        absent="as the files",
        mutable=True,
        gt=0,
    )
    save_dtype: Annotated[Literal["bf16", "fp16", "fp32"], BeforeValidator(_dtype)] = option(
        "bf16", "File dtype.", "save_precision", mutable=True, reference="fp32"
    )
    validation_clips: int = option(
        0,
        "Validation clips: how many are held out to measure the loss on; 0 is off.",
        ge=0,
        high=10_000,
    )
    validate_every_steps: int = option(
        100,
        "Validate every n steps.",
        "validate_every_n_steps",
        gt=0,
        high=MAX_STEPS,
    )


class LogOptions(Settings):
    """Where loss and rate are logged besides NAME-log.jsonl."""

    title: ClassVar[str] = "logs"
    log_with: Literal["tensorboard", "wandb", "all"] | None = option(
        None,
        "Loggers besides NAME-log.jsonl.",
        node="",
        absent="tensorboard where a folder is named, else none",
        mutable=True,
    )
    logging_dir: Path | None = option(
        None,
        "Folder of these logs.",
        node="",
        absent="logs in the output folder",
        metavar="DIR",
        mutable=True,
    )
    log_prefix: str = option(
        "", "Prefix of the name that the run's logs have in it.", node="", mutable=True
    )
    log_tracker_name: str = option(
        "",
        "Project of wandb; of tensorboard a folder in the run's.",
        node="",
        absent="framepack",
        mutable=True,
    )
    wandb_run_name: str = option(
        "", "Name of the run in wandb.", node="", absent="the output name", mutable=True
    )
    wandb_api_key: SecretStr | None = option(
        None, "API key of wandb; kept in no file.", node="", metavar="KEY", mutable=True
    )
    log_tracker_config: Path | None = option(
        None,
        "A .toml file whose table [wandb] has more arguments of wandb.init.",
        node="",
        metavar="FILE",
        mutable=True,
    )
    log_config: bool = option(False, "Log the settings too, but for paths.", node="", mutable=True)

    @property
    def loggers(self) -> tuple[str, ...]:
        """Their names."""
        if self.log_with == "all":
            return ("tensorboard", "wandb")
        found = self.log_with or (self.logging_dir and "tensorboard")
        return (found,) if found else ()


class MetadataOptions(Settings):
    """What a file says about itself, by the keys of modelspec."""

    title: ClassVar[str] = "metadata"
    no_metadata: bool = option(
        False,
        "No metadata but what the file needs to be read, its title and what is said here.",
        node="",
        mutable=True,
    )
    metadata_title: str = option(
        "",
        "Title.",
        node="",
        absent="the output name",
        mutable=True,
        metadata="modelspec.title",
    )
    metadata_author: str = option("", "Author.", node="", mutable=True, metadata="modelspec.author")
    metadata_description: str = option(
        "", "Description.", node="", mutable=True, metadata="modelspec.description"
    )
    metadata_license: str = option(
        "", "License.", node="", mutable=True, metadata="modelspec.license"
    )
    metadata_tags: str = option(
        "",
        "Tags, with commas between.",
        node="",
        mutable=True,
        metadata="modelspec.tags",
    )
    metadata_reso: str = option(
        "",
        "Resolution, such as 640 or 640,480.",
        node="",
        mutable=True,
        pattern=r"^(\d+(,\d+)?)?$",
    )
    metadata_arch: str = option("", "Architecture in place of framepack.", node="", mutable=True)


class SampleOptions(Settings):
    """When samples are made while training."""

    title: ClassVar[str] = "samples"
    sample_prompts: Path | None = option(
        None,
        "Sample prompts: a text with a prompt a line, or a .toml or .json file.",
        node="",
        metavar="FILE",
        mutable=True,
    )
    sample_every_steps: int | None = option(
        None,
        "Sample every n steps, and at the end.",
        "sample_every_n_steps",
        node="every_steps",
        initial=250,
        advanced=False,
        mutable=True,
        gt=0,
        high=MAX_STEPS,
    )
    sample_every_epochs: int | None = option(
        None,
        "Sample every n epochs, and at the end.",
        "sample_every_n_epochs",
        node="",
        mutable=True,
        gt=0,
    )
    sample_at_first: bool = option(
        False,
        "Sample before the first step too, to compare.",
        node="at_first",
        initial=True,
        advanced=False,
        mutable=True,
    )

    sample_flow_shift: float = option(
        0.0,
        "Flow shift of all samples; 0 takes each prompt's --fs, else that by its size, as for "
        "framepack generate.",
        node="",
        mutable=True,
        ge=0,
        reference=10.0,
    )

    @property
    def makes_samples(self) -> bool:
        """Whether any are due."""
        return bool(self.sample_every_steps or self.sample_every_epochs or self.sample_at_first)


# The fields of the last base come first.
class TrainConfig(
    SampleOptions,
    MetadataOptions,
    LogOptions,
    SavingOptions,
    MemoryOptions,
    ConditionOptions,
    OptimizerOptions,
    RunOptions,
):
    """How an adapter is trained; a run with the same settings and seed is bit-exact.

    mode: what the data set is cached for. steps counts updates, of gradient_accumulation_steps
    batches a process each; epochs, if given, wins over it.
    """

    mode: TrainMode = "framepack"
    adapter: AdapterConfig = AdapterConfig()
    timesteps: Timesteps = Timesteps()

    @model_validator(mode="after")
    def _norms_of_lora(self) -> TrainConfig:
        if self.scale_weight_norms and self.adapter.kind != "lora":
            raise ValueError(
                f"scale_weight_norms: {self.adapter.kind} has no two factors; leave it out"
            )
        return self

    def total_steps(self, batches: int, processes: int = 1) -> int:
        """Updates of the whole run, of `batches` an epoch."""
        return self.steps_of(self.steps_an_epoch(batches, processes))

    def steps_of(self, epoch_steps: int) -> int:
        """Updates of the whole run, of `epoch_steps` an epoch."""
        return self.steps if self.epochs is None else max(1, self.epochs * epoch_steps)

    def steps_an_epoch(self, batches: int, processes: int = 1) -> int:
        """Updates it takes to see everything once."""
        return -(-batches // (self.gradient_accumulation_steps * processes))

    def unused(self) -> set[str]:
        """Names of options that have no effect with the others as they are."""
        names: set[str] = set()
        if not self.loggers:
            names |= {"log_prefix", "log_tracker_name", "log_config"}
        if "wandb" not in self.loggers:
            names |= {"wandb_run_name", "wandb_api_key", "log_tracker_config"}
        if self.save_every_epochs is None:
            names |= {"keep_last_epochs", "keep_last_epoch_states"}
        if self.save_every_steps is None:
            names |= {"keep_last_steps", "keep_last_step_states"}
        if not self.save_state:
            names |= {"keep_last_epoch_states", "keep_last_step_states"}
        return names

    @property
    def sees_end(self) -> bool:
        """Whether the adapter teaches F1 what the original model knows: to see an end image."""
        return self.mode == "f1" and self.end_frame_prob > 0

    @property
    def shared(self) -> dict[str, Any]:
        """All settings that may be shown to others: no paths, and nothing secret."""
        found = (x for x in leaves(type(self)) if x.kind not in (Path, Path | bool, SecretStr))
        return {x.name: x.of(self) for x in found}

    @property
    def exists(self) -> bool:
        """Whether a run of this name left files, which a new one would replace."""
        own = self.adapter_path, self.state_path, self.earlier_state_path, self.log_path
        if any(map(os.path.lexists, own)):
            return True
        numbered = self.numbered
        folder = self.output_dir if is_folder(self.output_dir) else None
        return folder is not None and any(
            path.suffix == ".safetensors" and numbered.fullmatch(path.stem)
            for path in folder.iterdir()
        )

    @property
    def numbered(self) -> re.Pattern[str]:
        """The stems of what it saves on the way, after so many steps or epochs."""
        number = r"step(?P<step>\d{8})|(?P<epoch>\d{6})"
        return re.compile(f"{re.escape(self.output_name)}-(?:{number})")

    def check_name(self) -> None:
        """Refuse to write over a run, and a name that no file can have; raises FramePackError."""
        check_file_name(f"{self.output_name}-step00000000.safetensors", "output_name")
        own = map(os.path.abspath, (self.state_path, self.earlier_state_path))
        continues = self.resume and os.path.abspath(self.resumed_state) in own
        if self.exists and not continues:
            raise FramePackError(
                f"{self.adapter_path}: this run is there already; resume it, or give another "
                "output_name"
            )

    @property
    def resumed_state(self) -> Path:
        """What it resumes from."""
        if not isinstance(self.resume, Path):
            earlier = self.earlier_state_path
            return earlier if is_file(earlier) and not is_file(self.state_path) else self.state_path
        # musubi-tuner's states are folders: NAME-state.
        name = self.resume.name
        for file in (f"{name.removesuffix('-state')}{STATE}", f"{name}.pt"):
            if is_file(self.resume.with_name(file)):
                return self.resume.with_name(file)
        return self.resume

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
        """What a stopped run resumes from."""
        return self.output_dir / f"{self.output_name}{STATE}"

    @property
    def earlier_state_path(self) -> Path:
        """What it was called before."""
        return self.output_dir / f"{self.output_name}{EARLIER_STATE}"

    @property
    def log_path(self) -> Path:
        """A line of JSON for every update."""
        return self.output_dir / f"{self.output_name}-log.jsonl"
