"""Random numbers as a function of what they are for."""

from __future__ import annotations

import hashlib

import torch


def draw_seed(*key: int | str) -> int:
    """A seed made of a run's seed, what the numbers are for, and which step they are for.

    It is mixed by a hash, because torch's CPU generator reads 32 bits of a seed only.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for a key."""
    return torch.Generator(device).manual_seed(draw_seed(*key))
