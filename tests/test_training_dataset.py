"""Data sets for training: the schema, where crops lie, and one clear line for each mistake."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from framepack_core.runtime.errors import FramePackError
from framepack_core.runtime.video import VideoWriter
from framepack_core.training.config import TrainMode
from framepack_core.training.dataset import TrainingSet, extract
from framepack_core.training.dataset_config import VideoDataset, load_datasets
from framepack_core.training.encoders import check_mode_of_file
from framepack_core.training.media import kept_frames

WINDOW = 2
SHORTEST = 4 * WINDOW + 1


def make_clip(path: Path, frames: int, size: tuple[int, int] = (32, 32)) -> None:
    width, height = size
    with VideoWriter(path, width=width, height=height, fps=30) as video:
        for i in range(frames):
            video.write(np.full((height, width, 3), 8 * i % 256, np.uint8))


def make_image(path: Path, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.new(mode, size).save(path)


def write_toml(folder: Path, text: str) -> Path:
    path = folder / "data.toml"
    path.write_text(f"[general]\nresolution = [32, 32]\n[[datasets]]\n{text}", encoding="utf-8")
    return path


def video_toml(folder: Path, extra: str = "") -> Path:
    source = f"video_directory = '{folder}'\ncache_directory = '{folder / 'cache'}'\n"
    return write_toml(folder, f"{source}fp_latent_window_size = {WINDOW}\n{extra}")


def one_frame_folder(folder: Path, controls: int = 1) -> Path:
    make_image(folder / "images" / "a.png")
    (folder / "images" / "a.txt").write_text("a")
    (folder / "control").mkdir()
    for i in range(controls):
        make_image(folder / "control" / f"a_{i}.png")
    return write_toml(
        folder,
        f"image_directory = '{folder / 'images'}'\ncontrol_directory = '{folder / 'control'}'\n"
        "fp_1f_clean_indices = [0]\nfp_1f_target_index = 1\n",
    )


def test_keys_that_change_nothing_are_named_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of other models, of other ways to take frames, and controls, which clips have not."""
    make_clip(tmp_path / "a.mp4", SHORTEST)
    (tmp_path / "a.txt").write_text("a")
    more = "frame_extraction = 'full'\nframe_stride = 3\ntarget_frames = [25]\nmax_frames = 9\n"
    more += "control_directory = 'c'\nqwen_image_edit_no_resize_control = true\n"
    path = video_toml(tmp_path, more)
    path.write_text(path.read_text().replace("[general]", "[general]\ndebug_dataset = true"))
    assert [dataset.frame_extraction for dataset in load_datasets(path)] == ["full"]
    assert caplog.messages == [
        f"{path}: debug_dataset, qwen_image_edit_no_resize_control, control_directory, "
        "target_frames, frame_stride: not needed here, ignored"
    ]


def test_unknown_keys_are_told_at_once(tmp_path: Path) -> None:
    path = video_toml(tmp_path, "frames = 3\nframe_extraction = 'full'\nfps = 30\n")
    with pytest.raises(FramePackError, match="datasets 1: frames, fps: unknown; known are fp_"):
        load_datasets(path)


def test_plain_folder(tmp_path: Path) -> None:
    make_clip(tmp_path / "ball.mp4", 37)
    (tmp_path / "ball.txt").write_text("a ball")
    (item,) = TrainingSet.of(load_datasets(tmp_path, {"resolution": 32})).items
    assert (item.first, item.frames, item.sections, item.size) == (0, 37, 1, (32, 32))
    assert item.captions == ("a ball",)
    assert item.paths == [tmp_path / "ball_00000-037-0000_0032x0032_fp.safetensors"]


def test_crop_holds_the_right_frames(tmp_path: Path) -> None:
    make_clip(tmp_path / "c.mp4", 20)
    (tmp_path / "c.txt").write_text("grey")
    toml = video_toml(tmp_path, f"target_frames = [{SHORTEST}]\nframe_extraction = 'chunk'")
    items = TrainingSet.load(toml).items
    assert [item.first for item in items] == [0, SHORTEST]
    grey = items[1].load()[:, 16, 16, 0].astype(int)
    assert np.abs(grey - 8 * np.arange(SHORTEST, 2 * SHORTEST)).max() <= 2


