"""The node that trains a LoRA: what is wrong with its inputs, and where the run has its place."""

from __future__ import annotations

import os
from typing import Any, cast

from comfy_api.latest import io

from ..framepack_core.runtime.device import parse_dtype
from ..framepack_core.runtime.errors import FramePackError
from ..framepack_core.runtime.files import is_file
from ..framepack_core.training.config import TrainConfig
from ..framepack_core.weights.precisions import Precision
from .comfyui.paths import lora_folder, output_folder
from .comfyui.section_run import check_mode, check_model
from .comfyui.train import train_lora
from .comfyui.train_display import TrainingDisplay
from .comfyui.train_samples import Samples
from .dataset import TRAINING, Dataset
from .option_inputs import option_inputs
from .train_config import AS_LOADED, TrainSettings
from .types import (
    DatasetSocket,
    LoraModelSocket,
    LossMapSocket,
    SamplePromptsSocket,
    TrainConfigSocket,
    schema,
)

OUTPUT, LORAS = "output/loras", "models/loras"
RESUME, NUMBER = "resume", "new name"


class TrainLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelTrainLora",
            display_name="FramePack Train LoRA",
            category=TRAINING,
            description="Trains a LoRA for FramePack, F1 or one-frame edits, with loss, speed and "
            "samples on the node. Cancelling keeps what was reached: the LoRA so far is saved, and "
            "the next run resumes there.",
            search_aliases=["train lora", "finetune", "musubi", "training", "TrainLoraNode"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="From Load FramePack Model or Snapshot; LoRAs of FramePack Apply LoRA "
                    "are merged in below the new one.",
                ),
                DatasetSocket.Input(
                    "dataset",
                    tooltip="With latents and captions cached, from FramePack Cache Captions.",
                ),
                TrainConfigSocket.Input("config", tooltip="From FramePack Train Config."),
                *option_inputs(TrainConfig, ["output_name"], optional=False),
                io.Combo.Input(
                    "folder",
                    options=[LORAS, OUTPUT],
                    default=LORAS,
                    tooltip="From models/loras it can be loaded at once.",
                ),
                io.Combo.Input(
                    "if_it_exists",
                    options=[RESUME, NUMBER],
                    default=RESUME,
                    tooltip="resume: a run of this name resumes, or is done; more steps train it "
                    "further. new name: a number is put behind the name.",
                ),
                SamplePromptsSocket.Input(
                    "samples", optional=True, tooltip="From FramePack Sample Prompts."
                ),
            ],
            outputs=[
                LoraModelSocket.Output(
                    display_name="lora", tooltip="For Load LoRA Model in the same graph."
                ),
                io.String.Output(display_name="path"),
                LossMapSocket.Output(display_name="loss_map", tooltip="For Plot Loss Graph."),
                io.Int.Output(display_name="steps"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        dataset: Dataset,
        config: TrainSettings,
        output_name: str,
        folder: str,
        if_it_exists: str,
        samples: Samples | None = None,
    ) -> io.NodeOutput:
        _check(model, dataset)
        placed = _placed(config.config, output_name, folder, if_it_exists, dataset)
        base = None if config.base == AS_LOADED else cast(Precision, config.base)
        shown = TrainingDisplay(cls.hidden, placed)
        result = train_lora(model, dataset.found, placed, base, samples, shown, dataset.models)
        dtype = parse_dtype(placed.save_dtype)
        outputs = (result.adapters.file_tensors(dtype), str(result.path), {"loss": result.losses})
        return io.NodeOutput(*outputs, len(result.losses), ui=shown.outputs())


def _check(model: Any, dataset: Dataset) -> None:
    """What is wrong with the connections."""
    check_model(model)
    if dataset.mode is None:
        raise FramePackError(
            "dataset: its latents are not cached; put FramePack Cache Latents and Cache Captions "
            "before this node"
        )
    mode = "f1" if dataset.mode == "f1" else "framepack"
    check_mode(
        model,
        mode,
        "the dataset is cached for",
        "set mode to {mode} in FramePack Cache Latents",
    )
    if model.patches:
        raise FramePackError(
            "model: it carries LoRAs of ComfyUI's own loaders, which training cannot see; use "
            "FramePack Apply LoRA, or the model as it is"
        )


def _placed(
    config: TrainConfig, name: str, folder: str, if_it_exists: str, dataset: Dataset
) -> TrainConfig:
    """A run's settings with its name, its place and whether it resumes."""
    if not name.strip() or name != os.path.basename(name):
        raise FramePackError(f"output_name: {name!r} is no file name; leave folders out")
    roots = {
        LORAS: lora_folder(),
        OUTPUT: output_folder() / "loras",
    }
    place = {"output_dir": roots[folder], "output_name": name.strip(), "mode": dataset.mode}
    config = config.model_copy(update=place)
    if if_it_exists == RESUME:
        return config.model_copy(update={"resume": is_file(config.resumed_state)})
    return config.renamed()
