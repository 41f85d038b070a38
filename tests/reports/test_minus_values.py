"""Values that begin with a minus, also where an option takes several."""

from __future__ import annotations

import pytest
from cli_runs import parse


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--lora_multiplier -0.5 1", "lora_multiplier", [-0.5, 1.0]),
        ("--lora_multiplier 1 -0.5", "lora_multiplier", [1.0, -0.5]),
        ("--lora_multiplier -1e-3 -.5 -2", "lora_multiplier", [-1e-3, -0.5, -2.0]),
        ("--lora_multiplier=-0.5", "lora_multiplier", [-0.5]),
        ("--prompt -1:walks", "prompt", "-1:walks"),
        ("--prompt -3--1:walks", "prompt", "-3--1:walks"),
        ("--section_seeds -1:8", "section_seeds", "-1:8"),
        ("--embedded_cfg_scale -1", "embedded_cfg_scale", -1.0),
        ("--lora_weight -1.safetensors --f1", "lora_weight", ["-1.safetensors"]),
    ],
)
def test_values(words: str, name: str, value: object) -> None:
    assert getattr(parse(["generate", *words.split()]), name) == value


def test_options_stay_options() -> None:
    args = parse(["generate", "--lora_multiplier", "-0.5", "--f1", "--seed", "3"])
    assert args.f1 and args.seed == 3 and args.lora_multiplier == [-0.5]
