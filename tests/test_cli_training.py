"""`framepack cache` and `framepack train`: what they make, and one line for every mistake."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_runs import FRAMES, SMALL_DATA, failure, make_clip, make_clips, parse

from framepack_core.cli import main
from framepack_core.cli.training_arguments import cache_job, train_job
from framepack_core.headless import models
from framepack_core.headless import training as headless_training
from framepack_core.lora.report import LORA_MODE
from framepack_core.models.dit import FramePackDiT
from framepack_core.runtime.images import load_image, save_png
from framepack_core.runtime.memory import GIB
from framepack_core.runtime.video import read_video
from framepack_core.toyworld import OPPOSITE_LORA, SNAPSHOT
from framepack_core.training import loop
from framepack_core.training.config import TrainConfig
from framepack_core.training.logs import LOGGERS
from framepack_core.training.loop import StepReport
from framepack_core.weights.files import open_weights

LOGGED = ["--log_prefix", "v1-", "--output_name", "lora", "--network_dim", "7", "--log_config"]
LOGGED += ["--wandb_api_key", "key-123"]
TRAIN = "--output_name x --max_train_steps 3 --network_dim 2 --seed 1"


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    return make_clips(tmp_path / "clips")


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading any model fails the test."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    for name in ("load_dit", "load_vae", "load_text_encoders", "load_image_encoder"):
        monkeypatch.setattr(models, name, refuse)


def cache(dataset: Path, *options: str) -> list[str]:
    return ["cache", "--dataset_config", str(dataset), *SMALL_DATA.split(), *options]


def train(dataset: Path, out: Path, *options: str) -> list[str]:
    data = [*["train", "--output_dir"], str(out), "--dataset_config", str(dataset)]
    return [*data, *SMALL_DATA.split(), *TRAIN.split(), *options]


def warned(output: str) -> list[str]:
    """The warnings of a command's stderr."""
    begin = "warning: "
    return [x.removeprefix(begin) for x in output.splitlines() if x.startswith(begin)]


def config(*options: str) -> TrainConfig:
    return train_job(parse(["train", *options])).config


# --- what they make -------------------------------------------------------------------------------


