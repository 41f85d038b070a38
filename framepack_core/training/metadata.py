"""What an adapter file says about itself: musubi-tuner's ss_ keys, modelspec, and our own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime, timezone

from ..lora.report import MODE
from .config import TrainConfig
from .dataset import TrainingSet
from .dataset_config import ImageDataset

ARCHITECTURE = "framepack"
NETWORK_MODULES = {
    "lora": "networks.lora_framepack",
    "loha": "networks.loha",
    "lokr": "networks.lokr",
}
WINDOW, TARGET_INDEX, CLEAN_INDICES = (
    "framepack_window",
    "framepack_target_index",
    "framepack_clean_indices",
)


def adapter_metadata(
    config: TrainConfig, steps_an_epoch: int, step: int, model_name: str = ""
) -> dict[str, str]:
    """What is known from the settings of a run at a step."""
    adapter, timesteps = config.adapter, config.timesteps
    now = datetime.now(timezone.utc)
    values = {
        "ss_output_name": config.output_name,
        "ss_training_finished_at": now.timestamp(),
        "ss_learning_rate": config.learning_rate,
        "ss_num_batches_per_epoch": steps_an_epoch * config.accumulation,
        "ss_num_epochs": -(-config.total_steps(steps_an_epoch) // steps_an_epoch),
        "ss_gradient_checkpointing": config.gradient_checkpointing,
        "ss_gradient_checkpointing_cpu_offload": config.gradient_checkpointing_cpu_offload,
        "ss_gradient_accumulation_steps": config.accumulation,
        "ss_max_train_steps": config.total_steps(steps_an_epoch),
        "ss_lr_warmup_steps": config.warmup,
        "ss_lr_scheduler": config.scheduler_type or config.scheduler,
        "ss_base_model_version": ARCHITECTURE,
        "ss_network_module": NETWORK_MODULES[adapter.kind],
        "ss_network_dim": adapter.rank,
        "ss_network_alpha": float(adapter.alpha),
        "ss_network_dropout": adapter.dropout or None,
        "ss_network_args": json.dumps(_network_args(config)),
        "ss_seed": config.seed,
        "ss_optimizer": config.optimizer,
        "ss_max_grad_norm": config.max_grad_norm,
        "ss_weighting_scheme": timesteps.weighting,
        "ss_logit_mean": timesteps.logit_mean,
        "ss_logit_std": timesteps.logit_std,
        "ss_mode_scale": timesteps.mode_scale,
        "ss_guidance_scale": config.guidance,
        "ss_timestep_sampling": timesteps.mode,
        "ss_sigmoid_scale": timesteps.sigmoid_scale,
        "ss_discrete_flow_shift": timesteps.shift,
        "ss_sd_model_name": model_name,
        "ss_steps": step,
        "ss_epoch": step // steps_an_epoch,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{ARCHITECTURE}/lora",
        "modelspec.implementation": "https://github.com/lllyasviel/FramePack",
        "modelspec.title": config.output_name,
        "modelspec.date": now.isoformat(timespec="seconds"),
        MODE: config.mode,
    }
    return {key: str(value) for key, value in values.items()}


def dataset_metadata(found: TrainingSet) -> dict[str, str]:
    """What is known from the data: sizes, window and, for one-frame, where everything stands."""
    windows = {dataset.window for dataset in found.datasets}
    pictures = [d for d in found.datasets if isinstance(d, ImageDataset)]
    about = [
        {
            "is_image_dataset": isinstance(d, ImageDataset),
            "has_control": isinstance(d, ImageDataset),
            "batch_size_per_device": d.batch_size,
            "num_repeats": d.num_repeats,
            "resolution": list(d.resolution),
        }
        for d in found.datasets
    ]
    return {
        "ss_num_train_items": str(sum(item.sections for item in found.items)),
        "ss_datasets": json.dumps(about),
        WINDOW: _joined(windows),
        **(
            {
                TARGET_INDEX: _joined(d.fp_1f_target_index for d in pictures),
                CLEAN_INDICES: _joined(",".join(map(str, d.fp_1f_clean_indices)) for d in pictures),
            }
            if pictures
            else {}
        ),
    }


def _network_args(config: TrainConfig) -> dict[str, object]:
    adapter = config.adapter
    args = {
        "rank_dropout": adapter.rank_dropout,
        "module_dropout": adapter.module_dropout,
        "include_patterns": list(adapter.include),
        "exclude_patterns": list(adapter.exclude),
        "factor": adapter.factor if adapter.kind == "lokr" else None,
    }
    return {name: value for name, value in args.items() if value}


def _joined(values: Iterable[object]) -> str:
    """The different values of all data sets, most often a single one."""
    return ";".join(sorted({str(value) for value in values}))
