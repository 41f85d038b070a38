"""Prompt files and typed prompts: what each line makes, and that a bad one costs only itself."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runs import failure, files, parse, paths, picture, small

from framepack_core.cli import interactive, main
from framepack_core.headless import models as cli_models
from framepack_core.headless.job import parse_prompt_line
from framepack_core.headless.request import Request, decide
from framepack_core.models.text import TextEncoders
from framepack_core.runtime.errors import FramePackError
from framepack_core.sampling import generate
from framepack_core.sampling.latents import load_latents

LOADERS = ("load_dit", "load_vae", "load_image_encoder", "load_text_encoders")


@pytest.fixture
def image(tmp_path: Path) -> str:
    return picture(tmp_path / "a.png")


@pytest.fixture
def command(tmp_path: Path, image: str) -> list[str]:
    """`framepack batch` over the lines that write() puts there."""
    options = ("--image_path", image, "--video_sections", "1")
    return small("batch", tmp_path / "out", "--from_file", str(tmp_path / "p.txt"), *options)


def write(folder: Path, *lines: str) -> None:
    (folder / "p.txt").write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts what is loaded, and which texts are encoded."""
    counter: Counter[str] = Counter()

    def count(name: str, function: Any) -> Any:
        def counted(*args: Any, **options: Any) -> Any:
            counter[name] += 1
            return function(*args, **options)

        return counted

    for name in LOADERS:
        monkeypatch.setattr(cli_models, name, count(name, getattr(cli_models, name)))
    encode = TextEncoders.encode

    def encode_counted(self: TextEncoders, prompt: str, system: str | None = None) -> Any:
        counter[prompt] += 1
        return encode(self, prompt, system)

    monkeypatch.setattr(TextEncoders, "encode", encode_counted)
    return counter


# Prompt files


def test_each_line_makes_what_a_run_of_its_own_makes_with_models_loaded_once(
    tmp_path: Path,
    image: str,
    command: list[str],
    loads: Counter[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = picture(tmp_path / "b.png", 1)
    write(tmp_path, "# two", "x --d 2", "", f"y --i {other} --d 3 --s 1 --vs 2", "x --d 4")
    made = files([*command, "--output_type", "both"], capsys)
    assert [re.sub(r"^[\d-]+_", "", path.name) for path in made] == [
        *(f"{name}_latent.safetensors" for name in ("0002_2", "0004_3", "0005_4")),
        *(f"{name}.mp4" for name in ("0002_2", "0004_3", "0005_4")),
    ]
    assert dict(loads) == dict.fromkeys(LOADERS, 1) | {"x": 1, "y": 1}
    alone = ("--prompt", "y", "--image_path", other, "--seed", "3", "--video_sections", "2")
    single = small("generate", tmp_path / "alone", *alone, "--infer_steps", "1")
    [path] = files(single, capsys)
    assert torch.equal(load_latents(path)[0], load_latents(made[1])[0])


def test_a_line_that_fails_stops_no_other(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "x", "x --i none.png", "0:x;;;4:y", "y")
    assert main(command) == 2
    output = capsys.readouterr()
    assert [path.name.split("_")[1] for path in paths(output.out)] == ["0001", "0004"]
    file = tmp_path / "p.txt"
    assert [line for line in output.err.splitlines() if line.startswith("error: ")] == [
        f"error: {file} line 2: image none.png: no such file",
        f"error: {file} line 3: --prompt: there is no section 4 in a video of 1, which are 0 to 0 "
        "or -1 to -1; if 4 is the beginning of prose, write 0: in front of it",
        f"error: {file}: 2 of 4 lines failed: line 2, line 3",
    ]


def test_a_line_that_fails_in_the_model_stops_no_other(
    tmp_path: Path,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sample = generate.sample_unipc

    def spoilt(denoise: Any, noise: torch.Tensor, sigmas: torch.Tensor, **options: Any) -> Any:
        steps = len(sigmas) - 1
        return sample(denoise, noise, sigmas, **options) * (torch.nan if steps == 3 else 1)

    monkeypatch.setattr(generate, "sample_unipc", spoilt)
    write(tmp_path, "x --s 3", "x")
    assert main(command) == 2
    output = capsys.readouterr()
    assert [path.name.split("_")[1] for path in paths(output.out)] == ["0002"]
    assert "line 1: section 0: the model returned values that are not finite" in output.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x --zz 3", "line 2: --zz: unknown option; known are --n,"),
        ("x --w 4x", "line 2: --w: '4x' is not a whole number"),
    ],
)
def test_a_line_that_cannot_be_read_costs_only_itself(
    tmp_path: Path,
    command: list[str],
    line: str,
    message: str,
    loads: Counter[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path, "good", line)
    assert main(command) == 2
    output = capsys.readouterr()
    assert message in output.err and "1 of 2 lines failed: line 2" in output.err
    assert len(paths(output.out)) == 1
    loads.clear()
    write(tmp_path, "# nothing else", line)
    assert main(command) == 2
    assert not loads


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--from_file none.txt", "none.txt: cannot be read"),
        ("--dit none", "none does not exist"),
    ],
)
def test_mistakes_that_concern_all_lines(
    tmp_path: Path,
    command: list[str],
    options: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path, "x")
    assert message in failure([*command, *options.split()], capsys)


