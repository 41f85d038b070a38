"""Caches: what is encoded again and what is not, and what is left alone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import randn
from torch import Tensor

from framepack_core.models.prompt import TextCondition
from framepack_core.runtime.errors import FramePackError
from framepack_core.sampling.history import History
from framepack_core.sampling.sections import plan_f1, plan_framepack
from framepack_core.training.batches import Batches, Sample, find_samples, split_validation
from framepack_core.training.cache import (
    CacheProgress,
    LatentEncoders,
    TextEncoder,
    cache_latents,
    cache_text,
    check_cached,
    section_tensors,
)
from framepack_core.training.cache_files import load_cache
from framepack_core.training.dataset import TrainingSet
from framepack_core.weights.files import open_weights, save_weights

WINDOW = 2
FRAMES = 8 * WINDOW + 1


def make_clip(folder: Path, name: str, frames: int = FRAMES, grey: int = 0) -> None:
    (folder / name).mkdir(parents=True)
    for i in range(frames):
        Image.new("L", (32, 32), grey).save(folder / name / f"{i:03d}.png")
    (folder / f"{name}.txt").write_text(f"clip {name}")


def load(folder: Path, extra: str = "") -> TrainingSet:
    toml = folder / "data.toml"
    toml.write_text(
        f"[general]\nresolution = 32\n{extra}\n[[datasets]]\nvideo_directory = '{folder}'\n"
        f"cache_directory = '{folder / 'cache'}'\nfp_latent_window_size = {WINDOW}\n"
    )
    return TrainingSet.load(toml)


class Encoders:
    """Stub encoders that count their calls."""

    def __init__(self, identity: str = "a") -> None:
        self.batches: list[int] = []
        self.captions: list[str] = []
        self.latent = LatentEncoders(self.vae, lambda image: torch.zeros(1, 3, 8), identity)
        self.text = TextEncoder(self.encode, identity)

    def vae(self, pixels: Tensor) -> Tensor:
        self.batches.append(len(pixels))
        frames = (pixels.shape[2] - 1) // 4 + 1
        return pixels.mean() + randn(len(pixels), 16, frames, 4, 4)

    def encode(self, caption: str) -> TextCondition:
        self.captions.append(caption)
        return TextCondition(torch.ones(1, len(caption) + 1, 12), torch.ones(1, 10))


def fill(found: TrainingSet, mode: str = "framepack", identity: str = "a") -> int:
    """How many clips had to be encoded."""
    return cache_latents(found, mode, Encoders(identity).latent).encoded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_clip(tmp_path, "a")
    make_clip(tmp_path, "b")
    return tmp_path


def test_only_what_is_stale_is_encoded_again(folder: Path) -> None:
    assert fill(load(folder)) == 2
    assert fill(load(folder)) == 0
    shutil.rmtree(folder / "a")
    (folder / "a.txt").unlink()
    make_clip(folder, "a", grey=9)
    assert fill(load(folder)) == 1
    assert fill(load(folder), identity="another VAE") == 2
    next((folder / "cache").glob("b_*")).unlink()
    assert fill(load(folder), identity="another VAE") == 1


def test_a_changed_caption_is_noticed(folder: Path) -> None:
    assert cache_text(load(folder), Encoders().text).encoded == 3  # with the empty one
    (folder / "b.txt").write_text("a new caption")
    encoders = Encoders()
    cache_text(load(folder), encoders.text)
    assert encoders.captions == ["a new caption"]
    path = folder / "cache" / "b_fp_te.safetensors"
    assert open_weights(path).metadata["caption1"] == "a new caption"


def test_sections_with_captions_of_their_own(folder: Path) -> None:
    (folder / "b.sections.txt").write_text("0:first;;;1:second")
    found, encoders = load(folder), Encoders()
    cache_text(found, encoders.text)
    cache_latents(found, "framepack", encoders.latent)
    assert sorted(encoders.captions) == ["", "clip a", "clip b", "first", "second"]
    captions = [open_weights(s.text).metadata["caption1"] for s in find_samples(found, "framepack")]
    assert captions == ["clip a", "clip a", "first", "second"]


def test_other_modes_are_refused(folder: Path) -> None:
    found = load(folder)
    fill(found)
    with pytest.raises(FramePackError, match="for the mode framepack, not f1"):
        fill(found, "f1")
    cache_text(found, Encoders().text)
    with pytest.raises(FramePackError, match="for the mode framepack, not f1"):
        find_samples(found, "f1")


def test_other_modes_are_written_over_when_nothing_is_skipped(folder: Path) -> None:
    found, latent = load(folder), Encoders().latent
    cache_text(found, Encoders().text)
    cache_latents(found, "framepack", latent, end_frames=True)
    assert list((folder / "cache").glob("*_end*"))
    assert cache_latents(found, "f1", latent, skip_existing=False).encoded == 2
    assert not list((folder / "cache").glob("*_end*"))
    assert len(find_samples(found, "f1")) == 4


def test_other_modes_show_before_any_model(folder: Path) -> None:
    found = load(folder)
    check_cached(found, "f1")
    fill(found)
    check_cached(found, "framepack")
    with pytest.raises(FramePackError, match="for the mode framepack, not f1"):
        check_cached(found, "f1")


def test_unknown_files_stay(folder: Path) -> None:
    (folder / "cache").mkdir()
    foreign = folder / "cache" / "other_00000-009-0000_0032x0032_fp.safetensors"
    foreign.write_bytes(b"somebody's")
    fill(load(folder))
    assert foreign.read_bytes() == b"somebody's"


def test_files_without_a_digest_count(folder: Path) -> None:
    """musubi-tuner's, whose metadata has nothing of ours."""
    found = load(folder)
    fill(found)
    cache_text(found, Encoders().text)
    for path in (folder / "cache").glob("*.safetensors"):
        files = open_weights(path)
        tensors = {name: tensor.clone() for name, tensor in files.items()}
        plain = {k: v for k, v in files.metadata.items() if not k.startswith("fpreel_")}
        save_weights(path, tensors, plain)
    assert fill(found) == 0
    encoders = Encoders("another")
    cache_text(found, encoders.text)
    assert encoders.captions == []


