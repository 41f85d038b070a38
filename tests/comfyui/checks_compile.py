"""A MODEL with compiled blocks: the same video of any length, with LoRAs, and stopped in time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

import comfy.model_management as mm
from checks_lora import OPPOSITE, apply
from inside import difference, pack, plan, sample, slow, toy
from torch._dynamo.testing import CompileCounter

TOLERANCE = 1e-4
Interrupted = mm.InterruptProcessingException


@contextmanager
def traced() -> Iterator[CompileCounter]:
    """Compiles without making machine code, which takes longest; counts the pieces."""
    counter = CompileCounter()
    options = pack("framepack_core.models.compiling").CompileOptions
    changed = {"backend": counter, "dynamic": True}
    with mock.patch.object(options, "compilation", changed):
        yield counter


@cache
def compiled() -> tuple[Any, CompileCounter]:
    dit = pack("framepack_core.toyworld").SNAPSHOT / "transformer"
    with traced() as counter:
        return pack("nodes.comfyui.model").load_model(dit, compiled=True), counter


@slow
def check_compiled_blocks_make_the_same_video_of_any_length() -> Any:
    model, counter = compiled()
    expected = sample()
    assert difference(sample(model), expected) < TOLERANCE
    pieces = counter.frame_count
    assert pieces, "nothing was compiled"
    sample(model, plan=plan(sections=1, window=3))
    assert counter.frame_count == pieces, "another length was compiled again"
    return pieces


@slow
def check_a_lora_beside_compiled_blocks_has_its_effect_and_compiles_nothing() -> float:
    model, counter = compiled()
    expected = sample(apply(toy().model, OPPOSITE))
    pieces = counter.frame_count
    assert difference(sample(apply(model, OPPOSITE)), expected) < TOLERANCE
    assert counter.frame_count == pieces
    assert difference(sample(model), sample()) < TOLERANCE  # and without it as before
    return difference(expected, sample())


@slow
def check_compiled_blocks_can_be_stopped() -> None:
    model, _ = compiled()
    calls = iter([None] * 9)

    def stop() -> None:
        if next(calls, "over") == "over":
            raise Interrupted

    with mock.patch.object(mm, "throw_exception_if_processing_interrupted", stop):
        try:
            sample(model)
        except Interrupted:
            return
    raise AssertionError("it ran to its end")


def check_a_ledger_tells_compiled_blocks_apart() -> None:
    model, _ = compiled()
    origin = pack("nodes.comfyui.ledger")._origin
    fingerprint = pack("framepack_core.runtime.fingerprint").fingerprint
    assert fingerprint(origin(model)) != fingerprint(origin(toy().model))
