"""How a LoRA is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..framepack_core.training.config import TrainConfig
from ..framepack_core.weights.precisions import STATED
from .dataset import TRAINING
from .option_inputs import option_inputs, other_names, read_inputs
from .types import TrainConfigSocket, advanced, schema

AS_LOADED, FP8_SCALED = "as loaded", "fp8_scaled"
# Names in the order of their widgets: saved workflows hold values by position. An option that is in
# neither list comes last.
BASIC = ("steps", "learning_rate", "rank", "alpha", "save_every_steps", "seed")
ADVANCED = (
    *("network", "dropout", "rank_dropout", "module_dropout", "include", "exclude"),
    *("optimizer", "optimizer_args", "scheduler", "warmup", "accumulation", "max_grad_norm"),
    *("epochs", "timestep_sampling", "shift", "weighting", "min_timestep", "max_timestep"),
    *("guidance", "caption_dropout", "end_frame"),
    *("gradient_checkpointing", "blocks_to_swap", "gradient_checkpointing_cpu_offload"),
)
ELSEWHERE = ("output_name", "every_steps", "at_first")  # inputs of other nodes
LAST = ("keep_last", "save_dtype", "validation_clips", "validate_every_steps")


@dataclass(frozen=True)
class TrainSettings:
    """A run's settings before it has a name and a place; base: the precision of the model."""

    config: TrainConfig
    base: str


class MakeTrainConfig(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        newer = other_names(TrainConfig, BASIC, ADVANCED, LAST, ELSEWHERE)
        return schema(
            node_id="FPReelTrainConfig",
            display_name="FramePack Train Config",
            category=TRAINING,
            description="The settings of a training run. The defaults suit a LoRA of a person, a "
            "style or a motion from 10 to 50 clips.",
            search_aliases=["lora settings", "learning rate", "rank", "network dim", "optimizer"],
            inputs=[
                *option_inputs(TrainConfig, BASIC, optional=False),
                *option_inputs(TrainConfig, ADVANCED),
                _base_precision(),
                *option_inputs(TrainConfig, [*LAST, *newer]),
            ],
            outputs=[TrainConfigSocket.Output(display_name="config")],
        )

    @classmethod
    def execute(cls, base_precision: str = AS_LOADED, **settings: Any) -> io.NodeOutput:
        config = read_inputs(TrainConfig, settings, "FramePack Train Config")
        return io.NodeOutput(TrainSettings(config, base_precision))


def _base_precision() -> io.WidgetInput:
    return advanced(
        io.Combo.Input(
            "base_precision",
            options=[AS_LOADED, FP8_SCALED, *STATED],
            default=AS_LOADED,
            optional=True,
            tooltip="Precision of the model below the LoRA: fp8_scaled needs two thirds of the "
            "memory of bf16.",
        )
    )
