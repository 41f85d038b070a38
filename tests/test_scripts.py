"""musubi-tuner's scripts by their own names: its defaults, and what each of them needs."""

from __future__ import annotations

import re
import sys
from argparse import _SubParsersAction
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runs import SMALL_DATA, failure, make_clips, parse
from musubi_tuner_page import DEFAULTS, FLAGS, flags, page

from framepack_core.cli import COMMANDS, SCRIPTS, build_parser, main, script
from framepack_core.cli.commands import Generate
from framepack_core.cli.options import read_options
from framepack_core.cli.training_arguments import train_job
from framepack_core.headless import models
from framepack_core.headless.training_options import CacheJob, TrainJob
from framepack_core.parsing.json_toml import parse_toml
from framepack_core.runtime.options import RANDOM, SAME, Settings, leaves
from framepack_core.toyworld import SNAPSHOT
from framepack_core.training.cache_files import cached_mode
from framepack_core.training.checkpoint import seed_of_state
from framepack_core.weights.files import open_weights

KINDS: dict[str, type[Settings]] = {"generate": Generate, "cache": CacheJob, "train": TrainJob}
ENCODERS = {
    "vae": SNAPSHOT / "vae",
    "image_encoder": SNAPSHOT / "image_encoder",
    "text_encoder1": SNAPSHOT / "text_encoder",
    "text_encoder2": SNAPSHOT / "text_encoder_2",
}


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    return make_clips(tmp_path / "clips")


def job(name: str, *options: str) -> Any:
    given = parse([name, *options])
    return read_options(KINDS[SCRIPTS[name][0]], given) if hasattr(given, "reference") else given


def named(*flags: str) -> list[str]:
    return [word for flag in flags for word in (f"--{flag}", str(ENCODERS[flag]))]


@pytest.mark.parametrize("name", SCRIPTS)
def test_defaults_are_its_own(name: str) -> None:
    found = job(name)
    others = []
    for leaf in leaves(type(found)):
        theirs = leaf.option.reference
        wanted = leaf.default if theirs in (SAME, RANDOM) else theirs
        if leaf.of(found) != wanted:
            others.append(leaf.name)
    assert others == (["only"] if "cache" in name else [])


def test_its_defaults_are_the_last_to_count(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("network_alpha = 8\nnetwork_dim = 16\nsave_every_n_steps = 10")
    args = parse(["fpack_train_network", "--config_file", str(file), "--network_dim", "2"])
    made = train_job(args).config
    assert (made.adapter.rank, made.adapter.alpha, made.save_every_steps) == (2, 8.0, 10)
    assert (made.save_dtype, made.timesteps.mode, made.learning_rate) == ("fp32", "sigma", 2e-6)


def test_a_seed_that_is_given_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("seed = 5")
    for options in (["--seed", "5"], ["--config_file", str(file)]):
        found = train_job(parse(["fpack_train_network", *options]))
        assert (found.draws_seed, found.config.seed) == (False, 5)
    assert train_job(parse(["fpack_train_network"])).draws_seed
    assert not train_job(parse(["train"])).draws_seed


def test_each_caches_one_kind_with_its_own_encoders(
    clips: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The other encoders are neither asked for nor loaded; what is there is encoded again."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded that is not needed")

    data = ["--dataset_config", str(clips), *SMALL_DATA.split()]
    with monkeypatch.context() as patched:
        patched.setattr(models, "load_text_encoders", refuse)
        latents = ["fpack_cache_latents", *data, *named("vae", "image_encoder")]
        assert main(latents) == 0 and main(latents) == 0
        assert capsys.readouterr().out.count("latents: 2 encoded, 0 were cached") == 2
        assert main([*latents, "--skip_existing"]) == 0
        assert "latents: 0 encoded, 2 were cached" in capsys.readouterr().out
    for name in ("load_vae", "load_image_encoder"):
        monkeypatch.setattr(models, name, refuse)
    text = ["fpack_cache_text_encoder_outputs", *data, *named("text_encoder1", "text_encoder2")]
    assert main(text) == 0
    assert "captions: 3 encoded" in capsys.readouterr().out
    assert {cached_mode(path) for path in clips.glob("*_fp.safetensors")} == {"framepack"}
    error = failure(["fpack_cache_latents", *data, *named("vae")], capsys)
    assert "--image_encoder missing" in error


def test_a_lora_with_its_defaults(
    clips: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Alpha 1 in fp32, nothing saved on the way; without a seed a resumed run keeps its own."""
    data = ["--dataset_config", str(clips), *SMALL_DATA.split()]
    assert main(["cache", *data]) == 0
    out = tmp_path / "out"
    given = "--output_name x --max_train_steps 3 --network_dim 2 --output_dir"
    command = ["fpack_train_network", *data, *given.split(), str(out)]
    assert main(command) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "x-log.jsonl",
        "x.safetensors",
        "x.state",
    ]
    lora = open_weights(out / "x.safetensors")
    alphas = [lora[name] for name in lora if name.endswith(".alpha")]
    assert {float(alpha) for alpha in alphas} == {1.0}
    assert {lora.info(name).dtype for name in lora} == {torch.float32}
    seed = seed_of_state(out / "x.state")
    assert lora.metadata["ss_seed"] == str(seed)
    assert f"seed {seed}" in capsys.readouterr().out
    assert main([*command, "--resume", "--max_train_steps", "4"]) == 0
    assert seed_of_state(out / "x.state") == seed


def test_programs_of_these_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pyproject = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    programs = parse_toml(pyproject, "pyproject.toml")["project"]["scripts"]
    assert {n for n, entry in programs.items() if entry == "framepack_core.cli:script"} == {
        *SCRIPTS
    }
    for name in SCRIPTS:
        monkeypatch.setattr(sys, "argv", [f"/venv/bin/{name}.exe", "--help"])
        with pytest.raises(SystemExit) as stopped:
            script()
        assert stopped.value.code == 0
        assert re.match(rf"usage: {name} ", capsys.readouterr().out)
    assert set(SCRIPTS).isdisjoint(COMMANDS)


# --- docs/musubi_flags.md -------------------------------------------------------------------------


def test_its_page_is_what_is_declared() -> None:
    """Run tests/make_help_tables.py where it is not."""
    path = Path(__file__).parents[1] / "docs" / "musubi_flags.md"
    assert path.read_text(encoding="utf-8") == page()


def test_every_flag_of_its_scripts_is_known() -> None:
    """As an option, or as one that is accepted or refused by name; other defaults are explained."""
    assert [len(FLAGS[name]) for name in SCRIPTS] == [65, 21, 9, 131]
    [commands] = [a for a in build_parser()._actions if isinstance(a, _SubParsersAction)]
    for name in SCRIPTS:
        known = commands.choices[name]._option_string_actions
        assert [flag for flag in FLAGS[name] if f"--{flag}" not in known] == []
        assert [x.name for x in flags(name) if x.here and x.name not in DEFAULTS] == []