def test_cache_and_train(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(cache(clips)) == 0
    assert "latents: 2 encoded" in capsys.readouterr().out
    assert main(cache(clips)) == 0
    assert "latents: 0 encoded, 2 were cached" in capsys.readouterr().out
    save_png(tmp_path / "start.png", np.zeros((32, 32, 3), np.uint8))
    line = f"a ball --i {tmp_path / 'start.png'} --w 32 --h 32 --s 1 --d 7"
    lines = ["a cat --w 32 --h 32", f"{line} --f {FRAMES - 1} --fs 14.5", f"{line} --f 1"]
    (tmp_path / "prompts").write_text("\n".join(lines))
    samples = ["--sample_prompts", str(tmp_path / "prompts"), "--sample_every_n_steps", "3"]
    samples += ["--sample_flow_shift", "10"]
    assert main(train(clips, tmp_path / "out", *samples, "--training_comment", "a test")) == 0
    output, warnings = capsys.readouterr()
    last = output.splitlines()[-1]
    assert last == str(tmp_path / "out" / "x.safetensors")
    assert f"sample 'a ball': {FRAMES - 1} frames become {FRAMES}, whole sections" in output
    assert warned(warnings) == [
        "sample 'a cat' has no start image (--i) and is passed over",
        "sample 'a ball': --fs 14.5 has no effect with --sample_flow_shift 10, which 0 turns off",
    ]
    metadata = open_weights(last).metadata
    assert (metadata[LORA_MODE], metadata["framepack_window"]) == ("framepack", "1")
    assert (metadata["ss_training_comment"], metadata["ss_sd_model_name"]) == ("a test", "snapshot")
    frames, _ = read_video(tmp_path / "out" / "sample" / "x_000003_00_7.mp4")
    assert frames.shape == (FRAMES, 32, 32, 3)
    assert (tmp_path / "out" / "sample" / "x_000003_01_7.png").is_file()
    assert len((tmp_path / "out" / "x-log.jsonl").read_text().splitlines()) == 3


def test_encoders_of_samples_keep_to_the_budget_too(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(cache(clips)) == 0
    save_png(tmp_path / "start.png", np.zeros((32, 32, 3), np.uint8))
    line = f"a ball --i {tmp_path / 'start.png'} --w 32 --h 32 --f {FRAMES} --s 1"
    (tmp_path / "prompts.txt").write_text(line)
    seen: list[int | None] = []

    @contextmanager
    def limited(gib: float | None, _device: torch.device) -> Iterator[int | None]:
        yield None if gib is None else 12 * GIB

    place = models.Models._place_encoders

    def noted(self: models.Models, encoders: object) -> object:
        seen.append(self.budget)
        return place(self, encoders)

    monkeypatch.setattr(headless_training, "limited_memory", limited)
    monkeypatch.setattr(loop, "limited_memory", lambda *_: nullcontext())
    monkeypatch.setattr(models.Models, "_place_encoders", noted)
    given = ["--sample_prompts", str(tmp_path / "prompts.txt"), "--sample_at_first"]
    assert main(train(clips, tmp_path / "out", *given, "--gpu_memory", "12")) == 0
    assert seen == [12 * GIB]


def test_caches_of_clips_that_are_gone(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of sections' own captions and of end frames; files of other kinds stay."""
    assert main(cache(clips, "--end_frames")) == 0
    section = clips / "b-0123abcd_fp_te.safetensors"
    shutil.copy(clips / "b_fp_te.safetensors", section)
    gone = {path.name for path in clips.glob("b[-_]*")}
    assert len(gone) == 6  # two sections with their end frames, two captions
    others = {"b_00000-009-0000_0032x0032_wan.safetensors", "b_00000-009-0001_0032x0032_fp.bin"}
    for name in others:
        (clips / name).touch()
    damaged = clips / "b_00000-005-0000_0032x0032_fp.safetensors"
    damaged.write_bytes(b"no cache of anybody's")
    for suffix in (".mp4", ".txt"):
        (clips / f"b{suffix}").unlink()
    before = {path.name for path in clips.iterdir()}
    assert main(cache(clips)) == 0
    assert {path.name for path in clips.iterdir()} == before
    capsys.readouterr()
    assert main(["fpack_cache_latents", *cache(clips)[1:], "--skip_existing"]) == 0
    assert "latents: 4 caches of clips that are gone were removed" in capsys.readouterr().out
    assert before - {path.name for path in clips.iterdir()} == {n for n in gone if "_te" not in n}
    assert main(cache(clips, "--no-keep_cache")) == 0
    assert before - {path.name for path in clips.iterdir()} == gone


def test_cudnn_can_be_left_out(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    encode = models.Models.vae

    def noted(self: models.Models) -> object:
        seen.append(torch.backends.cudnn.enabled)
        return encode(self)

    monkeypatch.setattr(models.Models, "vae", noted)
    assert main(cache(clips, "--disable_cudnn_backend")) == 0
    assert seen == [False] and torch.backends.cudnn.enabled


def test_a_name_is_taken_once_and_resumed(
    clips: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Options of samples that are half of what is needed are told and change nothing."""
    assert main(cache(clips)) == 0
    command = train(clips, tmp_path)
    assert main([*command, "--sample_every_n_steps", "1"]) == 0
    told = warned(capsys.readouterr().err)
    assert told == ["no samples are made without --sample_prompts"]
    made = (tmp_path / "x.safetensors").read_bytes()
    assert "this run is there already; resume it" in failure(command, capsys)
    assert (tmp_path / "x.safetensors").read_bytes() == made
    resume = ["--resume", "--max_train_steps", "4", "--sample_prompts", "gone.txt"]
    assert main([*command, *resume]) == 0
    [told] = warned(capsys.readouterr().err)
    assert told.startswith("--sample_prompts has no effect without --sample_every_n_steps, ")
    log = [json.loads(line) for line in (tmp_path / "x-log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [1, 2, 3, 4]


def test_resuming_on_another_base(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy of the model is the same one; a changed weight, or a LoRA below, makes another."""

    def done(command: list[str]) -> None:
        assert main(command) == 0
        capsys.readouterr()

    copied = shutil.copytree(SNAPSHOT / "transformer", tmp_path / "copied")
    done(cache(clips))
    done(train(clips, tmp_path))
    resume = ["--resume", "--max_train_steps", "4"]
    base = ["--base_weights", str(OPPOSITE_LORA), "--base_weights_multiplier"]
    refused = (
        "was trained with another base model; load the one that it was trained on, with the same "
        "LoRAs, or start a new run under another output_name"
    )
    assert refused in failure(train(clips, tmp_path, *resume, *base, "0.5"), capsys)
    given = train(clips, tmp_path, *resume, "--dit", str(copied))
    done([*given, *base, "0"])
    *_, shard = sorted(copied.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert refused in failure(given, capsys)


def test_loras_below_the_new_one(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(cache(clips)) == 0

    def losses(name: str, *options: str) -> list[float]:
        assert main(train(clips, tmp_path / name, *options)) == 0
        lines = (tmp_path / name / "x-log.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    plain = losses("plain")
    base = ["--base_weights", str(OPPOSITE_LORA), "--base_weights_multiplier"]
    assert losses("none", *base, "0") == plain
    assert losses("half", *base, "0.5") != plain
    spared = ("--blocks_to_swap", "3", "--gradient_checkpointing_cpu_offload")
    swapped = losses("swapped", "--fp8_scaled", *spared)
    assert swapped == losses("scaled", "--fp8_base", "--fp8_scaled") != plain


def test_network_weights_of_another_rank_are_told_before_the_model(
    clips: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    assert main(cache(clips)) == 0
    capsys.readouterr()
    request.getfixturevalue("no_models")
    weights = ["--network_weights", str(OPPOSITE_LORA), "--network_dim", "3"]
    assert "in the file and [3, 128] in this run" in failure(
        train(clips, tmp_path, *weights), capsys
    )


def test_a_run_that_ends_before_its_first_update_takes_no_name(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(cache(clips)) == 0

    def fails(*_: object) -> None:
        raise RuntimeError("no kernel")

    with monkeypatch.context() as patched:
        patched.setattr(FramePackDiT, "forward", fails)
        with pytest.raises(RuntimeError, match="no kernel"):
            main(train(clips, tmp_path))
    assert main(train(clips, tmp_path)) == 0


def test_loggers_are_asked_for_before_the_model(
    clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    assert main(cache(clips)) == 0
    capsys.readouterr()
    request.getfixturevalue("no_models")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    for name in ("tensorboard", "wandb"):
        error = failure(train(clips, tmp_path, "--log_with", name), capsys)
        assert f"{name} is not installed; run: pip install {name}" in error


def test_a_log_of_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "v1-lora" / "mine")

        def __enter__(self) -> Writer:
            return self

        def __exit__(self, *_: object) -> None:
            written.append(("closed", 0, 0))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def add_text(self, name: str, text: str) -> None:
            assert name == "config" and json.loads(text)["rank"] == 7
            assert "wandb_api_key" not in text and str(tmp_path) not in text

        def flush(self) -> None: ...

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    made = config(*LOGGED, "--logging_dir", str(tmp_path), "--log_tracker_name", "mine")
    assert made.loggers == ("tensorboard",)
    with LOGGERS["tensorboard"](made) as log:
        log(StepReport(3, 9, 0, loss=0.5, rate=1e-4, grad_norm=2.0, seconds_a_step=1.0))
    assert written == [
        ("loss/current", 0.5, 3),
        ("lr/unet", 1e-4, 3),
        ("grad_norm", 2.0, 3),
        ("closed", 0, 0),
    ]


def test_a_run_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    module = types.ModuleType("wandb")
    module.login = lambda key: told.append(key)

    @contextmanager
    def init(**given: object) -> Iterator[types.SimpleNamespace]:
        told.append(given)
        yield types.SimpleNamespace(log=lambda values, step: told.append((values, step)))

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    more = tmp_path / "more.toml"
    more.write_text("[wandb]\ntags = ['a']\n")
    folder = ["--log_with", "wandb", "--output_dir", str(tmp_path)]
    made = config(*LOGGED, *folder, "--log_tracker_config", str(more), "--wandb_run_name", "r")
    with LOGGERS["wandb"](made) as log:
        log(StepReport(3, 9, 0, loss=0.5, rate=1e-4, grad_norm=2.0, seconds_a_step=1.0))
    values = {"loss/current": 0.5, "lr/unet": 1e-4, "grad_norm": 2.0}
    assert told == [
        "key-123",
        {
            "project": "framepack",
            "name": "r",
            "dir": str(tmp_path / "logs" / "v1-lora"),
            "config": made.shared,
            "tags": ["a"],
        },
        (values, 3),
    ]
    assert "key-123" not in json.dumps(made.model_dump(mode="json"))
    assert config("--log_with", "all").loggers == ("tensorboard", "wandb")


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_of_a_launcher(clips: Path, tmp_path: Path) -> None:
    """They agree on a seed that nobody has given, share the weights and make samples together."""
    assert main(cache(clips)) == 0
    save_png(tmp_path / "start.png", np.zeros((32, 32, 3), np.uint8))
    line = f"a ball --i {tmp_path / 'start.png'} --w 32 --h 32 --f 1 --s 1 --d 7"
    (tmp_path / "prompts.txt").write_text(line)
    given = ["--sample_prompts", str(tmp_path / "prompts.txt"), "--sample_every_n_steps", "2"]
    given += ["--fp8_base", "--fp8_scaled", "--gradient_checkpointing", "--max_train_epochs", "2"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    launch = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    command = [sys.executable, "-m", *launch, "-m", "framepack_core.cli"]
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    _, *options = train(clips, tmp_path / "two", *given, "--shard_weights")
    at = options.index("--seed")
    done = subprocess.run(
        [*command, "fpack_train_network", *options[:at], *options[at + 2 :]],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("x.safetensors") == 1
    assert "4 steps, lora of rank 2" in done.stdout  # two epochs of three batches
    seed = open_weights(tmp_path / "two" / "x.safetensors").metadata["ss_seed"]
    _, *options = train(clips, tmp_path / "one", *given, "--gradient_accumulation_steps", "2")
    assert main(["fpack_train_network", *options, "--seed", seed]) == 0
    one, two = (
        [json.loads(s)["loss"] for s in (tmp_path / n / "x-log.jsonl").read_text().splitlines()]
        for n in ("one", "two")
    )
    assert two == pytest.approx(one, rel=1e-5)
    for name in ("one", "two"):
        metadata = open_weights(tmp_path / name / "x.safetensors").metadata
        assert (metadata["ss_max_train_steps"], metadata["ss_num_epochs"]) == ("4", "2")
    names = ["x_000002_00_7.png", "x_000004_00_7.png"]
    assert sorted(path.name for path in (tmp_path / "two" / "sample").iterdir()) == names
    alone, together = (load_image(tmp_path / n / "sample" / names[1]) for n in ("one", "two"))
    assert np.abs(together.astype(int) - alone).max() <= 1


# --- options --------------------------------------------------------------------------------------


MUSUBI = "--network_module networks.lora_framepack --network_dim 32 --optimizer_type adamw8bit \
    --learning_rate 2e-4 --gradient_checkpointing --timestep_sampling shift --sdpa --split_attn \
    --weighting_scheme none --discrete_flow_shift 3.0 --max_data_loader_n_workers 2 --f1 \
    --persistent_data_loader_workers --max_train_epochs 16 --save_every_n_epochs 1 --seed 42 \
    --mixed_precision bf16 --output_name lora"


def test_a_command_line_of_musubi_tuner() -> None:
    made = config(
        *MUSUBI.split(),
        *("--network_args", "rank_dropout=0.1", r"exclude_patterns=[r'.*single_.*']"),
        *("--optimizer_args", "weight_decay=0.1", "betas=0.9,0.99"),
        *("--save_precision", "float", "--resume", "lora-000001-state", "--save_state"),
    )
    assert (made.save_dtype, made.resume, made.save_state) == (
        "fp32", Path("lora-000001-state"), True,
    )  # fmt: skip
    assert config("--resume").resume is True
    assert (made.mode, made.epochs, made.save_every_epochs, made.seed) == ("f1", 16, 1, 42)
    assert (made.adapter.kind, made.adapter.rank, made.adapter.rank_dropout) == ("lora", 32, 0.1)
    assert made.adapter.exclude == (".*single_.*",)
    assert (made.timesteps.mode, made.timesteps.shift) == ("shift", 3.0)
    assert made.optimizer_args == {"weight_decay": 0.1, "betas": (0.9, 0.99)}
    assert (made.optimizer, made.learning_rate, made.gradient_checkpointing) == (
        "adamw8bit", 2e-4, True,
    )  # fmt: skip


def test_options_without_effect_are_named_in_one_line(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """musubi-tuner's own defaults, which files of it often have, are not worth a word."""
    given = "--lr_scheduler_power 3 --log_prefix v1 --save_last_n_epochs 2 --lr_decay_steps 0"
    options = train(clips, tmp_path, *given.split(), "--lr_scheduler_num_cycles", "1")
    said = "--lr_scheduler_power, --save_last_n_epochs, --log_prefix: no effect with the other"
    for script in ("train", "fpack_train_network"):
        main([script, *options[1:]])
        assert said in capsys.readouterr().err
    main(["fpack_train_network", *train(clips, tmp_path)[1:]])
    assert "no effect" not in capsys.readouterr().err


def test_timesteps_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Uniform ones between 250 and 750: ten bars of a tenth each."""
    given = "--timestep_sampling uniform --min_timestep 250 --max_timestep 750"
    assert main(["train", *given.split(), "--show_timesteps", "console"]) == 0
    shares = [line.split("%")[0].split()[-1] for line in capsys.readouterr().out.splitlines()]
    assert [round(float(share) / 10) for share in shares] == [0] * 5 + [1] * 10 + [0] * 5


def test_a_config_file_and_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        "max_train_steps = 7\n[network]\nnetwork_dim = 3\nnetwork_args = ['factor=4']\n"
        "gradient_checkpointing = false\nf1 = true\n[optimizer]\nlearning_rate = 1e-3\n"
    )
    made = config("--learning_rate", "0.5", "--config", str(file))
    assert (made.steps, made.adapter.rank, made.adapter.factor) == (7, 3, 4)
    assert (made.learning_rate, made.gradient_checkpointing, made.mode) == (0.5, False, "f1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--network_module networks.dora", "--network_module: 'networks.dora' is unknown"),
        ("--network_args depth=3", "--network_args: depth: unknown; known are rank_dropout"),
        ("--network_args depth", "--network_args: 'depth' is not NAME=VALUE"),
        ("--lr_scheduler steps", "--lr_scheduler: 'steps' is unknown; use 'constant', 'constant_w"),
        ("--lr_scheduler linear --lr_scheduler_args a=1", "linear does not take them"),
        ("--lr_scheduler_type torch.Fast", "lr_scheduler_type: torch has no Fast"),
        ("--lr_scheduler adafactor", "lr_scheduler adafactor: needs the optimizer adafactor"),
        ("--timestep_sampling middle", "--timestep_sampling: 'middle' is unknown; use 'shift', "),
        ("--caption_dropout 2", "--caption_dropout: '2' must be below 1"),
        ("--network_dropout 1.5", "--network_dropout: '1.5' must be below 1"),
        ("--learning_rate 0", "--learning_rate: '0' must be above 0"),
        ("--resolution 1 2 3", "--resolution: give one number, or width and height"),
        ("--log_with paper", "--log_with: 'paper' is unknown; use 'tensorboard', 'wandb' or 'all'"),
        ("--min_timestep 500 --max_timestep 400", "500 to 400 is not a range from 0 to 1000"),
        (
            "--attn_mode sageattn",
            "attention sageattn: it has no gradients; train with torch or f",
        ),
        ("--flash3", "attention flash3: its package is not installed; `pip install flash-attn-3`"),
        ("--keep_attention --xformers", "keep_attention: keeps PyTorch's own attention"),
        ("--compile_mode max-autotune", "compile_mode: needs compile; turn it on"),
        ("--shard_weights", "shard_weights: one process has nobody to share with; start several"),
        ("--shard_weights --blocks_to_swap 9", "cannot be combined with blocks_to_swap; choose"),
        ("--shard_weights --gpu_memory 9", "shard_weights: cannot be combined with gpu_memory"),
        ("--sage_attn", "attention sageattn: it has no gradients; train with torch or f"),
        ("--config gone.toml", "gone.toml: cannot be read"),
        ("--optimizer_type quick", "optimizer: 'quick' is unknown; use adamw, "),
        ("--optimizer_type no_such.Quick", "optimizer: no_such.Quick needs the package no_such"),
        ("--optimizer_args speed=1", "optimizer_args: adamw does not take them"),
        ("--network_weights gone.safetensors", "gone.safetensors does not exist"),
        ("--network_args include_patterns=nothing", "include pattern 'nothing' matches none of"),
        ("--resume", "x.state is not there: there is nothing to resume"),
        ("--f1 --one_frame", "argument --one_frame: not allowed with argument --f1"),
    ],
)
def test_mistaken_options(
    options: str,
    message: str,
    clips: Path,
    tmp_path: Path,
    no_models: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert message in failure(train(clips, tmp_path, *options.split()), capsys)


def test_options_that_change_nothing_here(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        "async_upload = false\nhuggingface_token = ''\nvae_dtype = 'float16'\nseed = 7\n"
        "[network]\nnetwork_args = ['conv_alpha=1', 'factor=4']\n"
    )
    given = ["--split_attn", "--dynamo_backend", "NO", "--max_data_loader_n_workers", "2"]
    made = config(*given, "--network_args", "conv_dim=4", "--config", str(file.with_suffix("")))
    assert made.seed == 7
    assert [record.getMessage() for record in caplog.records] == [
        "--split_attn, --dynamo_backend, --max_data_loader_n_workers, vae_dtype, "
        "network_args conv_dim, network_args conv_alpha: not needed here, ignored"
    ]
    caplog.clear()
    command = ["fpack_cache_text_encoder_outputs", "--dataset_config", "x", "--batch_size", "16"]
    assert cache_job(parse([*command, "--vae", "v", "--text_encoder1", "t"])).data.batch_size == 16
    assert caplog.messages == [
        "--vae, --batch_size (captions are encoded alone): not needed here, ignored"
    ]
    caplog.clear()
    cache_job(
        parse(["fpack_cache_latents", "--dataset_config", "x", "--fp8_llm", "--dtype", "bf16"])
    )
    assert caplog.messages == ["--dtype, --fp8_llm: not needed here, ignored"]


def test_options_of_musubi_tuner_that_are_refused_say_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of them at once."""
    file = tmp_path / "run.toml"
    file.write_text("huggingface_repo_id = 'me/lora'\nasync_upload = true")
    given = ["--dynamo_backend", "INDUCTOR", "--vae_dtype", "bfloat16", "--config", str(file)]
    assert failure(["train", *given], capsys) == (
        "error: --dynamo_backend: use --compile, which compiles the blocks; "
        "--vae_dtype: leave it out: the VAE is in float16 on a GPU; "
        "huggingface_repo_id: nothing is uploaded; afterwards run: hf upload REPOSITORY FILE; "
        "async_upload: nothing is uploaded; afterwards run: hf upload REPOSITORY FILE"
    )
    assert "--debug_mode: leave it out" in failure(["cache", "--debug_mode", "video"], capsys)


def test_a_mistaken_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.toml"
    command = ["train", "--config", str(file)]
    file.write_text("network_size = 3\nsplit_attn = true\n[more]\nrate = 1\nseed = 1")
    assert "run.toml: network_size, rate: unknown; use the names of" in failure(command, capsys)
    file.write_text("network_args = ['depth=3']")
    assert "run.toml: network_args: depth: unknown; known are rank_d" in failure(command, capsys)
    file.write_text("learning_rate = 0")
    assert "run.toml: learning_rate: 0 must be above 0" in failure(command, capsys)
    assert "--dataset_config missing" in failure(["train"], capsys)
    assert "--dataset_config missing" in failure(["cache"], capsys)


# --- mistakes in a data set: before any model is loaded -------------------------------------------


def write_toml(folder: Path, *tables: str) -> Path:
    path = folder / "data.toml"
    general = "[general]\nresolution = 32\n"
    path.write_text(general + "".join(f"[[datasets]]\n{table}\n" for table in tables))
    return path


def video_table(clips: Path, more: str = "") -> str:
    return f"video_directory = '{clips}'\n{more}"


def image_table(folder: Path, controls: int) -> str:
    for name in ("images", "controls"):
        (folder / name).mkdir()
    save_png(folder / "images" / "a.png", np.zeros((32, 32, 3), np.uint8))
    (folder / "images" / "a.txt").write_text("a")
    for i in range(controls):
        save_png(folder / "controls" / f"a_{i}.png", np.zeros((32, 32, 3), np.uint8))
    return (
        f"image_directory = '{folder / 'images'}'\ncontrol_directory = '{folder / 'controls'}'\n"
        "fp_1f_clean_indices = [0, 10]\nfp_1f_target_index = 1\n"
    )


def test_mistaken_clips(
    clips: Path, tmp_path: Path, no_models: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def error() -> str:
        found = {failure(command, capsys) for command in (cache(clips), train(clips, tmp_path))}
        assert len(found) == 1
        return found.pop()

    make_clip(clips / "c.mp4")
    assert "c.mp4: no caption; write one into c.txt" in error()
    (clips / "c.txt").write_text("c")
    make_clip(clips / "c.mp4", FRAMES - 1)
    assert "c.mp4: 4 frames, but 5 are needed" in error()
    (clips / "c.mp4").write_bytes(b"no video")
    assert "c.mp4: cannot be read" in error()


def test_mistaken_tables(
    clips: Path, tmp_path: Path, no_models: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def errors(*tables: str, options: str = "") -> str:
        toml, more = write_toml(tmp_path, *tables), options.split()
        commands = (cache(toml, *more), train(toml, tmp_path, *more))
        found = {failure(command, capsys) for command in commands}
        assert len(found) == 1
        return found.pop()

    images = image_table(tmp_path, controls=1)
    video = video_table(clips)
    assert "data sets 1 and 2 share the cache_directory" in errors(video, video)
    assert "a.png: 1 control images where fp_1f_clean_indices has 2" in errors(images)
    save_png(tmp_path / "controls" / "a_1.png", np.zeros((32, 32, 3), np.uint8))
    assert "a.png: the mode framepack learns from video clips" in errors(images)
    assert "a.png: the mode framepack learns from video clips" in errors(video, images)
    mixed = errors(video, images, options="--one_frame")
    assert "clip" in mixed and "the mode one_frame learns from images with control" in mixed
    assert "frame_extracton: unknown" in errors(video_table(clips, "frame_extracton = 'head'"))
    assert "no such folder" in errors(video_table(clips / "gone"))


def test_a_cache_of_another_mode(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    error = failure(train(clips, tmp_path), capsys)
    assert "a.mp4: its latents are not cached" in error
    assert main(cache(clips, "--f1")) == 0
    capsys.readouterr()
    request.getfixturevalue("no_models")
    error = failure(cache(clips), capsys)
    assert "is a cache for the mode f1, not framepack" in error
    assert error.endswith("empty this one, or cache with --no-skip_existing")
    assert "is a cache for the mode f1, not framepack" in failure(train(clips, tmp_path), capsys)


def test_another_window_than_the_data_sets(
    clips: Path, tmp_path: Path, no_models: None, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = write_toml(tmp_path, video_table(clips, "fp_latent_window_size = 1"))
    for command in (cache(toml), train(toml, tmp_path)):
        error = failure([*command, "--latent_window_size", "2"], capsys)
        assert error == (
            f"error: --latent_window_size 2: {toml}: datasets 1 has fp_latent_window_size = 1; "
            "take one of them out"
        )


def test_samples_are_decoded_as_they_can_be(
    clips: Path, tmp_path: Path, no_models: None, capsys: pytest.CaptureFixture[str]
) -> None:
    save_png(tmp_path / "start.png", np.zeros((32, 32, 3), np.uint8))
    (tmp_path / "prompts.txt").write_text(f"x --i {tmp_path / 'start.png'} --w 32 --h 32 --vs 1")
    given = ["--sample_prompts", str(tmp_path / "prompts.txt"), "--sample_at_first"]
    error = failure([*train(clips, tmp_path, *given), "--decode_overlap", "2"], capsys)
    assert error.startswith("error: decode_overlap: 2 latent frames are more than a window of 1")


def test_a_model_of_another_mode(
    clips: Path, tmp_path: Path, no_models: None, capsys: pytest.CaptureFixture[str]
) -> None:
    error = failure(train(clips, tmp_path, "--dit", str(SNAPSHOT / "transformer_f1")), capsys)
    assert "transformer_f1 is an F1 model; train it in the mode f1" in error
    error = failure(train(clips, tmp_path, "--dit", str(SNAPSHOT / "vae")), capsys)
    assert "not of a FramePack DiT" in error
