"""LoRAs, fp8 and merged models on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli_runs import failure, files, latents, picture, small
from safetensors.torch import load_file, save_file

from framepack_core.cli import main
from framepack_core.models.build import load_dit
from framepack_core.toyworld import OPPOSITE_LORA, SNAPSHOT
from framepack_core.weights.files import read_header

LORA = ("--lora_weight", str(OPPOSITE_LORA))
TOY = ("--snapshot", "toyworld")


@pytest.fixture
def generate(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    image = picture(tmp_path / "start.png")

    def run(*options: str) -> torch.Tensor:
        inputs = ("--image_path", image, "--prompt", "a red circle moves left")
        sections = ("--video_sections", "1")
        return latents(small("generate", tmp_path, *inputs, *sections, *options), capsys)

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


REFUSED = {
    "no file": (("--lora_weight", "gone.safetensors"), "gone.safetensors"),
    "more strengths": ((*LORA, "--lora_multiplier", "1", "2"), "--lora_multiplier: 2 values for 1"),
    "no LoRA": (("--include_patterns", "x"), "--include_patterns: 1 values for 0 files"),
    "pattern": (
        (*LORA, "--exclude_patterns", "nope"),
        "exclude pattern 'nope' matches none of the",
    ),
    "broken pattern": ((*LORA, "--include_patterns", "("), "is not a regular expression"),
    "strength": ((*LORA, "--lora_multiplier", "nan"), "strength nan is not a number"),
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
        monkeypatch.setattr(f"framepack_core.cli.models.{name}", load)
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
