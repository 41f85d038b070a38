"""What weights are kept in, by name; the command line reads it without torch."""

from __future__ import annotations

from typing import Literal, get_args

Stated = Literal[
    "float8_e4m3fn",
    "float8_e5m2",
    "int8_tensorwise",
    "int8_convrot",
    "convrot_w4a4",
    "asym_w4a8_int8",
    "nvfp4",
    "mxfp8",
    "gguf_q8_0",
    "gguf_q6_k",
    "gguf_q5_k",
    "gguf_q4_k",
]
STATED: tuple[Stated, ...] = get_args(Stated)
"""The precisions whose files state their format, which `framepack quantize` makes."""

Precision = Literal["auto", "full", "fp8", "fp8_e5m2", "fp8_scaled", Stated]
