"""No output takes the place of a user's file, be it an input or not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_runs import failure, files, paths, picture, small

from framepack_core.cli import demo, main
from framepack_core.models.merge import save_dit
from framepack_core.runtime.errors import FramePackError
from framepack_core.runtime.files import atomic_path, check_file_name, free_path
from framepack_core.sampling.latents import save_latents
from framepack_core.toyworld import OPPOSITE_LORA, SNAPSHOT
from framepack_core.training.config import TrainConfig


def test_free_names(tmp_path: Path) -> None:
    path = tmp_path / "a.b.mp4"
    for expected in ("a.b.mp4", "a.b_2.mp4", "a.b_3.mp4"):
        found = free_path(path)
        assert found.name == expected
        found.write_text("")


def test_decoding_next_to_the_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """generate --latent_path x_latent.safetensors --save_path SAME."""
    command = small("generate", tmp_path, "--image_path", picture(tmp_path / "a.png"))
    command += ["--prompt", "a ball", "--video_sections", "1", "--output_type", "both"]
    latents, video = files(command, capsys)
    video.write_bytes(b"edited by the user")
    decode = ["generate", "--snapshot", "toyworld", "--latent_path", str(latents)]
    decode += ["--save_path", str(tmp_path), "--device", "cpu"]
    for number in (2, 3):
        assert main(decode) == 0
        [made] = paths(capsys.readouterr().out)
        assert made.name == f"{video.stem}_{number}.mp4"
    assert video.read_bytes() == b"edited by the user"


def test_the_demo_beside_files_of_its_names(tmp_path: Path, monkeypatch) -> None:
    made = [tmp_path / "i2v.mp4", tmp_path / "contact_sheet.png"]
    for path in made:
        path.write_bytes(b"of the user")
    monkeypatch.setattr(demo, "STEPS", 1)
    assert main(["demo", "--out", str(tmp_path)]) == 0
    assert {path.read_bytes() for path in made} == {b"of the user"}
    assert all(path.with_stem(f"{path.stem}_2").is_file() for path in made)


def test_latent_files_of_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        given.append(str(tmp_path / folder / "x_latent.safetensors"))
        save_latents(Path(given[-1]), torch.zeros(1, 16, 1, 2, 2))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x_2.png").write_bytes(b"mine")
    command = ["generate", "--snapshot", "toyworld", "--latent_path", *given, "--device", "cpu"]
    made = files([*command, "--save_path", str(tmp_path / "out")], capsys)
    assert [path.name for path in made] == ["x.png", "x_3.png"]
    assert (tmp_path / "out" / "x_2.png").read_bytes() == b"mine"


def test_merging_onto_an_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora = tmp_path / "lora.safetensors"
    lora.write_bytes(OPPOSITE_LORA.read_bytes())
    command = ["merge", "--snapshot", "toyworld", "--lora_weight", str(lora)]
    error = failure([*command, "--save_merged_model", str(lora)], capsys)
    assert "lora.safetensors is there already: choose another name" in error
    assert lora.read_bytes() == OPPOSITE_LORA.read_bytes()


def test_merging_onto_a_link_to_an_input(tmp_path: Path) -> None:
    model = SNAPSHOT / "transformer"
    (tmp_path / "link").symlink_to(model)
    before = {path: path.stat().st_mtime_ns for path in model.iterdir()}
    with pytest.raises(FramePackError, match=r"link is not empty: choose a new folder"):
        save_dit(model, tmp_path / "link", max_shard_bytes=10**6)
    assert {path: path.stat().st_mtime_ns for path in model.iterdir()} == before


def test_merging_onto_any_file(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"mine")
    with pytest.raises(FramePackError, match=r"m\.safetensors is there already"):
        save_dit(SNAPSHOT / "transformer", tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == b"mine"


@pytest.mark.parametrize(
    "left", ["x.safetensors", "x.state", "x-state.pt", "x-log.jsonl", "x-000003.safetensors",
             "x-step00000250.safetensors"],
)  # fmt: skip
def test_training_under_the_name_of_a_run(left: str, tmp_path: Path) -> None:
    """Also where only its logs or the files that it saved on the way are left."""
    config = TrainConfig(output_dir=tmp_path, output_name="x")
    config.check_name()
    (tmp_path / left).write_bytes(b"mine")
    with pytest.raises(FramePackError, match="this run is there already"):
        config.check_name()
    assert config.renamed().output_name == "x_2"
    TrainConfig(output_dir=tmp_path, output_name="x-0").check_name()


@pytest.mark.parametrize("name", ["n" * 275, "語" * 80, "a\0b"])
def test_names_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(FramePackError, match="no file can have this name"):
        check_file_name(name, "output_name")
    with pytest.raises(FramePackError, match=r"output_name .*: no file can have this name"):
        TrainConfig(output_dir=tmp_path, output_name=name).check_name()


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    """The name meanwhile is no longer than the file system allows."""
    path = tmp_path / f"{'n' * 240}.safetensors"
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole"
