"""Names a user types for number types, devices and seeds, turned into torch objects."""

from __future__ import annotations

import torch

from .errors import FramePackError
from .options import MAX_SEED

DTYPES = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "float32": torch.float32,
}


def parse_dtype(name: str) -> torch.dtype:
    """The torch type of a short or a long name ("bf16", "float32")."""
    try:
        return DTYPES[name.lower()]
    except KeyError:
        raise FramePackError(f"dtype {name!r} is unknown; use one of {', '.join(DTYPES)}") from None


def default_device() -> torch.device:
    """The first of cuda, mps and cpu that this machine has."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def parse_device(name: str) -> torch.device:
    """The device of a name such as "cuda:1", refused when this machine does not have it."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise FramePackError(
            f"device {name!r} cannot be used ({reason}); this machine has {default_device()}"
        ) from None
    return device


def cpu_generator(seed: int) -> torch.Generator:
    """A CPU generator, so that a seed draws the same numbers on every device."""
    if not 0 <= seed <= MAX_SEED:
        raise FramePackError(f"seed {seed} is out of range; use 0 to {MAX_SEED}")
    return torch.Generator("cpu").manual_seed(seed)
