"""`framepack merge`: the transformer with LoRAs merged in, or in another type, as files."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import torch

from ..headless.models import find_models, precision_of, read_loras
from ..models.merge import check_free, save_dit
from ..runtime.device import parse_device, parse_dtype
from ..runtime.display import Bar, say
from ..runtime.errors import FramePackError

BYTES = 10**9  # of a GB


def run(args: Namespace) -> None:
    """Write the merged transformer and print its files."""
    dit = find_models(args, ["dit"])["dit"]
    dtype = parse_dtype(args.dtype) if args.dtype else torch.bfloat16
    if dtype == torch.float32:
        raise FramePackError("--dtype: a model is saved in bf16 or fp16; choose one of them")
    check_free(Path(args.save_merged_model), args.shard_size is not None)
    loras = read_loras(args, dit)
    precision = precision_of(args)
    with Bar("writing", unit="tensor") as bar:
        paths = save_dit(
            dit,
            args.save_merged_model,
            loras,
            dtype=dtype,
            precision="full" if precision == "auto" else precision,
            max_shard_bytes=int(args.shard_size * BYTES) if args.shard_size else None,
            device=parse_device(args.device or "cpu"),
            on_tensor=bar.move_to,
        )
    for path in paths:
        say(str(path))
