"""Training a LoRA inside ComfyUI, on a model of its own that ComfyUI does not manage.

ComfyUI runs nodes in inference mode, whose tensors autograd cannot use, and streams weights through
buffers that it uses again before the backward pass. So the run loads the model's file anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import comfy.model_management
import torch
from torch import nn

from ...framepack_core.lora.apply import MergeLoras
from ...framepack_core.models.build import load_dit
from ...framepack_core.models.offload import blocks_of
from ...framepack_core.sampling.flow import FlowDenoiser
from ...framepack_core.training.batches import open_batches
from ...framepack_core.training.config import TrainConfig
from ...framepack_core.training.dataset import TrainingSet
from ...framepack_core.training.encoders import base_identity
from ...framepack_core.training.loop import Callbacks, TrainResult, check_run, train
from ...framepack_core.training.metadata import dataset_metadata
from ...framepack_core.training.samples import sample_writer
from ...framepack_core.training.stale import UNKNOWN_MODELS, CacheModels
from ...framepack_core.weights.precisions import Precision
from .lora import applied_loras
from .train_display import TrainingDisplay
from .train_samples import Samples

mm = comfy.model_management


def train_lora(
    model: Any,
    dataset: TrainingSet,
    config: TrainConfig,
    base: Precision | None,
    samples: Samples | None,
    shown: TrainingDisplay,
    cached_by: CacheModels = UNKNOWN_MODELS,
) -> TrainResult:
    """Train beside the model's file; other models leave the GPU meanwhile.

    base: the precision of the weights, None for that of the MODEL. cached_by: the encoders by which
    the data set was cached in this graph.
    """
    check_run(config)
    device = mm.get_torch_device()
    batches, validation = open_batches(dataset, config, cached_by)
    prepared = []
    if samples is not None:
        config = samples.scheduled(config)
        prepared = samples.prepare(config, dataset.window, device)
    mm.unload_all_models()
    path, *_ = model.model.origin
    about = {**dataset_metadata(dataset), "ss_sd_model_name": path.name}
    # Where blocks wait in main memory the whole model would not fit on the device first.
    waits = config.blocks_to_swap or config.gpu_memory
    place = torch.device("cpu") if waits else device
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
def _base_model(model: Any, base: Precision | None, place: torch.device) -> Iterator[FlowDenoiser]:
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
        precision=base or precision,
        transform=MergeLoras(uses) if uses else None,
    )
    for block in blocks_of(dit):
        cast(nn.Module, block.attn).register_forward_pre_hook(_stop_if_cancelled)
    try:
        yield FlowDenoiser(dit, dtype)
    finally:
        dit.to("meta")  # others still refer to it when its memory is wanted back
        mm.soft_empty_cache()


def _stop_if_cancelled(_attention: nn.Module, _inputs: Any) -> None:
    """A step can take a minute; the update that is stopped in the middle counts for nothing."""
    mm.throw_exception_if_processing_interrupted()
