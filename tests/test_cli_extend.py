"""Videos that are extended: what is new joins what exists, and that stays as it is."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_runs import failure, files, picture, small

from framepack_core.cli import main
from framepack_core.runtime.images import Pixels, load_image
from framepack_core.runtime.video import VideoWriter, read_video
from framepack_core.sampling.latents import load_latents, save_latents

OLD = 5  # frames of the run to extend: one section of a window of 1
NEW = 8  # two more
FORWARD = (("--f1",), ())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The latents of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    options = ("--prompt", "x", "--image_path", picture(folder / "a.png"), "--video_sections", "1")
    assert main(small("generate", folder / "out", *options)) == 0
    [path] = (folder / "out").iterdir()
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A video of 80 frames, more than a section sees."""
    shades = np.linspace(0, 255, 80).astype(np.uint8)
    with VideoWriter(tmp_path / "clip.mp4", width=32, height=16, fps=30, crf=1) as writer:
        for shade in shades:
            writer.write(np.full((16, 32, 3), shade, np.uint8))
    return tmp_path / "clip.mp4"


def command(out: Path, *options: str) -> list[str]:
    """`framepack extend` by two sections, its result as pictures: they keep every bit."""
    given = ("--prompt", "x", "--video_sections", "2", "--output_type", "latent_images", *options)
    command = small("extend", out, *given)
    place = command.index("--video_size")
    return command[:place] + command[place + 3 :]


def made(command: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[torch.Tensor, Pixels]:
    """The latents and the frames that a command makes."""
    path, folder = files(command, capsys)
    return load_latents(path)[0], frames(folder)


def frames(folder: Path) -> Pixels:
    return np.stack([load_image(path) for path in sorted(folder.iterdir())])


def decoded(path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> Pixels:
    """The frames of a latent file alone."""
    command = ["generate", "--snapshot", "toyworld", "--latent_path", str(path)]
    command += ["--output_type", "images", "--device", "cpu", "--save_path", str(out)]
    return frames(files(command, capsys)[0])


@pytest.mark.parametrize("mode", FORWARD)
def test_a_finished_run_goes_on_and_keeps_its_bits(
    tmp_path: Path, finished: Path, mode: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    latents, video = made(command(tmp_path, *mode, "--latent_path", str(finished)), capsys)
    assert torch.equal(latents[:, :, :2], load_latents(finished)[0])
    assert (latents.shape[2], len(video)) == (4, OLD + NEW)
    assert np.array_equal(video[:OLD], decoded(finished, tmp_path / "old", capsys))


def test_a_finished_run_gets_another_beginning(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ("--image_path", picture(tmp_path / "b.png", 1))
    options = ("--direction", "backward", "--latent_path", str(finished), *start)
    latents, video = made(command(tmp_path, *options), capsys)
    assert torch.equal(latents[:, :, -1:], load_latents(finished)[0][:, :, 1:])
    assert (latents.shape[2], len(video)) == (4, OLD + NEW)
    assert np.array_equal(video[-OLD + 1 :], decoded(finished, tmp_path / "old", capsys)[1:])


def test_an_extended_video_gets_no_start_picture(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--latent_path", str(finished), "--start_picture", "grey")
    message = failure(command(tmp_path, *options), capsys)
    assert "--start_picture: the video begins already; give --image_path instead" in message


def test_an_extended_video_loses_the_frames_at_its_own_start(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--latent_path", str(finished), "--drop_first_frames", "2")
    latents, video = made(command(tmp_path, *options), capsys)
    assert (latents.shape[2], len(video)) == (4, OLD + NEW - 2)
    assert np.array_equal(video[: OLD - 2], decoded(finished, tmp_path / "old", capsys)[2:])


@pytest.mark.parametrize("mode", FORWARD)
def test_a_video_goes_on_and_keeps_its_frames(
    tmp_path: Path, clip: Path, mode: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    latents, video = made(command(tmp_path, *mode, "--video_path", str(clip)), capsys)
    assert np.array_equal(video[:80], read_video(clip)[0])
    assert (latents.shape[2], len(video)) == (19 + 2, 80 + NEW)


def test_a_video_gets_another_beginning(
    tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ("--image_path", picture(tmp_path / "b.png", 1))
    options = ("--direction", "backward", "--video_path", str(clip), *start)
    _, video = made(command(tmp_path, *options), capsys)
    assert np.array_equal(video[-79:], read_video(clip)[0][1:])
    assert len(video) == 80 + NEW


def test_an_extension_that_ends_early_holds_what_is_joined(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of two sections: before the old video, after it with F1, and alone in the middle."""
    start = ("--image_path", picture(tmp_path / "b.png", 1))
    old = decoded(finished, tmp_path / "old", capsys)
    options = ("--latent_path", str(finished), "--finish_after", "1")

    def ended(*more: str) -> tuple[int, Pixels]:
        latents, video = made(command(tmp_path, *options, *more), capsys)
        return latents.shape[2], video

    count, video = ended("--direction", "backward", *start)
    assert (count, len(video)) == (2, OLD) and np.array_equal(video[1:], old[1:])
    count, video = ended("--f1")
    assert (count, len(video)) == (3, OLD + 4) and np.array_equal(video[:OLD], old)
    count, video = ended()
    assert (count, len(video)) == (1, 1)


def test_the_plan_counts_all_frames(
    tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--video_path", str(clip), "--f1", "--section_seeds", "1:5")
    assert main(command(tmp_path, *options)) == 0
    assert capsys.readouterr().out.splitlines()[:4] == [
        "f1: 32x16, 85 frames, 2.83 s at 30 fps, 2 sections of 4 frames (window 1), after 77 "
        "existing frames",
        "  made 1: section 0, frames 77-80 (2.57-2.67 s)",
        "  made 2: section 1, frames 81-84 (2.70-2.80 s), seed 5",
        "  in all 88 frames",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "--latent_path or --video_path is missing"),
        ("--video_path {clip} --latent_path {latents}", "cannot be combined; choose one"),
        ("--video_path none.mp4", "video none.mp4: no such file"),
        ("--video_path {picture}", "1 frames are less than a section; give 5 or more"),
        ("--video_path {clip} --video_size 20 40", "size: 40x20 .* use 32x16"),
        ("--video_path {clip} --direction backward", "begins with a new start image"),
        ("--video_path {clip} --direction backward --f1 --image_path {picture}", "F1 only extends"),
        ("--video_path {clip} --image_mask_path {picture}", "needs an image to mask"),
        ("--latent_path {clip}", "is not a file of weights"),
        ("--latent_path {latents} --latent_window_size 2", "5 frames are less than a section"),
        ("--latent_path {short}", "1 frames are less than a section"),
        ("--latent_path {latents} --one_frame_inference default", "unrecognized arguments"),
    ],
)
def test_mistakes(
    tmp_path: Path,
    finished: Path,
    clip: Path,
    options: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_latents(tmp_path / "short.safetensors", torch.zeros(1, 16, 1, 2, 4))
    paths = {
        "clip": clip,
        "latents": finished,
        "picture": picture(tmp_path / "b.png"),
        "short": tmp_path / "short.safetensors",
    }
    words = [word.format(**paths) for word in options.split()]
    assert re.search(message, failure(command(tmp_path, *words), capsys))
