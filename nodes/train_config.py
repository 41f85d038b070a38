"""How a LoRA is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from comfy_api.latest import io

from ..framepack_core.sampling.flow import GUIDANCE, TIME_SCALE
from ..framepack_core.training.adapters import AdapterConfig, Kind
from ..framepack_core.training.config import TrainConfig
from ..framepack_core.training.schedules import OPTIMIZERS, Scheduler
from ..framepack_core.training.settings import parse_pairs, validate
from ..framepack_core.training.timesteps import TimestepMode, Timesteps, Weighting
from .dataset import TRAINING
from .types import TrainConfigSocket, advanced, schema

AS_LOADED, FP8_SCALED = "as loaded", "fp8_scaled"
MAX_SEED = 2**32 - 1
MAX_STEPS = 1_000_000


@dataclass(frozen=True)
class TrainSettings:
    """A run's settings before it has a name and a place; base: the precision of the model."""

    config: TrainConfig
    base: str


class MakeTrainConfig(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelTrainConfig",
            display_name="FramePack Train Config",
            category=TRAINING,
            description="The settings of a training run. The defaults suit a LoRA of a person, a "
            "style or a motion from 10 to 50 clips.",
            search_aliases=["lora settings", "learning rate", "rank", "network dim", "optimizer"],
            inputs=[*_basic_inputs(), *map(advanced, _advanced_inputs())],
            outputs=[TrainConfigSocket.Output(display_name="config")],
        )

    @classmethod
    def execute(cls, base_precision: str = AS_LOADED, **settings: Any) -> io.NodeOutput:
        return io.NodeOutput(TrainSettings(make_config(settings), base_precision))


def make_config(settings: Mapping[str, Any]) -> TrainConfig:
    """The core's settings of the node's: zeros where the core has None, texts in place of lists."""
    values = dict(settings)
    for name in ("epochs", "keep_last"):
        values[name] = values.get(name) or None
    arguments = values.pop("optimizer_args", "").split()
    values["optimizer_args"] = parse_pairs(arguments, "optimizer_args")
    for name in ("include", "exclude"):
        values[name] = tuple(values.pop(name, "").split())
    values["kind"] = values.pop("network", "lora")
    adapter = _taken(values, AdapterConfig)
    values["mode"] = values.pop("timestep_sampling", "shift")
    timesteps = _taken(values, Timesteps)
    values |= {"output_dir": Path(), "adapter": adapter, "timesteps": timesteps}
    return validate(TrainConfig, values, "FramePack Train Config")


def _taken(values: dict[str, Any], kind: Any) -> dict[str, Any]:
    """Take out of `values` those that are fields of a dataclass."""
    return {field.name: values.pop(field.name) for field in fields(kind) if field.name in values}


def _basic_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "steps",
            default=1600,
            min=1,
            max=MAX_STEPS,
            tooltip="Updates of the LoRA. FramePack Dataset shows how many an epoch has.",
        ),
        io.Float.Input(
            "learning_rate",
            default=2e-4,
            min=1e-7,
            max=1.0,
            step=1e-6,
            tooltip="How far each update goes: 1e-4 to 3e-4 for adamw, 1 for prodigy.",
        ),
        io.Int.Input(
            "rank",
            default=32,
            min=1,
            max=1024,
            tooltip="Size of the LoRA: 8 to 32 for a look or a motion, more for much to learn.",
        ),
        io.Float.Input(
            "alpha",
            default=16.0,
            min=0.01,
            max=1024.0,
            step=0.5,
            tooltip="The LoRA counts alpha / rank: half of the rank is usual.",
        ),
        io.Int.Input(
            "save_every_steps",
            default=250,
            min=1,
            max=MAX_STEPS,
            tooltip="A crash loses no more than this; each save is a LoRA of its own to compare.",
        ),
        io.Int.Input(
            "seed",
            default=42,
            min=0,
            max=MAX_SEED,
            control_after_generate=False,  # the interface adds it to all that is named so
            tooltip="The same seed and settings train the same LoRA, to the bit.",
        ),
    ]


def _advanced_inputs() -> list[io.WidgetInput]:
    return [
        *_network_inputs(),
        *_optimizer_inputs(),
        *_noise_inputs(),
        *_condition_inputs(),
        *_memory_inputs(),
        *_check_inputs(),
    ]


def _choice(name: str, options: Any, tooltip: str) -> io.WidgetInput:
    options = list(options)
    return io.Combo.Input(name, options=options, default=options[0], optional=True, tooltip=tooltip)


