"""Training a LoRA inside ComfyUI, on a model of its own that ComfyUI does not manage.

ComfyUI runs nodes in inference mode, whose tensors autograd cannot use, and streams weights through
buffers that it uses again before the backward pass. So the run loads the model's file anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor

from ..framepack_core.lora.apply import MergeLoras
from ..framepack_core.models.attention import sdpa
from ..framepack_core.models.build import load_dit
from ..framepack_core.runtime.device import parse_dtype
from ..framepack_core.runtime.errors import FramePackError
from ..framepack_core.sampling.flow import FlowDenoiser
from ..framepack_core.training.batches import open_batches
from ..framepack_core.training.config import TrainConfig
from ..framepack_core.training.encoders import base_identity
from ..framepack_core.training.loop import Callbacks, TrainResult, train
from ..framepack_core.training.metadata import dataset_metadata
from ..framepack_core.training.samples import sample_writer
from .comfyui.section_run import check_mode, check_model
from .comfyui.train_display import TrainingDisplay
from .dataset import TRAINING, Dataset
from .lora import applied_loras
from .train_config import FP8_SCALED, TrainSettings
from .train_samples import Samples
from .types import (
    DatasetSocket,
    LoraModelSocket,
    LossMapSocket,
    SamplePromptsSocket,
    TrainConfigSocket,
    schema,
)

mm = comfy.model_management

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
            "the next run goes on from there.",
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
                io.String.Input("output_name", default="my_lora", tooltip="Name of the file."),
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
                    tooltip="resume: a run of this name goes on, or is done; more steps train it "
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
        shown = TrainingDisplay(cls.hidden)
        result = train_lora(model, dataset, placed, config.base, samples, shown)
        dtype = parse_dtype(placed.save_dtype)
        outputs = (result.adapters.file_tensors(dtype), str(result.path), {"loss": result.losses})
        return io.NodeOutput(*outputs, len(result.losses), ui=shown.preview())


def _check(model: Any, dataset: Dataset) -> None:
    """What is wrong with the connections."""
    check_model(model)
    if dataset.mode is None:
        raise FramePackError(
            "dataset: its latents are not cached; put FramePack Cache Latents and Cache Captions "
            "before this node"
        )
    mode = "f1" if dataset.mode == "f1" else "framepack"
    check_mode(model, mode, "the dataset is cached for")
    if model.patches:
        raise FramePackError(
            "model: it carries LoRAs of ComfyUI's own loaders, which training cannot see; use "
            "FramePack Apply LoRA, or the model as it is"
        )


def _placed(
    config: TrainConfig, name: str, folder: str, if_it_exists: str, dataset: Dataset
) -> TrainConfig:
    """A run's settings with its name, its place and whether it goes on."""
    if not name.strip() or name != os.path.basename(name):
        raise FramePackError(f"output_name: {name!r} is no file name; leave folders out")
    roots = {
        LORAS: folder_paths.get_folder_paths("loras")[0],
        OUTPUT: os.path.join(folder_paths.get_output_directory(), "loras"),
    }
    place = {"output_dir": Path(roots[folder]), "output_name": name.strip(), "mode": dataset.mode}
    config = config.model_copy(update=place)
    if if_it_exists == RESUME:
        return config.model_copy(update={"resume": config.state_path.is_file()})
    return config.renamed()


def train_lora(
    model: Any,
    dataset: Dataset,
    config: TrainConfig,
    base: str,
    samples: Samples | None,
    shown: TrainingDisplay,
) -> TrainResult:
    """Train beside the model's file; other models leave the GPU meanwhile."""
    config.check_name()
    device = mm.get_torch_device()
    batches, validation = open_batches(dataset.found, config)
    prepared = []
    if samples is not None:
        config = samples.scheduled(config)
        prepared = samples.prepare(config, dataset.found.window, device)
    mm.unload_all_models()
    path, *_ = model.model.origin
    about = {**dataset_metadata(dataset.found), "ss_sd_model_name": path.name}
    # Where blocks wait in main memory the whole model would not fit on the device first.
    place = torch.device("cpu") if config.blocks_to_swap else device
    with torch.inference_mode(False), shown.run(), _base_model(model, base, place) as denoiser:
        on_sample = None
        if samples is not None:
            write = sample_writer(
                prepared,
                denoiser,
                lambda: nullcontext(samples.decode),
                shown.root,
                config.output_name,
                device=device,
                on_file=shown.on_sample,
            )
            on_sample = shown.sampling(write)
        return train(
            config,
            denoiser,
            batches,
            Callbacks(shown.on_step, shown.on_save, on_sample),
            validation=validation,
            device=device,
            metadata=about,
            base=base_identity(path, applied_loras(model)),
        )


@contextmanager
def _base_model(model: Any, base: str, place: torch.device) -> Iterator[FlowDenoiser]:
    """The DiT of a MODEL's file, in a type that gradients survive."""
    path, chosen, _, precision, *_ = model.model.origin
    device = mm.get_torch_device()
    half = not mm.is_device_cpu(device) and mm.should_use_bf16(device)
    dtype = torch.bfloat16 if half and chosen != torch.float32 else torch.float32
    uses = applied_loras(model)
    dit = load_dit(
        path,
        dtype=dtype,
        device=place,
        attention=_interruptible,
        precision=FP8_SCALED if base == FP8_SCALED else precision,
        transform=MergeLoras(uses) if uses else None,
    )
    try:
        yield FlowDenoiser(dit, dtype)
    finally:
        dit.to("meta")  # others still refer to it when its memory is wanted back
        mm.soft_empty_cache()


def _interruptible(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """A step can take a minute; the update that is stopped in the middle counts for nothing."""
    mm.throw_exception_if_processing_interrupted()
    return sdpa(q, k, v, key_mask)
