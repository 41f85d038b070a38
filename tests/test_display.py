"""A display that fails is reported once, by name, and the run ends with what it would have made."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_runs import paths, picture, small
from tqdm import tqdm

from framepack_core.cli import main
from framepack_core.headless import jobs
from framepack_core.headless.models import Models
from framepack_core.headless.request import Request
from framepack_core.runtime import display
from framepack_core.runtime.display import Bar, Display, console, hosted, say, warn
from framepack_core.runtime.images import save_png
from framepack_core.runtime.video import VideoWriter
from framepack_core.sampling import generate
from framepack_core.sampling.latents import load_latents
from framepack_core.training import logs, run_files, samples
from framepack_core.training.dataset import TrainingSet
from framepack_core.weights.files import open_weights

ROOT = Path(__file__).resolve().parents[1]


def broken(*_: object, **__: object) -> Any:
    raise RuntimeError("it is broken")


def warnings_in(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("warning: ")]


# --- the rule -------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def new_run() -> None:
    with console():
        pass


def test_a_failure_is_reported_once_for_each_type(caplog: pytest.LogCaptureFixture) -> None:
    shown = Display("the chart")
    for error in (ValueError("no\nmore"), ValueError("other"), OSError(), torch.OutOfMemoryError()):
        with shown:
            raise error
    for part in ("the second chart", "the third chart"):
        with Display(part, "charts"):
            raise ValueError
    assert caplog.messages == [
        "the chart failed, the run continues without it (ValueError: no)",
        "the chart failed, the run continues without it (OSError)",
        "the chart failed, the run continues without it (OutOfMemoryError)",
        "the second chart failed, the run continues without it (ValueError)",
    ]


def test_each_run_of_a_host_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(display, "_host", display._Host())
    runs = iter("aaabb")
    hosted(run=lambda: next(runs))
    for _ in range(3):
        with Display("the chart"):
            raise ValueError
    assert len(caplog.messages) == 2


def test_what_stops_a_run_passes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Cancelled(Exception):
        """As ComfyUI's was before 0.33."""

    monkeypatch.setattr(display, "_host", display._Host())
    hosted((Cancelled,))
    for kind in (Cancelled, KeyboardInterrupt, SystemExit, GeneratorExit):
        with pytest.raises(kind), Display("the chart"):
            raise kind
    assert not caplog.messages


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp932", "utf-8"])
def test_letters_that_a_stream_cannot_hold(encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    say("é データ 🎉 \udc80 end", stream)
    written = stream.buffer.getvalue().decode(encoding)
    letters = {"ascii": r"\xe9 \u30c7\u30fc\u30bf", "cp1252": r"é \u30c7\u30fc\u30bf"}
    expected = letters.get(encoding, "é データ" if encoding == "utf-8" else r"\xe9 データ")
    party = "🎉" if encoding == "utf-8" else r"\U0001f389"
    assert written == f"{expected} {party} \\udc80 end\n"


class Broken(io.StringIO):
    """A stream that nobody reads any more."""

    name = "<broken>"

    def write(self, _text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_stream_that_nobody_reads(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        say("a line", Broken())
    [warning] = caplog.messages
    assert "printing to <broken> failed" in warning and "BrokenPipeError" in warning


def test_no_streams_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with pythonw.exe."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with console(), Bar("work", 2) as bar:
        say("a line")
        warn("a warning")
        bar.move()


def test_warnings_where_stderr_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Broken())
    with console(), Bar("work", 2) as bar:
        warn("a warning")
        bar.move()


def test_lines_are_above_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with console(), Bar("work", 3) as bar:
        bar.move()
        say("a line")
        warn("a warning")
        bar.move_to(3, 3, note="last")
    seen = capsys.readouterr()
    assert seen.out == "a line\n"
    assert warnings_in(seen.err.replace("\r", "\n")) == ["warning: a warning"]
    assert "work: 100%" in seen.err and "3/3" in seen.err and "last" in seen.err


def test_only_one_module_prints() -> None:
    """Ruff's T201 refuses print; bars are drawn by one module."""
    users = [
        path.relative_to(ROOT).as_posix()
        for folder in ("framepack_core", "nodes")
        for path in (ROOT / folder).rglob("*.py")
        if "tqdm" in path.read_text("utf-8") or "warnings.warn" in path.read_text("utf-8")
    ]
    assert users == ["framepack_core/runtime/display.py"]


# --- commands -------------------------------------------------------------------------------------


class Unwritable(io.StringIO):
    name = "<stdout>"

    def write(self, text: str) -> int:
        broken()
        return len(text)


def stdout_fails(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sys, "stdout", Unwritable())


def bar_fails_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tqdm, "__init__", broken)


def bar_fails_later(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tqdm, "update", broken)


def summary_fails(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Request, "describe", broken)


def drift_fails(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(generate, "measure_drift", broken)


def drift_note_fails(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(jobs._Progress, "describe_drift", broken)


Failure = Callable[[pytest.MonkeyPatch], None]
SAMPLING: dict[Failure, str] = {
    stdout_fails: "printing to <stdout>",
    bar_fails_at_once: "progress bar 'section 1/2'",
    bar_fails_later: "progress bar 'section 1/2'",
    summary_fails: "summary of the run",
    drift_fails: "measuring drift",
    drift_note_fails: "note on drift",
}


def named(failure: Failure) -> str:
    return failure.__name__


def commands(folder: Path) -> Callable[..., list[str]]:
    image = picture(folder / "a.png")

    def command(name: str, out: str, *options: str) -> list[str]:
        video = ("--image_path", image, "--prompt", "a cat", "--video_sections", "2")
        return small(name, folder / out, *video, *options)

    return command


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., list[str]]:
    return commands(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """What a run makes whose displays all work."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(commands(folder)("generate", "whole")) == 0
    [made] = (folder / "whole").glob("*.safetensors")
    return load_latents(made)[0]


@pytest.mark.parametrize("failure", SAMPLING, ids=named)
def test_generate(
    failure: Failure,
    whole: torch.Tensor,
    command: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        failure(patch)
        assert main(command("generate", "out")) == 0
    [warning] = warnings_in(capsys.readouterr().err.replace("\r", "\n"))
    assert warning.startswith(f"warning: {SAMPLING[failure]} failed, the run continues without it")
    assert "it is broken" in warning
    [made] = (tmp_path / "out").glob("*.safetensors")
    assert torch.equal(load_latents(made)[0], whole)


@pytest.mark.parametrize("failure", [bar_fails_later, drift_fails], ids=named)
def test_batch(
    failure: Failure,
    command: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "p.txt").write_text("a cat\na dog", encoding="utf-8")
    failure(monkeypatch)
    options = ("--from_file", str(tmp_path / "p.txt"), "--output_type", "video")
    assert main(command("batch", "out", *options)) == 0
    seen = capsys.readouterr()
    assert len(paths(seen.out)) == 2 == len(list((tmp_path / "out").glob("*.mp4")))
    [warning] = warnings_in(seen.err.replace("\r", "\n"))
    assert "it is broken" in warning


# --- training -------------------------------------------------------------------------------------


def writer_fails_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(logs.LOGGERS, "tensorboard", broken)


class BrokenLog:
    def __init__(self, _folder: Path) -> None: ...

    def __enter__(self) -> Callable[..., None]:
        return broken

    def __exit__(self, *_: object) -> None:
        broken()


def writer_fails_later(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(logs.LOGGERS, "tensorboard", BrokenLog)


def loss_log_fails(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(run_files, "append_log", broken)


def sampling_fails(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(samples.PreparedSample, "make", broken)


def sample_video_fails(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(VideoWriter, "write", broken)


def decoder_fails(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Models, "decoder", broken)


def data_summary_fails(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TrainingSet, "describe", broken)


TRAINING: dict[Failure, str] = {
    stdout_fails: "printing to <stdout>",
    bar_fails_at_once: "progress bar 'training'",
    bar_fails_later: "progress bar 'training'",
    data_summary_fails: "summary of the run",
    writer_fails_at_once: "logging to tensorboard",
    writer_fails_later: "logging to tensorboard",
    loss_log_fails: "log of losses",
    sampling_fails: "sample x_000000_00_7",
    sample_video_fails: "sample x_000000_00_7",
    decoder_fails: "samples of step 0",
}


@dataclass(frozen=True)
class Training:
    """A cached clip and a prompt, and what a training makes whose displays all work."""

    folder: Path
    whole: dict[str, torch.Tensor]

    @classmethod
    def prepare(cls, folder: Path) -> Training:
        clips = folder / "clips"
        clips.mkdir()
        noise = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
        with VideoWriter(clips / "a.mp4", width=32, height=32, fps=30) as video:
            for frame in noise:
                video.write(frame)
        (clips / "a.txt").write_text("a clip")
        save_png(folder / "start.png", noise[0])
        line = f"a ball --i {folder / 'start.png'} --w 32 --h 32 --f 5 --s 1 --d 7"
        (folder / "prompts.txt").write_text(line)
        made = cls(folder, {})
        assert main(made.command("cache")) == 0
        assert made.train(folder / "whole") == 0
        made.whole.update(tensors(folder / "whole"))
        return made

    def command(self, name: str, *options: str) -> list[str]:
        small = ["--resolution", "32", "--latent_window_size", "1", "--device", "cpu"]
        return [name, "--dataset_config", str(self.folder / "clips"), *small, *options]

    def train(self, out: Path) -> int:
        options = "--output_name x --max_train_steps 2 --network_dim 2 --seed 1"
        samples = "--sample_at_first --sample_every_n_steps 1 --sample_prompts"
        words = [*options.split(), *samples.split(), str(self.folder / "prompts.txt")]
        logger = ("--log_with", "tensorboard", "--output_dir", str(out))
        return main(self.command("train", *words, *logger))


def tensors(out: Path) -> dict[str, torch.Tensor]:
    lora = open_weights(out / "x.safetensors")
    return {name: lora.load(name) for name in lora}


class SilentLog(BrokenLog):
    def __enter__(self) -> Callable[..., None]:
        return lambda _report: None

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Training]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(logs.LOGGERS, "tensorboard", SilentLog)
        yield Training.prepare(tmp_path_factory.mktemp("training"))


TWINS = (bar_fails_at_once, writer_fails_at_once, sample_video_fails)  # of quicker failures


@pytest.mark.parametrize(
    "failure",
    [pytest.param(f, marks=pytest.mark.slow if f in TWINS else ()) for f in TRAINING],
    ids=named,
)
def test_train(
    failure: Failure,
    training: Training,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        failure(patch)
        assert training.train(tmp_path) == 0
    [warning] = warnings_in(capsys.readouterr().err.replace("\r", "\n"))
    assert warning.startswith(f"warning: {TRAINING[failure]} failed, the run continues without it")
    made = tensors(tmp_path)
    assert set(made) == set(training.whole)
    assert all(torch.equal(made[name], training.whole[name]) for name in made)


# --- processes ------------------------------------------------------------------------------------


def run(
    command: list[str], encoding: str = "utf-8", stdout: Any = subprocess.PIPE
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "framepack_core.cli", *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"},
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
def test_an_output_that_is_not_utf8(command: Callable[..., list[str]], tmp_path: Path) -> None:
    """Emoji in prompts, a folder with Japanese letters, and a line that fails."""
    encoding = "ascii"
    (tmp_path / "p.txt").write_text("a cat 🎉\na dog --i 🎉.png\nein Bär", encoding="utf-8")
    lines = ("--from_file", str(tmp_path / "p.txt"), "--video_sections", "1")
    done = run(command("batch", "データ", *lines), encoding)
    errors = [x for x in done.stderr.decode(encoding).splitlines() if x.startswith("error: ")]
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    first, _of_all = errors
    assert "line 2" in first and r"\U0001f389.png" in first
    made = list((tmp_path / "データ").glob("*.safetensors"))
    said = done.stdout.decode(encoding).splitlines()
    assert len(made) == 2 == len([line for line in said if line.endswith(".safetensors")])


@pytest.mark.slow
def test_a_reader_that_leaves(command: Callable[..., list[str]], tmp_path: Path) -> None:
    """As `framepack batch | head -1` does: all lines are made, and one warning is given."""
    (tmp_path / "p.txt").write_text("a cat\na dog", encoding="utf-8")
    reading, writing = os.pipe()
    os.close(reading)
    lines = ("--from_file", str(tmp_path / "p.txt"), "--video_sections", "1")
    batch = command("batch", "out", *lines)
    try:
        done = run(batch, stdout=writing)
    finally:
        os.close(writing)
    errors = done.stderr.decode().replace("\r", "\n")
    assert done.returncode == 0, errors
    assert "Traceback" not in errors and "Exception ignored" not in errors
    [warning] = warnings_in(errors)
    assert "printing to <stdout> failed, the run continues without it" in warning
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 2
