"""`framepack verify`: Toy World is within rounding, and whatever is wrong with a model is named."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runs import failure, parse
from safetensors.torch import load_file, save_file
from torch import Tensor

from framepack_core.cli import main
from framepack_core.headless import verify as verification
from framepack_core.headless.models import Models
from framepack_core.headless.verify import Verification, open_verification
from framepack_core.headless.verify_models import from_diffusers
from framepack_core.headless.verify_report import Checked
from framepack_core.models.dit import FramePackDiT
from framepack_core.models.merge import save_dit
from framepack_core.models.offload import WeightSizes
from framepack_core.sampling.estimate import OTHER_MEMORY
from framepack_core.toyworld import SNAPSHOT
from framepack_core.weights.files import open_weights

LORA = SNAPSHOT.parent / "loras" / "opposite.safetensors"
DIT = SNAPSHOT / "transformer"


def verify(out: Path, *options: str) -> list[str]:
    return ["verify", "--device", "cpu", "--save_path", str(out), *options]


def toy_dit() -> dict[str, Tensor]:
    """The tensors of Toy World's transformer."""
    return {name: x.clone() for name, x in open_weights(sorted(DIT.glob("*.safetensors"))).items()}


def without_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)


@pytest.mark.slow
def test_toy_world_is_within_rounding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against diffusers where it is installed."""
    assert main(verify(tmp_path, "--f1", "--lora_weight", str(LORA), "--seed", "3")) == 0
    said = capsys.readouterr()
    assert "these change nothing: --seed" in said.err
    assert said.out.count(": within rounding\n") == 6  # five models and the LoRA
    report = (tmp_path / "verify.md").read_text(encoding="utf-8")
    assert "Everything is within rounding." in report
    assert "beyond rounding" not in report
    name = "HunyuanVideoFramepackTransformer3DModel"
    assert (name in report) == (from_diffusers(name) is not None)
    assert f"LoRA {LORA.name} at 1 | float32" in report
    assert "merged by their formula" in report
    assert "204 bfloat16 in the file, 204 float32 here" in report
    assert "3388250ca6346af0b207218e27620614768228b41dea256fd27b85d9273cb260" in report  # sha256sum
    assert str(SNAPSHOT) not in report and str(tmp_path) not in report


def faulty_files(folder: Path) -> Path:
    """Toy World's transformer with a fault of each kind."""
    folder.mkdir()
    tensors = toy_dit()
    q, k = (f"transformer_blocks.1.attn.{name}.weight" for name in ("to_q", "to_k"))
    tensors[q], tensors[k] = tensors[k], tensors[q]
    tensors["single_transformer_blocks.2.proj_out.weight"] *= 1.5
    tensors["single_transformer_blocks.4.attn.to_v.weight"][3, 5] += 1
    tensors["norm_out.linear.weight"] = tensors["norm_out.linear.weight"].roll(128, 0)
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    shutil.copy(DIT / "config.json", folder)
    return folder


def test_faults_of_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = str(faulty_files(tmp_path / "transformer"))
    line = failure(verify(tmp_path, "--dit", files, "--against", str(SNAPSHOT)), capsys)
    assert "FramePack DiT: not what the reference computes" in line
    report = (tmp_path / "verify.md").read_text(encoding="utf-8")
    q, k = (f"transformer_blocks.1.attn.{name}.weight" for name in ("to_q", "to_k"))
    problems = {line[4:-2] for line in report.splitlines() if line.startswith("- **")}
    weights = {problem for problem in problems if "rounding" not in problem}
    assert weights == {
        f"{q} holds what the reference has as {k}",
        f"{k} holds what the reference has as {q}",
        "single_transformer_blocks.2.proj_out.weight is 1.5 times the reference's",
        "norm_out.linear.weight has its two halves in the other order",
        *(problem for problem in weights if problem.startswith("single_transformer_blocks.4")),
    }
    assert any("to_v.weight differs in 1 of 16384 values" in problem for problem in weights)
    stages = problems - weights
    assert len(stages) == 2  # the first of each case
    assert all(": transformer_blocks.1 is the first beyond rounding" in stage for stage in stages)


@pytest.mark.slow
def test_a_wrong_scale_of_fp8_is_named_and_fp8_itself_is_not(tmp_path: Path) -> None:
    [path] = save_dit(DIT, tmp_path / "fp8.safetensors", [], precision="fp8_scaled")
    tensors = load_file(path)
    tensors["transformer_blocks.0.ff.net.2.scale_weight"] *= 2
    save_file(tensors, path)
    shutil.copy(DIT / "config.json", tmp_path)
    command = parse(verify(tmp_path, "--dit", str(path), "--against", str(SNAPSHOT)))
    [checked] = open_verification(command, command.against).run()
    fault = "transformer_blocks.0.ff.net.2.weight is 2 times the reference's"
    assert checked.wrong == [fault]
    assert all(": transformer_blocks.0 is the first" in x for x in [*checked.problems()][1:])
    [checked] = open_verification(command).run()
    assert checked.good  # the same files compute what they say


