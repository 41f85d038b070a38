"""LoRAs, fp8 and merged models on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli_runs import failure, files, latents, paths, picture, small
from safetensors.torch import load_file, save_file

from framepack_core.cli import main
from framepack_core.headless import crew
from framepack_core.headless.model_files import read_loras
from framepack_core.headless.models import Models
from framepack_core.headless.options import LoraOptions
from framepack_core.models.build import load_dit
from framepack_core.sampling.latents import load_latents
from framepack_core.toyworld import OPPOSITE_LORA, SNAPSHOT
from framepack_core.weights.files import read_header

LORA = ("--lora_weight", str(OPPOSITE_LORA))
TOY = ("--snapshot", "toyworld")


@pytest.fixture
def generate(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    image = picture(tmp_path / "start.png")

    def run(*options: str, ledger: Path | None = None) -> torch.Tensor:
        inputs = ("--image_path", image, "--prompt", "a red circle moves left")
        words = small("generate", tmp_path, *inputs, "--video_sections", "1", *options)
        if ledger is not None:
            words.remove("--no_ledger")
            words += ["--ledger", str(ledger)]
        return latents(words, capsys)

    return run


def test_a_lora_and_its_strength(generate) -> None:
    base, full = generate(), generate(*LORA)
    assert (full - base).abs().max() > 1e-2
    assert torch.equal(generate(*LORA, "--lora_multiplier", "0"), base)
    half = generate(*LORA, "--lora_multiplier", "0.5", "--lycoris")
    assert (half - base).norm() < (full - base).norm()
    twice = generate(*LORA, str(OPPOSITE_LORA), "--lora_multiplier", "0.25", "0.25")
    torch.testing.assert_close(twice, half, rtol=1e-4, atol=1e-4)


def test_patterns_for_each_file(generate) -> None:
    """The first file's single blocks and the second's others are the whole LoRA."""
    both = (*LORA, str(OPPOSITE_LORA))
    parts = generate(*both, "--include_patterns", "^single", "--exclude_patterns", "", "^single")
    torch.testing.assert_close(parts, generate(*LORA), rtol=1e-4, atol=1e-4)
    assert not torch.equal(generate(*LORA, "--include_patterns", "^single"), parts)


def test_fp8(generate) -> None:
    base = generate()
    distance = {
        option: float((generate(option) - base).norm() / base.norm())
        for option in ("--fp8", "--fp8_scaled", "--fp8_llm")
    }
    assert all(0 < moved < 0.2 for moved in distance.values()), distance
    with_lora = generate("--fp8_scaled", *LORA) - generate("--fp8_scaled")
    full = generate(*LORA) - base
    assert torch.cosine_similarity(with_lora.flatten(), full.flatten(), dim=0) > 0.8


# Sections


THREE = ("--video_sections", "3")
OF_SECTIONS = "--section_lora_strengths"


def by_section(latents: torch.Tensor) -> list[torch.Tensor]:
    """Its sections by time, each of one latent frame."""
    return [latents[:, :, index + 1] for index in range(3)]


@pytest.mark.parametrize("mode", [(), pytest.param(("--f1",), marks=pytest.mark.slow)])
def test_strengths_of_all_sections_are_those_of_the_run(generate, mode: tuple[str, ...]) -> None:
    video = (*THREE, *mode)
    base, full = generate(*video), generate(*video, *LORA)
    assert torch.equal(generate(*video, *LORA, OF_SECTIONS, "0-2:1"), full)
    assert torch.equal(generate(*video, *LORA, OF_SECTIONS, "0-2:0"), base)
    assert not torch.equal(full, base)
    half = generate(*video, *LORA, "--lora_multiplier", "0.5")
    assert torch.equal(generate(*video, *LORA, OF_SECTIONS, "0-2:0.5"), half)


def test_a_lora_in_the_chosen_section_alone(generate) -> None:
    """Made from the last section to the first: what is made before the chosen one is as without."""
    base, full = by_section(generate(*THREE)), by_section(generate(*THREE, *LORA))
    for chosen, strengths in enumerate(("1-2:0", "0:0;;;2:0", "0-1:0")):
        made = by_section(generate(*THREE, *LORA, OF_SECTIONS, strengths))
        assert all(torch.equal(made[i], base[i]) for i in range(chosen + 1, 3)), chosen
        assert not torch.equal(made[chosen], base[chosen]), chosen
    assert torch.equal(made[2], full[2])  # made first, so that nothing else differs either
    without = by_section(generate(*THREE, *LORA, OF_SECTIONS, "1:0"))
    assert torch.equal(without[2], full[2]) and not torch.equal(without[1], full[1])


CHANGING = (*THREE, *LORA, OF_SECTIONS, "0:0.5;;;1:0")


def test_strengths_of_sections_with_streamed_blocks(generate) -> None:
    assert torch.equal(generate(*CHANGING, "--blocks_to_swap", "3"), generate(*CHANGING))


@pytest.mark.slow
def test_strengths_of_sections_with_compiled_blocks(generate) -> None:
    compiled = ("--compile", "--compile_backend", "aot_eager", "--compile_dynamic", "true")
    generate(*THREE, *compiled)  # whose code must not serve the model with a LoRA
    torch.testing.assert_close(generate(*CHANGING, *compiled), generate(*CHANGING))


def test_a_batch_begins_every_line_with_whole_strengths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lines.txt").write_text("a red circle moves left --d 5\n" * 2)
    options = ("--image_path", picture(tmp_path / "start.png"), "--video_sections", "2", *LORA)
    batch = ("--from_file", str(tmp_path / "lines.txt"), OF_SECTIONS, "1:0.5;;;0:0")
    first, second = files(small("batch", tmp_path, *batch, *options), capsys)
    assert torch.equal(load_latents(first)[0], load_latents(second)[0])


def test_another_strength_of_a_section_keeps_those_made_before_it(
    generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, orders = crew.unipc_sampler, []

    def logged(*args):
        make = sample(*args)
        return lambda task: (orders.append(task.order), make(task))[1]

    monkeypatch.setattr(crew, "unipc_sampler", logged)
    made = {}
    for strengths in ("0-2:1", "0:0;;;1-2:1", "0:1;;;1:0;;;2:1", "0-2:1", "0-2:0"):
        orders.clear()
        generate(*THREE, *LORA, OF_SECTIONS, strengths, ledger=tmp_path / "kept")
        made.setdefault(strengths, []).append(len(orders))
    assert made == {"0-2:1": [3, 0], "0:0;;;1-2:1": [1], "0:1;;;1:0;;;2:1": [2], "0-2:0": [3]}


def test_strengths_of_sections_are_shown_and_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = ("--image_path", picture(tmp_path / "start.png"), "--prompt", "x", *THREE, *LORA)
    assert main(small("generate", tmp_path, *inputs, OF_SECTIONS, "-1:0.5")) == 0
    out = capsys.readouterr().out
    assert "section 2, frames 9-12 (0.30-0.40 s), padding 2, LoRA strength 0.5" in out
    assert read_header(paths(out)[-1]).metadata["section_lora_strengths"] == "-1:0.5"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((OF_SECTIONS, "1:0.5"), f"{OF_SECTIONS}: there is no LoRA; name one with --lora_weight"),
        ((*LORA, OF_SECTIONS, "1:x"), f"{OF_SECTIONS}: section 1: 'x' is not a number"),
        ((*LORA, OF_SECTIONS, "3:1"), f"{OF_SECTIONS}: there is no section 3 in a video of 3"),
        ((*LORA, OF_SECTIONS, "1:-1"), "'-1' must be at least 0"),
        ((*LORA, OF_SECTIONS, "1:10.5"), "'10.5' must be at most 10"),
        ((*LORA, OF_SECTIONS, "nan"), "'nan' is not a finite number"),
    ],
)
def test_strengths_of_sections_that_cannot_be(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setattr(Models, "_use", lambda *_: pytest.fail("a model was used"))
    inputs = ("--image_path", picture(tmp_path / "start.png"), "--prompt", "x", *THREE)
    for command in ("generate", "check"):
        assert message in failure(small(command, tmp_path, *inputs, *options), capsys)


# Merged models


def test_merged_is_the_lora_beside(
    generate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged = tmp_path / "merged.safetensors"
    command = ["merge", *TOY, *LORA, "--lora_multiplier", "0.5", "--save_merged_model", str(merged)]
    assert files(command, capsys) == [merged]
    beside, base = generate(*LORA, "--lora_multiplier", "0.5"), generate()
    # The base is in bf16 itself, so it is rounded a second time.
    error = generate("--dit", str(merged)) - beside
    assert error.norm() < 0.1 * (beside - base).norm()
    [entry] = json.loads(read_header(merged).metadata["framepack_merged"])["loras"]
    assert entry["file"] == OPPOSITE_LORA.name and entry["strength"] == 0.5


def test_merging_instead_of_generating(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shards"
    options = ("--image_path", "none.png", "--save_merged_model", str(out), "--shard_size", "0.001")
    made = files(small("generate", tmp_path, *options, *LORA, "--fp8_scaled"), capsys)
    assert made[-2:] == [
        out / "config.json",
        out / "diffusion_pytorch_model.safetensors.index.json",
    ]
    assert len(made) > 3 and not list(tmp_path.glob("*_latent.safetensors"))
    weight = load_dit(out).state_dict()["transformer_blocks.0.attn.to_q.weight"]
    assert weight.dtype == torch.float8_e4m3fn


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_types_of_a_merged_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str
) -> None:
    path = tmp_path / "m.safetensors"
    files(["merge", *TOY, "--f1", "--dtype", dtype, "--save_merged_model", str(path)], capsys)
    dtypes = {x.dtype for x in load_file(path).values()}
    assert dtypes == {{"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]}
    base = load_dit(SNAPSHOT / "transformer_f1", dtype=torch.float32).state_dict()
    for name, x in load_file(path).items():  # of small numbers fp16 has no more than this
        torch.testing.assert_close(x.float(), base[name], rtol=0, atol=2**-25)


def test_options_of_loras_that_are_not_there(caplog: pytest.LogCaptureFixture) -> None:
    options = LoraOptions(lora_multiplier=(1.0,), include_patterns=("x",))
    assert read_loras(options, SNAPSHOT / "transformer") == []
    assert caplog.messages == [
        f"--{flag} has no effect without --lora_weight"
        for flag in ("lora_multiplier", "include_patterns")
    ]


REFUSED = {
    "no file": (("--lora_weight", "gone.safetensors"), "gone.safetensors"),
    "more strengths": ((*LORA, "--lora_multiplier", "1", "2"), "--lora_multiplier: 2 values for 1"),
    "pattern": (
        (*LORA, "--exclude_patterns", "nope"),
        "exclude pattern 'nope' matches none of the",
    ),
    "broken pattern": ((*LORA, "--include_patterns", "("), "is not a regular expression"),
    "strength": (
        (*LORA, "--lora_multiplier", "nan"),
        "--lora_multiplier: 'nan' is not a finite number",
    ),
}


@pytest.mark.parametrize("command", ["generate", "batch", "interactive", "extend"])
@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_loaded(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    command: str,
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    for name in ("load_dit", "load_text_encoders", "load_vae"):
        monkeypatch.setattr(f"framepack_core.headless.models.{name}", load)
    lines = tmp_path / "lines.txt"
    lines.write_text("a red circle moves left\n")
    video = {
        "batch": ("--from_file", str(lines)),
        "extend": ("--video_path", "none.mp4", "--prompt", "x"),
    }
    options, message = REFUSED[case]
    assert message in failure(small(command, tmp_path, *video.get(command, ()), *options), capsys)


def test_fp32_is_no_type_to_merge_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "merge",
        *TOY,
        "--dtype",
        "fp32",
        "--save_merged_model",
        str(tmp_path / "m.safetensors"),
    ]
    assert "--dtype: a model is saved in bf16 or fp16" in failure(command, capsys)
    assert "--save_merged_model" in failure(["merge", *TOY], capsys)


def test_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lora", "inspect", *TOY, str(OPPOSITE_LORA)]) == 0
    report = capsys.readouterr().out
    assert "54 LoRA" in report and "rank 8" in report and "fits 54 modules" in report


def test_inspect_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every file is reported, and one that cannot be applied makes it exit 2."""
    wan = tmp_path / "wan.safetensors"
    key = "diffusion_model.blocks.0.self_attn.q"
    save_file(
        {f"{key}.lora_A.weight": torch.ones(2, 8), f"{key}.lora_B.weight": torch.ones(8, 2)}, wan
    )
    (tmp_path / "cut.safetensors").write_bytes(OPPOSITE_LORA.read_bytes()[:99])
    given = [str(wan), str(tmp_path / "cut.safetensors"), str(OPPOSITE_LORA)]
    assert main(["lora", "inspect", *given]) == 2
    seen = capsys.readouterr()
    assert "cannot be applied: it is a LoRA for Wan" in seen.out
    assert "cut.safetensors\n  cannot be read: " in seen.out
    # Toy World's does not fit the released model, which stands for any that is not named.
    assert "54 of another size" in seen.out
    assert seen.err.startswith("error: 3 of 3 files cannot be applied: ")