def test_folder_of_pictures_is_a_clip(tmp_path: Path) -> None:
    for i in range(SHORTEST):
        make_image(tmp_path / "walk" / f"{i:03d}.png")
    (tmp_path / "walk.txt").write_text("a walk")
    make_image(tmp_path / "sample" / "no_clip.png")
    (item,) = TrainingSet.load(video_toml(tmp_path)).items
    assert item.load().shape == (SHORTEST, 32, 32, 3)


def test_captions_of_sections(tmp_path: Path) -> None:
    make_clip(tmp_path / "c.mp4", 4 * WINDOW * 3 + 1)
    (tmp_path / "c.txt").write_text("all of it")
    (tmp_path / "c.sections.txt").write_text("0:begins;;;-1:ends")
    (item,) = TrainingSet.load(video_toml(tmp_path)).items
    assert item.captions == ("begins", "begins", "ends")


@pytest.mark.parametrize(
    ("extraction", "frames", "expected"),
    [
        ({"frame_extraction": "head"}, 30, [(0, 9), (0, 17)]),
        ({"frame_extraction": "head"}, 12, [(0, 9)]),
        ({"frame_extraction": "chunk"}, 30, [(0, 9), (9, 9), (18, 9), (0, 17)]),
        (
            {"frame_extraction": "slide", "frame_stride": 8},
            26,
            [(0, 9), (8, 9), (16, 9), (0, 17), (8, 17)],
        ),
        (
            {"frame_extraction": "uniform", "frame_sample": 3},
            30,
            [(0, 9), (10, 9), (21, 9), (0, 17), (6, 17), (13, 17)],
        ),
        ({"frame_extraction": "full"}, 24, [(0, 21)]),
        ({"frame_extraction": "full", "max_frames": 18}, 24, [(0, 17)]),
    ],
)
def test_extraction(
    extraction: dict[str, object], frames: int, expected: list[tuple[int, int]]
) -> None:
    dataset = VideoDataset(
        video_directory=Path("clips"), target_frames=(11, 17), fp_latent_window_size=WINDOW,
        resolution=32, **extraction,
    )  # fmt: skip
    assert extract(dataset, frames) == expected


def test_source_fps_drops_and_never_repeats() -> None:
    assert kept_frames(8, 60.0) == [0, 2, 4, 6]
    assert kept_frames(5, 24.0) == [0, 1, 2, 3, 4]
    assert kept_frames(7, 50.0) == [0, 2, 4, 5]


def test_preview(tmp_path: Path) -> None:
    for name, frames in (("a", SHORTEST), ("b", 2 * SHORTEST)):
        make_clip(tmp_path / f"{name}.mp4", frames)
        (tmp_path / f"{name}.txt").write_text(name)
    found = TrainingSet.load(video_toml(tmp_path, "batch_size = 2\nnum_repeats = 3"))
    assert found.steps_an_epoch == 5  # (1 + 2) sections, three times, in twos
    text = found.describe()
    assert "2 clips in 3 sections" in text and "32x32: 2 crops" in text and "5 steps" in text


def test_a_control_belongs_to_the_longest_name(tmp_path: Path) -> None:
    toml = one_frame_folder(tmp_path, controls=2)
    make_image(tmp_path / "images" / "a_1.png")
    (tmp_path / "images" / "a_1.txt").write_text("another")
    fails(_with(toml, "indices = [0]", "indices = [0, 9]"), "a.png: 1 control images", "has 2")


def _with(path: Path, old: str, new: str) -> Path:
    path.write_text(path.read_text().replace(old, new))
    return path


# --- mistakes: one clear line, before any model is loaded -----------------------------------------


def fails(path: Path, *parts: str) -> None:
    with pytest.raises(FramePackError) as error:
        TrainingSet.load(path)
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert "\n" not in str(error.value)


def test_no_caption(tmp_path: Path) -> None:
    make_clip(tmp_path / "c.mp4", SHORTEST)
    fails(video_toml(tmp_path), "c.mp4: no caption", "c.txt")


def test_one_frame_too_few(tmp_path: Path) -> None:
    make_clip(tmp_path / "c.mp4", SHORTEST - 1)
    (tmp_path / "c.txt").write_text("c")
    fails(video_toml(tmp_path), "c.mp4: 8 frames, but 9 are needed")


