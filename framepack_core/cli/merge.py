"""`framepack merge`: the transformer with LoRAs merged in, or in another type, as files."""

from __future__ import annotations

import torch

from ..headless.model_files import find_models, read_loras
from ..models.merge import check_free, save_dit
from ..runtime.device import parse_device, parse_dtype
from ..runtime.display import Bar, say
from ..runtime.errors import FramePackError
from .commands import Merge

BYTES = 10**9  # of a GB


def run(command: Merge) -> None:
    """Write the merged transformer and print its files."""
    save, precision = command.merged, command.fp8.precision
    if save.save_merged_model is None:
        raise FramePackError("--save_merged_model is missing; name a .safetensors file or a folder")
    dit = find_models(command.transformer, ["dit"], command.transformer.f1)["dit"]
    dtype = parse_dtype(command.dtype) if command.dtype else torch.bfloat16
    if dtype == torch.float32:
        raise FramePackError("--dtype: a model is saved in bf16 or fp16; choose one of them")
    check_free(save.save_merged_model, save.shard_size is not None)
    loras = read_loras(command.loras, dit)
    with Bar("writing", unit="tensor") as bar:
        paths = save_dit(
            dit,
            save.save_merged_model,
            loras,
            dtype=dtype,
            precision="full" if precision == "auto" else precision,
            max_shard_bytes=int(save.shard_size * BYTES) if save.shard_size else None,
            device=parse_device(command.device or "cpu"),
            on_tensor=bar.move_to,
        )
    for path in paths:
        say(str(path))
