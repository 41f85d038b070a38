"""The ledger, the check and the ledger's own command, on the command line."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cli_runs import failure, files, latents, paths, picture, small

from framepack_core.cli import check as cli_check
from framepack_core.cli import main
from framepack_core.headless import crew, models
from framepack_core.models import fastest
from framepack_core.models.vae import AutoencoderKL
from framepack_core.runtime import files as runtime_files
from framepack_core.runtime.images import load_image
from framepack_core.runtime.video import read_video
from framepack_core.sampling.generate import SectionTask, unipc_sampler
from framepack_core.sampling.latents import load_latents

SECTIONS = 3


@pytest.fixture
def image(tmp_path: Path) -> str:
    return picture(tmp_path / "a.png")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The orders of the sections that are really made."""
    orders: list[int] = []

    def logged(*args):
        sample = unipc_sampler(*args)

        def begin(task: SectionTask) -> torch.Tensor:
            orders.append(task.order)
            return sample(task)

        return begin

    monkeypatch.setattr(crew, "unipc_sampler", logged)
    return orders


def command(image: str, out: Path, *options: str) -> list[str]:
    sections = ["--video_sections", str(SECTIONS), "--prompt", "x", "--image_path", image]
    words = small("generate", out, *sections, *options)
    words.remove("--no_ledger")
    return words