def test_the_file_has_to_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--from_file" in failure(["batch"], capsys)
    both = ["generate", "--from_file", "p.txt", "--interactive"]
    assert "--from_file and --interactive cannot be combined" in failure(both, capsys)


def request_of(command: list[str], line: str) -> Request:
    return Request.of(decide(parse(command).with_line(parse_prompt_line(line))))


def test_sections_of_a_line_win_over_its_seconds(
    command: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert request_of(command, "x --f 5 --vs 2").scene.sections == 2
    assert caplog.messages == [
        "--video_seconds has no effect with --video_sections; give one of them"
    ]


def test_every_inline_option_reaches_the_request(
    tmp_path: Path, command: list[str], image: str
) -> None:
    other = picture(tmp_path / "b.png", 1)
    given = [*command, "--magcache_mag_ratios", "0"]
    line = f"a;;;1:b --w 48 --h 64 --f 0.3 --d 9 --s 7 --l 2 --fs 3 --n n --i {other} --ei {image}"
    line += f" --im {other} --mcrr 0.5 --mct 0.2 --mck 3"
    request = request_of(given, line)
    scene = request.scene
    assert (scene.size, scene.sections, request.seed) == ((48, 64), 2, 9)
    assert (scene.prompt, scene.plan.sections[0].prompt) == ("a", "b")
    assert (scene.image.label, scene.plan.end.image.label) == (other, image)
    assert 0 < scene.start_mask.mean() < 1
    assert (request.sampler.steps, request.sampler.shift) == (7, 3)
    assert (request.cfg(None).scale, request.negative_prompt) == (2, "n")
    config = request.step_cache.keywords["config"]
    assert (config.retention, config.threshold, config.max_skips) == (0.5, 0.2, 3)
    assert len(request_of(command, "x --vs 3 --g 2").scene.plan.sections) == 3


def test_a_line_of_options_takes_the_prompt_of_the_command_line(command: list[str]) -> None:
    request = request_of([*command, "--prompt", "a cat"], "--d 5")
    assert (request.scene.prompt, request.seed) == ("a cat", 5)
    with pytest.raises(FramePackError, match="--prompt is missing"):
        request_of(command, "--d 5")


def test_an_inline_edit(tmp_path: Path, command: list[str], image: str) -> None:
    other = picture(tmp_path / "b.png", 1)
    line = f"x --of target_index=2,no_post --ci {image} --ci {other} --cim {other}"
    scene = request_of([*command, "--control_image_path", other], line).scene
    assert scene.section.latent_indices == (2,) and scene.section.clean_indices == (0, 0)
    assert [c.picture.label for c in scene.controls] == [image, other]
    assert [c.mask is None for c in scene.controls] == [False, True]


# Several processes


@pytest.mark.parametrize(("rank", "numbers"), [(0, ["0001", "0003"]), (1, ["0002"])])
def test_each_process_takes_its_share_of_the_lines(
    tmp_path: Path,
    command: list[str],
    rank: int,
    numbers: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    write(tmp_path, "x", "y", "z")
    assert [path.name.split("_")[1] for path in files(command, capsys)] == numbers


# Typed prompts


def test_an_error_costs_its_line_and_models_stay_loaded(
    tmp_path: Path,
    image: str,
    loads: Counter[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    typed = iter(["x --d 2", "", "# x", "x --zz 1", "x --i none.png", "x --d 3", "y --d 2"])

    def read(_: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(interactive, "line_reader", lambda: read)
    options = ("--image_path", image, "--video_sections", "1")
    assert main(small("interactive", tmp_path / "out", *options)) == 0
    output = capsys.readouterr()
    made = [load_latents(path)[0] for path in paths(output.out)]
    assert len(made) == 3 and not torch.equal(made[0], made[1])
    errors = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert [error.split(":")[1] for error in errors] == [" --zz", " image none.png"]
    assert dict(loads) == dict.fromkeys(LOADERS, 1) | {"x": 1, "y": 1}


def test_interrupting_a_run_leads_back_to_the_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([KeyboardInterrupt, EOFError])

    def read(_: str) -> str:
        raise next(answers)

    monkeypatch.setattr(interactive, "line_reader", lambda: read)
    assert main(small("generate", tmp_path, "--interactive")) == 0
    assert capsys.readouterr().err == "stopped\n"