class Altered(Models):
    """Models of a pack with a mistake in each: the weights are right, what is computed is not."""

    def _load_dit(self) -> FramePackDiT:
        dit = super()._load_dit()
        dit.config = replace(dit.config, rope_theta=300.0)
        dit.single_transformer_blocks[3].layer_norm.eps = 0.3
        if self.applied is not None:
            self.applied.set_strength(0, 1.5)
        return dit

    @contextmanager
    def vae(self) -> Iterator[Any]:
        with super().vae() as vae:
            vae.decoder.up_blocks[1].resnets[0].norm2.eps = 0.1
            yield vae

    @contextmanager
    def text_encoders(self) -> Iterator[Any]:
        with super().text_encoders() as encoders:
            encoders.llama.rotary_emb.inv_freq *= 1.01
            encoders.clip.text_model.encoder.layers[1].layer_norm1.eps = 0.1
            yield encoders

    @contextmanager
    def image_encoder(self) -> Iterator[Any]:
        with super().image_encoder() as encoder:
            encoder.model.vision_model.embeddings.position_embedding.weight[3] *= 1.01
            yield encoder


@pytest.mark.slow
def test_faults_of_the_pack_are_named_where_they_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And without diffusers."""
    without_diffusers(monkeypatch)
    sound = open_verification(parse(verify(tmp_path, "--lora_weight", str(LORA))))
    fields = {f: getattr(sound.models, f) for f in ("paths", "device", "dtype", "loras")}
    verification = Verification(Altered(**fields), sound.others)
    vae, llama, clip, siglip, dit, lora = verification.run()
    assert vae.reference == dit.reference == "plain PyTorch"
    assert [case.title for case in vae.cases if not case.result.good] == ["decoder"]
    assert first(vae) == ["decoder: decoder.up_blocks.1.resnets.0"]
    assert first(llama) == ["a prompt in the template: layers.0"]
    assert first(clip) == ["a prompt: encoder.layers.1"]
    position = "embeddings.position_embedding.weight differs in 48 of"
    assert any(problem.startswith(position) for problem in siglip.wrong)
    assert {bad(case)[0] for case in dit.cases} == {"transformer_blocks.0"}
    assert all("single_transformer_blocks.3" in bad(case) for case in dit.cases)
    assert not any("x_embedder.proj" in bad(case) for case in dit.cases)
    assert lora.cases and not lora.good
    assert not [*vae.wrong, *llama.wrong, *clip.wrong, *dit.wrong]


def bad(case: Any) -> list[str]:
    return [stage.name for stage in case.stages if not stage.good]


def first(checked: Checked) -> list[str]:
    """Where it begins in each case."""
    return [problem.split(" is the first")[0] for problem in checked.problems()]


def test_only_what_is_named_is_checked_and_reports_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "verify.md").write_text("mine")
    named = verify(tmp_path, "--image_encoder", str(SNAPSHOT / "image_encoder"))
    assert main(named) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "verify_2.md")
    assert (tmp_path / "verify.md").read_text() == "mine"
    assert "FramePack DiT" not in (tmp_path / "verify_2.md").read_text()
    assert parse([*named, "--vae_chunk_size", "4", "--bulk_decode"]).ignored() == ["--bulk_decode"]


def test_a_budget_counts_as_for_a_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = verify(tmp_path, "--dit", str(DIT), "--gpu_memory", "12")
    assert "gpu_memory: cpu has no memory of its own; leave it out" in failure(command, capsys)
    checking = open_verification(parse(command))
    sizes = WeightSizes.of({name: x.nbytes for name, x in toy_dit().items()})

    @contextmanager
    def limited(gib: float | None, _device: torch.device) -> Iterator[int]:
        assert gib == 12
        yield 2 * sizes.needed(1) + OTHER_MEMORY  # in fp32 they are twice as large

    monkeypatch.setattr(verification, "limited_memory", limited)
    [checked] = checking.run()
    assert checked.good and checking.models.execution.swapped == 1
    assert checking.report().settings.endswith("1 blocks swapped, within 12 GiB")


def test_a_reference_of_another_size_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(SNAPSHOT / "image_encoder", tmp_path / "image_encoder")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.1.mlp.fc1.bias"))
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, folder / "model.safetensors")
    own = ("--image_encoder", str(SNAPSHOT / "image_encoder"))
    line = failure(verify(tmp_path, *own, "--against", str(folder)), capsys)
    assert "--against: its encoder.layers.1.mlp.fc1.bias is [95], that of the model is [96]" in line


def test_numbers_that_are_none_are_named(tmp_path: Path) -> None:
    folder = shutil.copytree(SNAPSHOT / "image_encoder", tmp_path / "image_encoder")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.1.mlp.fc1.weight"))
    tensors[name][0, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors")
    [checked] = open_verification(parse(verify(tmp_path, "--image_encoder", str(folder)))).run()
    assert checked.wrong == ["encoder.layers.1.mlp.fc1.weight holds values that are no numbers"]
    assert first(checked)[1:] == ["a picture: encoder.layers.1"]
