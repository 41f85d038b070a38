"""What an adapter file says about itself: musubi-tuner's ss_ keys, modelspec, and our own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone

from ..lora.report import LORA_END, LORA_MODE
from ..runtime.options import file_metadata, leaves
from .config import NETWORK_MODULES, AdapterConfig, TrainConfig
from .dataset import TrainingSet
from .dataset_config import ImageDataset

ARCHITECTURE = "framepack"
WINDOW, TARGET_INDEX, CLEAN_INDICES = (
    "framepack_window",
    "framepack_target_index",
    "framepack_clean_indices",
)


# What a reader of the file needs, besides what modelspec calls a description.
NEEDED = frozenset(
    {
        *("ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha"),
        *("ss_network_args", LORA_MODE, LORA_END),
    }
)


def adapter_metadata(
    config: TrainConfig, steps_an_epoch: int, step: int, more: Mapping[str, str]
) -> dict[str, str]:
    """What is known of a run at a step, from its settings and from elsewhere."""
    adapter, total = config.adapter, config.steps_of(steps_an_epoch)
    now = datetime.now(timezone.utc)
    values = {
        "modelspec.title": config.output_name,
        **file_metadata(config),
        "ss_training_finished_at": now.timestamp(),
        "ss_num_batches_per_epoch": steps_an_epoch * config.gradient_accumulation_steps,
        "ss_num_epochs": -(-total // steps_an_epoch),
        "ss_max_train_steps": total,
        "ss_lr_scheduler": config.scheduler_type or config.scheduler,
        "ss_base_model_version": ARCHITECTURE,
        "ss_network_module": NETWORK_MODULES[adapter.kind],
        "ss_network_dropout": adapter.dropout or None,
        "ss_network_args": json.dumps(_network_args(config)),
        "ss_steps": step,
        "ss_epoch": step // steps_an_epoch,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{config.metadata_arch or ARCHITECTURE}/lora",
        "modelspec.implementation": "https://github.com/lllyasviel/FramePack",
        "modelspec.date": now.isoformat(timespec="seconds"),
        LORA_MODE: config.mode,
        **more,
    }
    if config.sees_end:
        values[LORA_END] = True
    if config.metadata_reso:
        sides = config.metadata_reso.split(",")
        values["modelspec.resolution"] = f"{sides[0]}x{sides[-1]}"
    return {
        key: str(value)
        for key, value in values.items()
        if not config.no_metadata or key in NEEDED or key.startswith("modelspec.")
    }


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
    """Those that differ from their defaults, as the command line names them."""
    return {
        leaf.option.pair: leaf.of(config.adapter)
        for leaf in leaves(AdapterConfig)
        if leaf.option.pair and leaf.of(config.adapter) != leaf.default
    }


def _joined(values: Iterable[object]) -> str:
    """The different values of all data sets, most often a single one."""
    return ";".join(sorted({str(value) for value in values}))