def stop_in(order: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """End every run in a section."""

    def stopping(*args):
        sample = unipc_sampler(*args)

        def begin(task: SectionTask) -> torch.Tensor:
            if task.order == order:
                raise error
            return sample(task)

        return begin

    monkeypatch.setattr(crew, "unipc_sampler", stopping)


def test_another_anchor_is_another_run(
    image: str, tmp_path: Path, made: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    def sections_made(*options: str) -> int:
        made.clear()
        latents(command(image, tmp_path / "out", "--f1", *options), capsys)
        return len(made)

    counts = [sections_made(*options) for options in ((), ("--anchor", "0"), ("--anchor", "1"))]
    assert counts == [SECTIONS, 0, SECTIONS]
    assert sections_made("--anchor", "1") == 0
    assert sections_made("--anchor", "0.5") == SECTIONS


def test_a_stopped_run_says_how_to_go_on_and_does(
    image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = latents(command(image, tmp_path / "whole", "--no_ledger"), capsys)
    noted = []  # when the products are chosen that a resumed run has to choose again
    monkeypatch.setattr(models, "choose_products", lambda *_: noted.append(fastest._file))
    with monkeypatch.context() as patch:
        stop_in(1, KeyboardInterrupt(), patch)
        assert main(command(image, tmp_path / "out")) == 130
    ledger = tmp_path / "out" / ".ledger"
    assert (
        f"warning: 1 of 3 sections are kept in {ledger}; the same command with --seed 1 resumes "
        "after them, and with --finish_after 1 too it makes a video of them"
    ) in capsys.readouterr().err
    with monkeypatch.context() as patch:
        stop_in(1, AssertionError("nothing new is made"), patch)
        ended = latents(command(image, tmp_path / "out", "--finish_after", "1"), capsys)
    assert torch.equal(ended, expected[:, :, -1:])
    assert main(command(image, tmp_path / "out")) == 0
    out = capsys.readouterr().out
    assert "ledger: 1 of 3 sections are there already; resuming after them" in out
    assert torch.equal(load_latents(paths(out)[-1])[0], expected)
    assert noted == 3 * [ledger / "attention.json"]


@pytest.mark.parametrize("mode", [(), ("--f1",)])
def test_a_run_that_is_told_to_finish_ends_as_a_whole_video(
    image: str, tmp_path: Path, mode: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """After the section in progress; the same command then makes the others, to the same bits."""
    whole = latents(command(image, tmp_path / "whole", *mode, "--no_ledger"), capsys)
    out, made = tmp_path / "out", []

    def told(*args):
        sample = unipc_sampler(*args)

        def begin(task: SectionTask) -> torch.Tensor:
            if made == [0]:
                assert main(["finish", "--save_path", str(out)]) == 0
            made.append(task.order)
            return sample(task)

        return begin

    monkeypatch.setattr(crew, "unipc_sampler", told)
    assert main(command(image, out, *mode, "--output_type", "both")) == 0
    printed = capsys.readouterr().out
    assert "finish after the section in progress" in printed
    assert (
        "finished early, with 2 of 3 sections; the same command with --seed 1 makes the others"
    ) in printed
    latent_file, video = paths(printed)
    ended = load_latents(latent_file)[0]
    assert torch.equal(ended, whole[:, :, :3] if mode else whole[:, :, -2:])
    assert len(read_video(video)[0]) == (9 if mode else 5) == 4 * ended.shape[2] - 3
    assert made == [0, 1]
    assert torch.equal(latents(command(image, out, *mode), capsys), whole)
    assert made == [0, 1, 2]  # and what was asked before this run began did not end it


def test_finishing_where_no_run_keeps_its_sections_is_refused(tmp_path: Path, capsys) -> None:
    message = failure(["finish", "--save_path", str(tmp_path / "typo")], capsys)
    assert message == (
        f"error: ledger {tmp_path / 'typo' / '.ledger'}: no such folder, so no run keeps its "
        "sections there; name --ledger or --save_path as the run does"
    )


def test_variants_are_each_what_their_seed_makes_alone_and_one_goes_on(
    image: str, tmp_path: Path, made: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two first sections are looked at, then one of them becomes the whole video."""
    out = tmp_path / "out"
    assert main(command(image, out, "--f1", "--variants", "2", "--finish_after", "2")) == 0
    printed = capsys.readouterr().out
    assert "2 variants, seeds 1, 2" in printed
    both = paths(printed)
    assert [path.stem.split("_")[1] for path in both] == ["1", "2"]
    made.clear()
    picked = latents(command(image, out, "--f1", "--seed", "2"), capsys)
    assert made == [2]
    assert torch.equal(load_latents(both[1])[0], picked[:, :, :3])
    alone = latents(command(image, tmp_path / "alone", "--f1", "--seed", "2"), capsys)
    assert torch.equal(alone, picked)


def test_what_another_video_goes_on_from_is_written_beside(
    image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ["--prompt", "0:walks;;;2:sits", "--section_seeds", "1:7"]
    words = command(image, tmp_path / "out", *prompts, "--hand_on")
    latent_file, folder = files([*words, "--output_type", "latent_images"], capsys)
    stem = str(folder)
    last = load_latents(Path(f"{stem}_last_latent.safetensors"))[0]
    assert torch.equal(last, load_latents(latent_file)[0][:, :, -1:])
    frames = sorted(folder.iterdir())
    assert (load_image(Path(f"{stem}_last.png")) == load_image(frames[-1])).all()
    assert json.loads(Path(f"{stem}_sections.json").read_text(encoding="utf-8")) == [
        {"section": 0, "frames": [1, 4], "made": 3, "padding": 0},
        {"section": 1, "frames": [5, 8], "made": 2, "padding": 1, "seed": 7},
        {"section": 2, "frames": [9, 12], "made": 1, "padding": 2, "prompt": "sits"},
    ]


def test_an_end_after_all_sections_is_no_early_end(
    image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(image, tmp_path / "out", "--finish_after", "3")) == 0
    told = capsys.readouterr()
    assert "--finish_after 3 has no effect, as the video has 3 sections" in told.err
    assert "finished early" not in told.out


def test_other_settings_start_afresh_and_no_ledger_keeps_nothing(
    image: str, tmp_path: Path, made: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--ledger", str(tmp_path / "kept")]
    changes = {
        "": 3,
        "--infer_steps 3": 3,
        "--prompt y": 3,
        "--guidance_scale 2": 3,
        "--teacache 0.2": 3,
        "--section_seeds 0:5": 1,  # section 0 is the one made last
        "--f1": 3,
        "--output_type both": 0,
    }
    counts = {}
    for change in changes:
        made.clear()
        assert main(command(image, tmp_path / "out", *place, *change.split())) == 0
        counts[change] = len(made)
    assert counts == changes
    assert "the most similar one had another steps (2, now 3)" in capsys.readouterr().out
    assert not (tmp_path / "out" / ".ledger").exists()
    made.clear()
    assert main(command(image, tmp_path / "out", *place, "--no_ledger")) == 0
    assert len(made) == SECTIONS


def test_a_full_disk_at_each_write_loses_one_section_at_most(
    image: str, tmp_path: Path, made: list[int], monkeypatch, capsys
) -> None:
    """The list of runs, each section, the latents, the video: the disk is full at each in turn."""
    expected = latents(command(image, tmp_path / "whole", "--no_ledger"), capsys)
    made.clear()
    flush, out = runtime_files._flush, tmp_path / "out"
    writes = ["runs.json", *[".safetensors"] * SECTIONS, "_latent.safetensors", ".mp4"]
    for attempt, write in enumerate(writes):
        succeed = iter(range(min(attempt, 2)))  # the list of runs, and what failed the last time

        def full(path: Path, succeed=succeed) -> None:
            if next(succeed, None) is None:
                raise OSError(28, "No space left on device", str(path))
            flush(path)

        monkeypatch.setattr(runtime_files, "_flush", full)
        assert main(command(image, out, "--output_type", "both")) == 2
        said = capsys.readouterr().err
        place = rf"{re.escape(str(out))}\S+{re.escape(write)}"
        assert re.search(rf"error: cannot write {place}: No space left", said), said
        assert "files finished earlier are safe; free some space and run again" in said
        assert not [path for path in out.rglob(".*") if path.name != ".ledger"]
    monkeypatch.setattr(runtime_files, "_flush", flush)
    assert torch.equal(latents(command(image, out), capsys), expected)
    assert made == [0, 0, 1, 1, 2, 2]  # each again whose write failed, and nothing else


def test_decoding_out_of_memory_goes_on_with_fewer_frames_and_the_same_pixels(
    image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    words = [*command(image, tmp_path / "out"), "--output_type", "video"]
    [expected] = files(words, capsys)
    whole = AutoencoderKL.decode

    def limited(vae: AutoencoderKL, x: torch.Tensor) -> torch.Tensor:
        if vae.chunk_size is None:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return whole(vae, x)

    monkeypatch.setattr(AutoencoderKL, "decode", limited)
    assert main(words) == 0
    said = capsys.readouterr()
    assert said.err.count("warning: decoding ran out of memory with all frames at once; ") == 1
    assert read_video(paths(said.out)[-1])[0].tolist() == read_video(expected)[0].tolist()


def test_ledger_command_lists_and_prunes(
    image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(command(image, out)) == 0
    capsys.readouterr()
    where = ["--save_path", str(out)]
    assert main(["ledger", "list", *where]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "3 sections" in lines[0] and "3 of 3 sections" in lines[1]
    assert "seed 1" in lines[1]
    assert main(["ledger", "prune", *where]) == 0
    assert capsys.readouterr().out.startswith("0 sections removed\n")
    assert main(["ledger", "prune", *where, "--limit", "0"]) == 0
    assert capsys.readouterr().out.startswith("3 sections removed\n")
    assert "no such folder" in failure(["ledger", "list", "--ledger", str(tmp_path / "x")], capsys)
    assert "--limit" in failure(["ledger", "prune", *where, "--limit", "-1"], capsys)


def check(image: str, out: Path, *options: str) -> list[str]:
    words = small("check", out, "--prompt", "x", "--image_path", image, *options)
    return [*words, "--video_sections", "2"]


def test_check_reports_and_makes_nothing(
    image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(check(image, tmp_path / "out", "--output_type", "video")) == 0
    out = capsys.readouterr().out
    assert "framepack: 32x16, 9 frames" in out
    assert re.search(r"check: files are readable .*: dit 7.\d MB, vae 4.\d MB", out)
    assert re.search(r"check: cpu: 1.\d GB needed at most, [\d.]+ GB free", out)
    assert re.search(r"check: disk: [\d.]+ kB needed, [\d.]+ GB free", out)
    assert "check: encoder libx264 works" in out
    assert re.search(r"time: sampling about [\d.]+ s \(4 passes of .* decoding [\d.]+ s", out)
    assert out.endswith("check: all is well\n")
    assert not list((tmp_path / "out").iterdir())


def test_check_refuses_what_the_run_refuses(
    image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = failure([*check(image, tmp_path), "--gpu_memory", "12"], capsys)
    assert "gpu_memory: cpu has no memory of its own" in message


@pytest.mark.parametrize(
    ("options", "slices"),
    [
        ((), [(0, 3), (2, 4), (3, 5), (4, 5)]),
        (("--decode_overlap", "1"), [(0, 3), (2, 5)]),
        (("--bulk_decode",), [(0, 5)]),
    ],
)
def test_check_counts_what_is_decoded(
    image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options, slices
) -> None:
    probe, told = cli_check.probe_decode, []

    def noted(decode: Any, start: Any, cut: list[tuple[int, int]], *more: Any) -> Any:
        told.extend(cut)
        return probe(decode, start, cut, *more)

    monkeypatch.setattr(cli_check, "probe_decode", noted)
    command = [*check(image, tmp_path), "--output_type", "video", "--video_sections", "4"]
    assert main([*command, *options]) == 0
    assert told == slices


def test_check_names_the_setting_to_change(
    image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr("framepack_core.cli.check.free_device_memory", lambda device: 10**8)
    error = failure(check(image, tmp_path), capsys)
    assert "cpu is too small for the transformer: use another --device" in error
    assert "too small for the text encoders: use --fp8_llm" in error
    text = tmp_path / "text.txt"
    text.write_text("no model")
    assert "is not a file of weights" in failure(check(image, tmp_path, "--vae", str(text)), capsys)


def test_check_estimates_the_time_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial models of a few blocks foretell a pass of the whole transformer."""
    from framepack_core.models.build import dit_config, load_dit
    from framepack_core.sampling import probe
    from framepack_core.sampling.probe import TrialPass, _measure, probe_transformer
    from framepack_core.toyworld import SNAPSHOT

    path, start = SNAPSHOT / "transformer", torch.zeros(1, 16, 1, 8, 8)
    tokens = {"text_tokens": 10, "image_tokens": 9}
    trial = TrialPass(dit_config(path), "framepack", 9, start, torch.float32, **tokens)
    dit = load_dit(path, dtype=torch.float32)
    # On its one thread: the other tests' work beside it is in no clock but the wall's.
    clock = SimpleNamespace(perf_counter=time.process_time)
    monkeypatch.setattr(probe, "time", clock)
    with torch.no_grad():
        ratios = []
        for _ in range(3):
            told = probe_transformer(trial).seconds
            real = _measure(lambda: trial.run(dit), start.device).seconds
            ratios.append(told / real)
    assert min(abs(ratio - 1) for ratio in ratios) < 0.3, ratios
