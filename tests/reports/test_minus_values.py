"""Values that begin with a minus, also where an option takes several."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import parse

from framepack_core.runtime.options import leaves


def given(words: list[str]) -> dict[str, object]:
    """What a command line says, by the names of the options."""
    job = parse(["generate", *words])
    return {leaf.name: leaf.of(job) for leaf in leaves(type(job)) if leaf.given(job)}


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--lora_multiplier -0.5 1", "lora_multiplier", (-0.5, 1.0)),
        ("--lora_multiplier 1 -0.5", "lora_multiplier", (1.0, -0.5)),
        ("--lora_multiplier -1e-3 -.5 -2", "lora_multiplier", (-1e-3, -0.5, -2.0)),
        ("--lora_multiplier=-0.5", "lora_multiplier", (-0.5,)),
        ("--prompt -1:walks", "prompt", "-1:walks"),
        ("--prompt -3--1:walks", "prompt", "-3--1:walks"),
        ("--section_seeds -1:8", "section_seeds", "-1:8"),
        ("--embedded_cfg_scale -1", "embedded_cfg_scale", -1.0),
        ("--lora_weight -1.safetensors --f1", "lora_weight", (Path("-1.safetensors"),)),
    ],
)
def test_values(words: str, name: str, value: object) -> None:
    assert given(words.split())[name] == value


def test_options_stay_options() -> None:
    found = given(["--lora_multiplier", "-0.5", "--f1", "--seed", "3"])
    assert found == {"lora_multiplier": (-0.5,), "f1": True, "seed": 3}