def _number(name: str, default: float, low: float, high: float, tooltip: str) -> io.WidgetInput:
    if isinstance(default, int):
        return io.Int.Input(
            name, default=default, min=int(low), max=int(high), optional=True, tooltip=tooltip
        )
    return io.Float.Input(
        name, default=default, min=low, max=high, step=0.001, optional=True, tooltip=tooltip
    )


def _text(name: str, tooltip: str) -> io.WidgetInput:
    return io.String.Input(name, default="", optional=True, tooltip=tooltip)


def _network_inputs() -> list[io.WidgetInput]:
    return [
        _choice("network", get_args(Kind), "lora, or its relatives of LyCORIS: loha, lokr."),
        _number("dropout", 0.0, 0.0, 0.99, "Share of the LoRA's inner values left out a step."),
        _number("rank_dropout", 0.0, 0.0, 0.99, "Share of the ranks left out a step."),
        _number("module_dropout", 0.0, 0.0, 0.99, "Share of the layers left out a step."),
        _text(
            "include",
            "Only layers in whose name one of these regular expressions is found, with spaces "
            "between them, such as attn. Empty takes all of the blocks.",
        ),
        _text("exclude", "Not the layers in whose name one of these is found."),
    ]


def _optimizer_inputs() -> list[io.WidgetInput]:
    return [
        _choice(
            "optimizer",
            OPTIMIZERS,
            "adamw needs nothing more; the 8-bit ones, prodigy and schedule-free need their "
            "packages installed.",
        ),
        _text("optimizer_args", "NAME=VALUE, with spaces between, such as weight_decay=0.1."),
        _choice("scheduler", get_args(Scheduler), "How the learning rate falls during the run."),
        _number(
            "warmup", 0.0, 0.0, 1e6, "Steps over which the rate rises; below 1 a share of all."
        ),
        _number("accumulation", 1, 1, 1024, "Batches an update is the mean of."),
        _number("max_grad_norm", 1.0, 0.0, 1000.0, "Longer gradients are cut; 0 cuts none."),
        _number("epochs", 0, 0, MAX_STEPS, "Passes over all clips in place of steps; 0 is off."),
    ]


def _noise_inputs() -> list[io.WidgetInput]:
    return [
        _choice(
            "timestep_sampling",
            ["shift", *(mode for mode in get_args(TimestepMode) if mode != "shift")],
            "Which noise levels are trained; flux_shift is nearest to what FramePack samples with.",
        ),
        _number("shift", 3.0, 0.01, 100.0, "Of shift: above 1 trains more at strong noise."),
        _choice("weighting", get_args(Weighting), "How much each noise level counts."),
        _number("min_timestep", 0.0, 0.0, TIME_SCALE, "The least noise, 0 to 1000."),
        _number("max_timestep", TIME_SCALE, 0.0, TIME_SCALE, "The most noise, 0 to 1000."),
    ]


def _condition_inputs() -> list[io.WidgetInput]:
    return [
        _number("guidance", GUIDANCE, 0.0, 100.0, "The distilled scale, as FramePack Sampler's."),
        _number("caption_dropout", 0.0, 0.0, 0.99, "How often the caption is left out."),
        _number(
            "end_frame",
            0.0,
            0.0,
            1.0,
            "How often the model sees the clip's end frame; cache with end_frames first.",
        ),
    ]


def _memory_inputs() -> list[io.WidgetInput]:
    return [
        io.Boolean.Input(
            "gradient_checkpointing",
            default=True,
            optional=True,
            tooltip="Much less memory for a third more time.",
        ),
        _number(
            "blocks_to_swap",
            0,
            0,
            60,
            "How many of the 60 blocks wait in main memory and come while others compute. "
            "24 GB: 46 (fp8_scaled: 27), 16 GB: 59.",
        ),
        io.Boolean.Input(
            "gradient_checkpointing_cpu_offload",
            default=False,
            optional=True,
            tooltip="What checkpointing keeps waits in main memory too: for 12 GB, with 57 blocks.",
        ),
        _choice(
            "base_precision",
            (AS_LOADED, FP8_SCALED),
            "Of the model below the LoRA: fp8_scaled needs two thirds of the memory of bf16.",
        ),
    ]


def _check_inputs() -> list[io.WidgetInput]:
    return [
        _number("keep_last", 0, 0, 1000, "How many of the saves in between stay; 0 keeps all."),
        _choice("save_dtype", ("bf16", "fp16", "fp32"), "Number type of the file."),
        _number(
            "validation_clips", 0, 0, 10_000, "Clips held out to measure the loss on; 0 is off."
        ),
        _number("validate_every_steps", 100, 1, MAX_STEPS, "How often that is measured."),
    ]
