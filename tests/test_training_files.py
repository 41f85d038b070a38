"""What a run saves, keeps and resumes from: states, the last files, metadata, ranks of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import make_samples, run, tiny_config

from framepack_core.lora.report import LORA_END
from framepack_core.runtime.errors import FramePackError
from framepack_core.runtime.options import validate
from framepack_core.training.batches import Sample
from framepack_core.training.config import AdapterConfig, TrainConfig
from framepack_core.training.metadata import NEEDED
from framepack_core.weights.files import open_weights


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    return make_samples(tmp_path / "cache", clips=1)  # two batches an epoch


def numbers(folder: Path, ending: str) -> list[str]:
    paths = folder.glob(f"tiny-*{ending}")
    return sorted(path.name.removeprefix("tiny-").removesuffix(ending) for path in paths)


@pytest.mark.parametrize(
    ("settings", "files", "states"),
    [
        ({"keep_last_steps": 2}, ["step00000003", "step00000004", "step00000005"], []),
        (
            {"keep_last_steps": 1, "save_state": True},
            ["step00000004", "step00000005"],
            ["step00000004", "step00000005"],
        ),
        (
            {"keep_last_steps": 1, "keep_last_step_states": 3, "save_state": True},
            ["step00000004", "step00000005"],
            ["step00000002", "step00000003", "step00000004", "step00000005"],
        ),
        (
            {
                "save_every_steps": None,
                "save_every_epochs": 1,
                "steps": 9,
                "keep_last_epochs": 2,
                "keep_last_epoch_states": 1,
                "save_state": True,
            },
            ["000003", "000004"],
            ["000004"],
        ),
    ],
)
def test_the_last_files_and_states_are_kept_as_in_musubi_tuner(
    tmp_path: Path,
    samples: list[Sample],
    settings: dict[str, Any],
    files: list[str],
    states: list[str],
) -> None:
    """Steps: those of the last n steps; epochs: the last n files; states may have others."""
    given = {"save_every_steps": 1, "steps": 6, **settings}
    run(tiny_config(tmp_path / "out", **given), samples)
    assert numbers(tmp_path / "out", ".safetensors") == files
    assert numbers(tmp_path / "out", ".state") == states


def test_a_state_file_is_resumed_under_a_name_that_is_free(
    tmp_path: Path, samples: list[Sample]
) -> None:
    config = tiny_config(tmp_path, save_every_steps=1, save_state=True)
    straight = run(config, samples)
    middle = tmp_path / "tiny-step00000002.state"
    with pytest.raises(FramePackError, match="this run is there already"):
        run(config.model_copy(update={"resume": middle}), samples)
    for given in (middle, tmp_path / "tiny-step00000002-state"):  # as musubi-tuner's folders
        update = {"resume": given, "output_name": given.name}
        resumed = run(config.model_copy(update=update), samples)
        assert resumed.losses == straight.losses
        for a, b in zip(resumed.adapters.parameters(), straight.adapters.parameters(), strict=True):
            assert torch.equal(a, b)
    theirs = tmp_path / "theirs-state"
    theirs.mkdir()
    with pytest.raises(FramePackError, match=r"musubi-tuner's states are, .* --network_weights"):
        run(config.model_copy(update={"resume": theirs, "output_name": "new"}), samples)


def test_a_state_of_an_earlier_name_is_resumed_and_replaced(
    tmp_path: Path, samples: list[Sample]
) -> None:
    config = tiny_config(tmp_path, steps=2)
    run(config, samples)
    earlier = config.state_path.rename(tmp_path / "tiny-state.pt")
    with pytest.raises(FramePackError, match="this run is there already"):
        config.check_name()
    resumed = run(config.model_copy(update={"resume": True, "steps": 4}), samples)
    assert resumed.losses == run(tiny_config(tmp_path / "whole", steps=4), samples).losses
    assert config.state_path.is_file() and not earlier.exists()


def test_metadata_is_what_was_said_or_only_what_is_needed(
    tmp_path: Path, samples: list[Sample]
) -> None:
    said = {
        "metadata_title": "T",
        "metadata_author": "A",
        "metadata_description": "D",
        "metadata_license": "L",
        "metadata_tags": "a,b",
        "metadata_reso": "640,480",
        "metadata_arch": "fp",
    }
    config = tiny_config(tmp_path, steps=1, no_metadata=True, **said)
    run(config, samples)
    metadata = open_weights(config.adapter_path).metadata
    described = {k: v for k, v in metadata.items() if k.startswith("modelspec.")}
    assert {key.removeprefix("modelspec."): value for key, value in described.items()} == {
        "title": "T",
        "author": "A",
        "description": "D",
        "license": "L",
        "tags": "a,b",
        "resolution": "640x480",
        "architecture": "fp/lora",
        "implementation": "https://github.com/lllyasviel/FramePack",
        "sai_model_spec": "1.0.0",
        "date": described["modelspec.date"],
    }
    assert metadata.keys() - described.keys() - {"format"} == NEEDED - {LORA_END}
    plain = tiny_config(tmp_path, steps=1, output_name="plain")
    run(plain, samples)
    metadata = open_weights(plain.adapter_path).metadata
    assert (metadata["modelspec.title"], metadata["ss_steps"]) == ("plain", "1")
    assert "modelspec.author" not in metadata


def test_rank_and_alpha_of_weights(tmp_path: Path, samples: list[Sample]) -> None:
    first = tiny_config(tmp_path / "a", adapter=AdapterConfig(rank=3, alpha=6))
    run(first, samples)
    given = {"network_weights": first.adapter_path, "dim_from_weights": True, "steps": 1}
    config = tiny_config(tmp_path / "b", adapter=AdapterConfig(rank=8, alpha=1), **given)
    config = config.model_copy(update={"learning_rate": 1e-30})
    run(config, samples)
    before, after = (open_weights(c.adapter_path) for c in (first, config))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (after.metadata["ss_network_dim"], after.metadata["ss_network_alpha"]) == ("3", "6.0")
    resumed = config.model_copy(update={"resume": True, "steps": 2})
    assert len(run(resumed, samples).losses) == 2
    with pytest.raises(FramePackError, match="dim_from_weights: needs network_weights"):
        validate(TrainConfig, {"dim_from_weights": True}, "x")


def test_norms_are_scaled_down_to_the_limit(tmp_path: Path, samples: list[Sample]) -> None:
    limit = 1e-3

    def largest(**settings: Any) -> list[float]:
        given = {"adapter": AdapterConfig(rank=2, alpha=2), "steps": 2, **settings}
        adapters = run(tiny_config(tmp_path / str(len(settings)), **given), samples).adapters
        changes = (adapter.delta() for adapter in adapters._adapters())
        return [(d.scale * d.up @ d.down).norm().item() for d in changes]

    free, scaled = largest(), largest(scale_weight_norms=limit)
    assert max(free) > limit
    assert max(scaled) == pytest.approx(limit)
    with pytest.raises(FramePackError, match="scale_weight_norms: loha has no two factors"):
        given = {"scale_weight_norms": 1.0, "adapter": {"kind": "loha"}}
        validate(TrainConfig, given, "x")


def test_the_second_factor_learns_faster(tmp_path: Path, samples: list[Sample]) -> None:
    """Adam's first step is as long as the rate, whatever the gradient."""

    def steps(ratio: float | None) -> tuple[float, float]:
        adapter = AdapterConfig(rank=2, alpha=2, loraplus=ratio)
        config = tiny_config(tmp_path / f"{ratio}", adapter=adapter, steps=1, warmup=0)
        config = config.model_copy(update={"optimizer_args": {"weight_decay": 0.0}})
        found = run(config.model_copy(update={"scheduler": "constant"}), samples).adapters
        ups = [a.factors["up"].abs().max().item() for a in found._adapters()]
        return max(ups), config.learning_rate

    plain, rate = steps(None)
    assert plain == pytest.approx(rate, rel=1e-3)
    faster, _ = steps(8.0)
    assert faster == pytest.approx(8 * rate, rel=1e-3)
    with pytest.raises(FramePackError, match="loraplus_lr_ratio: lokr has none"):
        validate(AdapterConfig, {"kind": "lokr", "loraplus": 4.0}, "x")