def test_unreadable_clip(tmp_path: Path) -> None:
    (tmp_path / "c.mp4").write_bytes(b"no video at all")
    (tmp_path / "c.txt").write_text("c")
    fails(video_toml(tmp_path), "c.mp4: cannot be read")


def test_shared_cache(tmp_path: Path) -> None:
    toml = video_toml(tmp_path)
    entry = toml.read_text().split("[[datasets]]")[1]
    toml.write_text(f"{toml.read_text()}\n[[datasets]]{entry}")
    fails(toml, "data sets 1 and 2 share the cache_directory")


def test_control_count(tmp_path: Path) -> None:
    fails(one_frame_folder(tmp_path, controls=0), "a.png: 0 control images", "has 1")


def test_mode_of_another_kind(tmp_path: Path) -> None:
    found = TrainingSet.load(one_frame_folder(tmp_path))
    found.check_mode("one_frame")
    with pytest.raises(FramePackError, match=r"a\.png: the mode f1 learns from video clips"):
        found.check_mode("f1")


@pytest.mark.parametrize(
    ("extra", "parts"),
    [
        ("frame_extracton = 'head'", ["datasets 1: frame_extracton: unknown"]),
        ("frame_extraction = 'tail'", ["datasets 1: frame_extraction", "'head'"]),
        ("target_frames = [1]", ["target_frames: 1 frames", "give 9 or more"]),
        ("batch_size = 0", ["batch_size"]),
        ("resolution = [30, 32]", ["30x32 is not a multiple of 16"]),
        ("resolution = [8, 24]\nenable_bucket = true", ["8x24 is less than 16x16 pixels"]),
        ("image_directory = 'x'", ["names both videos and images"]),
    ],
)
def test_bad_keys(tmp_path: Path, extra: str, parts: list[str]) -> None:
    fails(video_toml(tmp_path, extra), "data.toml", *parts)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("multiple_target = true", "multiple_target: an edit has one target; leave it out"),
        ("control_resolution = 512", "control_resolution: controls have the target's size"),
    ],
)
def test_what_pictures_have_for_other_models(tmp_path: Path, extra: str, message: str) -> None:
    path = one_frame_folder(tmp_path)
    path.write_text(f"{path.read_text()}no_resize_control = false\n{extra}\n")
    fails(path, message)


def test_missing_target_index(tmp_path: Path) -> None:
    toml = _with(one_frame_folder(tmp_path), "fp_1f_target_index = 1\n", "")
    fails(toml, "data.toml: datasets 1: fp_1f_target_index: missing")


def test_jsonl_line_is_named(tmp_path: Path) -> None:
    lines = [{"video_path": str(tmp_path / "gone.mp4"), "caption": "c"}]
    (tmp_path / "v.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = f"video_jsonl_file = '{tmp_path / 'v.jsonl'}'\n"
    fails(write_toml(tmp_path, source), "cache_directory: missing")
    toml = write_toml(tmp_path, f"{source}cache_directory = '{tmp_path}'")
    fails(toml, "v.jsonl line 1: video_path")


def test_same_stem(tmp_path: Path) -> None:
    make_clip(tmp_path / "c.mp4", SHORTEST)
    make_clip(tmp_path / "c.m4v.mp4", SHORTEST)
    make_image(tmp_path / "c" / "0.png")
    (tmp_path / "c.txt").write_text("c")
    (tmp_path / "c.m4v.txt").write_text("c")
    fails(video_toml(tmp_path), "have the same name")


@pytest.mark.parametrize(
    ("path", "mode", "fits"),
    [
        ("FramePackI2V_HY", "framepack", True),
        ("FramePackI2V_HY_fp8_e4m3fn.safetensors", "f1", False),
        ("FramePack_F1_I2V_HY_20250503", "f1", True),
        ("FramePack_F1_I2V_HY_20250503/transformer", "framepack", False),
        ("snapshot/transformer_f1", "one_frame", False),
        ("my_model.safetensors", "f1", True),
    ],
)
def test_model_of_another_mode(path: str, mode: TrainMode, fits: bool) -> None:
    if fits:
        check_mode_of_file(path, mode)
        return
    with pytest.raises(FramePackError, match=r"model; (give|train)"):
        check_mode_of_file(path, mode)
