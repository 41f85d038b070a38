"""Caches that no longer fit their clips, captions or settings are named, never trained on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from reports.inputs import (
    captioned,
    clips_toml,
    error_of,
    pictures_toml,
    turn,
    write_clip,
    write_picture,
)
from torch import Tensor

from framepack_core.cli import main
from framepack_core.models.prompt import TextCondition
from framepack_core.training.batches import find_samples
from framepack_core.training.cache import (
    LatentEncoders,
    OneFrameContexts,
    TextEncoder,
    cache_latents,
    cache_text,
)
from framepack_core.training.dataset import TrainingSet
from framepack_core.training.stale import CacheModels, check_fresh
from framepack_core.weights.files import open_weights, save_weights


def encode(pixels: Tensor) -> Tensor:
    batch, _, frames, height, width = pixels.shape
    return torch.zeros(batch, 16, (frames - 1) // 4 + 1, height // 8, width // 8)


def fill(found: TrainingSet, vae: str = "files:a", text: str = "files:b", **options) -> None:
    latent = LatentEncoders(encode, lambda image: torch.zeros(1, 3, 8), f"{vae} tile None")
    mode = options.pop("mode", "framepack")
    cache_latents(found, mode, latent, **options)
    words = TextCondition(torch.ones(1, 2, 12), torch.ones(1, 10))
    cache_text(found, TextEncoder(lambda caption: words, f"{text} "))


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    """Two clips, cached."""
    for name, frames in (("a", 5), ("b", 9)):
        captioned(write_clip(tmp_path / "clips" / f"{name}.mp4", frames, (64, 64)))
    toml = clips_toml(tmp_path / "clips")
    fill(TrainingSet.load(toml))
    check_fresh(TrainingSet.load(toml), "framepack")
    return toml


def refusal(toml: Path, models: CacheModels | None = None) -> str:
    return error_of(find_samples, TrainingSet.load(toml), "framepack", models or CacheModels())


def change(toml: Path, old: str, new: str) -> Path:
    text = toml.read_text()
    assert old in text
    toml.write_text(text.replace(old, new))
    return toml


def test_a_changed_caption(toml: Path) -> None:
    captioned(toml.parent / "clips" / "b.mp4", "another text")
    error = refusal(toml)
    assert "b.mp4: its caption has changed since it was cached" in error
    assert "a.mp4" not in error
    assert "framepack cache" in error


def test_changed_captions_of_sections(toml: Path) -> None:
    (toml.parent / "clips" / "b.sections.txt").write_text("0:first;;;1:second")
    assert "b.mp4: its caption is not cached" in refusal(toml)


def test_a_changed_clip_of_the_same_name_length_and_size(toml: Path) -> None:
    clip = toml.parent / "clips" / "a.mp4"
    before = clip.stat()
    data = bytearray(clip.read_bytes())
    data[data.index(b"mdat") + 200] ^= 1
    clip.write_bytes(data)
    assert clip.stat().st_size == before.st_size
    assert "a.mp4: the file, or what is taken of it, has changed" in refusal(toml)


def test_a_clip_whose_date_alone_has_changed(toml: Path) -> None:
    """Copied to another machine, say."""
    clip = toml.parent / "clips" / "a.mp4"
    shutil.copy(clip, toml.parent / "copy.mp4")
    clip.unlink()
    shutil.move(toml.parent / "copy.mp4", clip)
    assert len(find_samples(TrainingSet.load(toml), "framepack")) == 3


def test_a_clip_that_was_turned(toml: Path) -> None:
    turn(toml.parent / "clips" / "a.mp4", (0, 1, -1, 0))
    assert "a.mp4: the file, or what is taken of it, has changed" in refusal(toml)


def test_an_added_clip(toml: Path) -> None:
    captioned(write_clip(toml.parent / "clips" / "c.mp4", size=(64, 64)))
    assert "c.mp4: its latents are not cached" in refusal(toml)


def test_a_removed_clip(toml: Path) -> None:
    """Its caches stay, unused, and the description of the data set says so."""
    for suffix in (".mp4", ".txt"):
        (toml.parent / "clips" / f"b{suffix}").unlink()
    found = TrainingSet.load(toml)
    assert [sample.clip.name for sample in find_samples(found, "framepack")] == ["a.mp4"]
    assert "not used: caches of clips that are gone (b)" in found.describe()


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("[32, 32]", "[64, 32]", "a.mp4: cached at 32x32, not at 64x32"),
        ("window_size = 1", "window_size = 2", "a.mp4: 5 frames, but 9 are needed"),
    ],
)
def test_other_settings(old: str, new: str, problem: str, toml: Path) -> None:
    change(toml, old, new)
    assert problem in error_of(lambda: find_samples(TrainingSet.load(toml), "framepack"))


def test_another_window(toml: Path) -> None:
    (toml.parent / "clips" / "a.mp4").unlink()
    change(toml, "window_size = 1", "window_size = 2")
    assert "b.mp4: cached with a window of 1, not 2" in refusal(toml)


def test_other_pieces_of_the_clips(toml: Path) -> None:
    with toml.open("a") as file:
        file.write("frame_extraction = 'head'\ntarget_frames = [5]\n")
    assert "b.mp4: other frames of it are cached than the data set asks for" in refusal(toml)


def test_another_frame_rate(toml: Path) -> None:
    with toml.open("a") as file:
        file.write("source_fps = 29\n")
    assert "the file, or what is taken of it, has changed" in refusal(toml)


def test_other_models_than_the_runs(toml: Path) -> None:
    assert len(find_samples(TrainingSet.load(toml), "framepack", CacheModels("files:a", "files:b")))
    error = refusal(toml, CacheModels(latents="files:c tile 256"))
    assert "a.mp4: cached with another VAE or image encoder than this run uses" in error
    error = refusal(toml, CacheModels(text="files:c "))
    assert "a.mp4: cached with other text encoders than this run uses" in error


def test_models_that_cannot_be_compared(toml: Path) -> None:
    """ComfyUI knows loaded weights, the command line files."""
    found = TrainingSet.load(toml)
    assert len(find_samples(found, "framepack", CacheModels("weights:c", "weights:d"))) == 3


def test_caches_of_two_vaes(toml: Path) -> None:
    """As a run of `framepack cache` with another VAE leaves them that was stopped."""
    found = TrainingSet.load(toml)
    one = TrainingSet(found.datasets, found.items[1:])
    fill(one, vae="files:c")
    assert "cached with another VAE or image encoder than most of the data set" in refusal(toml)


def test_a_changed_end_frame(toml: Path) -> None:
    fill(TrainingSet.load(toml), end_frames=True)
    [path] = (toml.parent / "clips" / "cache").glob("a_*_fp_end.safetensors")
    tensors = {name: tensor.clone() for name, tensor in open_weights(path).items()}
    save_weights(path, tensors, {**open_weights(path).metadata, "fpreel_digest": "older"})
    assert "a.mp4: the clip has changed since its end frame was cached" in refusal(toml)


def test_pictures_and_their_controls(tmp_path: Path) -> None:
    captioned(write_picture(tmp_path / "images" / "a.png"))
    control = write_picture(tmp_path / "control" / "a.png")
    toml = pictures_toml(tmp_path / "images", tmp_path / "control")
    fill(TrainingSet.load(toml), mode="one_frame", one_frame=OneFrameContexts(no_4x=True))
    assert len(find_samples(TrainingSet.load(toml), "one_frame")) == 1
    write_picture(control, 200)
    error = error_of(find_samples, TrainingSet.load(toml), "one_frame")
    assert "a.png: the file, or what is taken of it, has changed" in error


def test_files_of_musubi_tuner_count_by_caption_and_window(toml: Path) -> None:
    for path in (toml.parent / "clips" / "cache").iterdir():
        files = open_weights(path)
        tensors = {name: tensor.clone() for name, tensor in files.items()}
        plain = {k: v for k, v in files.metadata.items() if not k.startswith("fpreel_")}
        save_weights(path, tensors, plain)
    assert len(find_samples(TrainingSet.load(toml), "framepack")) == 3
    captioned(toml.parent / "clips" / "a.mp4", "another text")
    assert "a.mp4: its caption has changed" in refusal(toml)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the folder to the refusal, on the built-in model."""
    clip = captioned(write_clip(tmp_path / "clips" / "a.mp4"))
    data = ["--dataset_config", str(clip.parent), "--resolution", "32", "--device", "cpu"]
    data += ["--latent_window_size", "1"]
    assert main(["cache", *data]) == 0
    train = ["train", *data, "--output_dir", str(tmp_path / "out"), "--output_name", "x"]
    captioned(clip, "another text")
    capsys.readouterr()
    assert main([*train, "--max_train_steps", "1", "--network_dim", "1"]) == 2
    assert "a.mp4: its caption has changed since it was cached" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*.safetensors"))
    assert main(["cache", *data]) == 0
    assert main([*train, "--max_train_steps", "1", "--network_dim", "1"]) == 0