def test_a_damaged_file_is_made_again(folder: Path) -> None:
    fill(load(folder))
    path = next((folder / "cache").glob("b_*"))
    path.write_bytes(path.read_bytes()[:100])
    assert fill(load(folder)) == 1


def test_a_stopped_run_goes_on(folder: Path) -> None:
    def stop(progress: CacheProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache_latents(load(folder), "framepack", Encoders().latent, on_item=stop)
    assert fill(load(folder)) == 1


def test_batches_of_clips(folder: Path) -> None:
    make_clip(folder, "c", FRAMES + 8 * WINDOW)
    make_clip(folder, "d")
    encoders = Encoders()
    cache_latents(load(folder), "framepack", encoders.latent, batch_size=4)
    assert encoders.batches == [2, 1, 1]


def test_missing_caches_are_named(folder: Path) -> None:
    found = load(folder)
    with pytest.raises(FramePackError, match=r"a: its latents are not cached; .*cache this"):
        find_samples(found, "framepack")
    fill(found)
    with pytest.raises(FramePackError, match=r"a: its caption is not cached"):
        find_samples(found, "framepack")


def test_values_that_fp16_cannot_hold(folder: Path) -> None:
    encoders = LatentEncoders(lambda x: torch.full((1, 16, 5, 4, 4), 1e6), Encoders().vae, "a")
    with pytest.raises(FramePackError, match="not finite"):
        cache_latents(load(folder), "framepack", encoders)


def test_context_of_f1_is_what_came_before() -> None:
    """Latents that hold their own frame number show which of them a section sees."""
    latents = torch.arange(1.0, 8.0).view(1, 1, 7, 1, 1).expand(1, 16, 7, 2, 2)
    found = {s.index: {n: x[0, :, 0, 0].tolist() for n, x in t.items() if x.ndim == 4}
             for s, t in section_tensors("f1", latents, 2)}  # fmt: skip
    assert len(plan_f1(3).sections) == len(found) == 3
    assert found[2] == {
        "latents": [6.0, 7.0],
        "latents_clean": [1.0, 5.0],
        "latents_clean_2x": [3.0, 4.0],
        "latents_clean_4x": [0.0] * 14 + [1.0, 2.0],
    }


# --- batches --------------------------------------------------------------------------------------


def samples_of(folder: Path, extra: str = "") -> list[Sample]:
    found, encoders = load(folder, extra), Encoders()
    cache_latents(found, "framepack", encoders.latent)
    cache_text(found, encoders.text)
    return find_samples(found, "framepack")


def test_every_epoch_has_everything_once(folder: Path) -> None:
    samples = samples_of(folder, "batch_size = 3\nnum_repeats = 2")
    batches = Batches(samples, seed=3)
    assert len(batches) == 3  # 4 sections, twice, in threes
    epochs = [[s for i in range(3) for s in batches.pick(3 * e + i)] for e in (0, 1)]
    for epoch in epochs:
        assert sorted(s.latents for s in epoch) == sorted(s.latents for s in samples * 2)
    assert epochs[0] != epochs[1]
    assert Batches(samples, seed=3).pick(4) == batches.pick(4)
    assert [Batches(samples, seed=4).pick(i) for i in range(3)] != [
        batches.pick(i) for i in range(3)
    ]


def test_a_batch_of_different_captions(folder: Path) -> None:
    (folder / "b.txt").write_text("much longer than clip a")
    batches = Batches(samples_of(folder, "batch_size = 4"))
    batch = batches.load(0)
    lengths = [len(open_weights(s.text).metadata["caption1"]) + 1 for s in batches.pick(0)]
    assert batch.text.mask is not None
    assert batch.text.mask.sum(1).tolist() == lengths
    assert batch.text.text.shape == (4, max(lengths), 12)
    same = [load_cache(sample.latents)["latents"] for sample in batches.pick(0)]
    assert torch.equal(batch.latents, torch.stack(same))
    dropped = batches.load(0, [True] * 4)
    assert dropped.text.text.shape == (4, 1, 12) and dropped.text.mask is None


def test_whole_clips_are_held_out(folder: Path) -> None:
    training, held = split_validation(samples_of(folder), 1)
    assert {s.clip.name for s in training} == {"a"} and {s.clip.name for s in held} == {"b"}
    with pytest.raises(FramePackError, match="2 of 2 clips"):
        split_validation(samples_of(folder), 2)


def test_one_frame_masks_follow_their_control(tmp_path: Path) -> None:
    """The left half of a control is transparent, so is that of its latent."""
    rgba = np.full((32, 64, 4), 255, np.uint8)
    rgba[:, :32, 3] = 0
    for name in ("image", "control"):
        (tmp_path / name).mkdir()
    Image.fromarray(rgba[..., :3]).save(tmp_path / "image" / "a.png")
    (tmp_path / "image" / "a.txt").write_text("a")
    Image.fromarray(rgba).save(tmp_path / "control" / "a.png")
    toml = tmp_path / "data.toml"
    toml.write_text(
        f"[[datasets]]\nresolution = [64, 32]\nimage_directory = '{tmp_path / 'image'}'\n"
        f"control_directory = '{tmp_path / 'control'}'\n"
        "fp_1f_clean_indices = [0]\nfp_1f_target_index = 1\n"
    )
    found = TrainingSet.load(toml)
    ones = LatentEncoders(
        lambda x: torch.ones(1, 16, 1, 4, 8), lambda image: torch.zeros(1, 3, 8), "a"
    )
    cache_latents(found, "one_frame", ones)
    cached = load_cache(found.items[0].paths[0])
    columns = cached["latents_clean"][0, 0].mean(0).tolist()
    assert columns == pytest.approx([0, 0, 0, 0, 1, 1, 1, 1], abs=0.1)
    assert not cached["latents_clean"][:, 1].any() and cached["latents"].all()
    assert cached["clean_latent_indices"].tolist() == [0, 10]


def test_the_end_frame_is_where_the_sampler_has_it(folder: Path) -> None:
    """Cached sections shown the end frame, against a plan with that end image."""
    found, encoders = load(folder), Encoders()
    cache_text(found, encoders.text)
    cache_latents(found, "framepack", encoders.latent)
    assert cache_latents(found, "framepack", encoders.latent, end_frames=True).encoded == 2
    assert cache_latents(found, "framepack", encoders.latent, end_frames=True).encoded == 0
    end = (found.items[0].load()[-1].mean() / 127.5 - 1) + randn(1, 16, 1, 4, 4)
    plan = plan_framepack(2, WINDOW).with_end(end.half())
    batches = Batches(find_samples(found, "framepack")[:2])
    shown = [batches.load(number, ended=[True]) for number in range(2)]
    by_section = {int(batch.latent_indices[0, 0]) > 1: batch for batch in shown}
    start = by_section[False].context.clean[:, :, :1]
    history = History(plan, start)
    for section in plan.sections:
        batch, expected = by_section[section.index == 1], history.context(section)
        for rate in ("clean", "clean_2x", "clean_4x"):
            assert torch.equal(getattr(batch.context, rate), getattr(expected, rate)), rate
        history.append(section, batch.latents)
    plain = [batches.load(number).context.clean for number in range(2)]
    assert any(not torch.equal(p, s.context.clean) for p, s in zip(plain, shown, strict=True))
    with pytest.raises(FramePackError, match="end_frames: one_frame"):
        cache_latents(found, "one_frame", encoders.latent, end_frames=True)


def test_the_end_frame_of_f1_is_where_the_sampler_has_it(folder: Path) -> None:
    """All sections of a clip see it; those of a batch together, as their context is longer."""
    found, encoders = load(folder, "batch_size = 2"), Encoders()
    cache_text(found, encoders.text)
    cache_latents(found, "f1", encoders.latent)
    assert not any(sample.end for sample in find_samples(found, "f1"))
    assert cache_latents(found, "f1", encoders.latent, end_frames=True).encoded == 2
    assert cache_latents(found, "f1", encoders.latent, end_frames=True).encoded == 0
    samples = find_samples(found, "f1")[:2]
    batches = Batches(samples)
    first = [sample.latents for sample in batches.pick(0)].index(samples[0].latents)
    plain, shown = (batches.load(0, ended=[ended, not ended]) for ended in (False, True))
    assert plain.context.clean.shape[2] == 2
    end = (found.items[0].load()[-1].mean() / 127.5 - 1) + randn(1, 16, 1, 4, 4)
    plan = plan_f1(2, WINDOW).with_end(end.half())
    history = History(plan, shown.context.clean[first : first + 1, :, :1])
    for section in plan.sections:
        row = slice(first, first + 1) if section.index == 0 else slice(1 - first, 2 - first)
        expected = history.context(section)
        for rate in ("clean", "clean_2x", "clean_4x", "clean_indices"):
            assert torch.equal(getattr(shown.context, rate)[row], getattr(expected, rate)), rate
        assert torch.equal(plain.context.clean[row], expected.clean[:, :, :2])
        history.append(section, shown.latents[row])


def test_samples_that_cannot_see_the_end_of_f1_are_batched_apart(folder: Path) -> None:
    samples = f1_samples(folder, "batch_size = 4")
    assert len(Batches(samples)) == 1
    assert len(Batches([replace(samples[0], end=None), *samples[1:]])) == 2


def f1_samples(folder: Path, extra: str) -> list[Sample]:
    found, encoders = load(folder, extra), Encoders()
    cache_text(found, encoders.text)
    cache_latents(found, "f1", encoders.latent, end_frames=True)
    return find_samples(found, "f1")
