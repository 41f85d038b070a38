"""Steering from the command line: sections, end image, one frame, and what each refuses."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_runs import failure, files, latents, parse, picture, small
from PIL import Image

from framepack_core.cli import main
from framepack_core.headless.models import Models
from framepack_core.headless.pictures import Picture
from framepack_core.headless.request import Request, decide
from framepack_core.headless.scenes import OneFrameEdit, Video
from framepack_core.runtime.images import load_image, save_png
from framepack_core.sampling.latents import load_latents, save_latents
from framepack_core.toyworld import F1_END_LORA, OPPOSITE_LORA

DOG = "0:runs;;;1:catches;;;-1:runs back"


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, str]:
    return {name: picture(tmp_path / f"{name}.png", i) for i, name in enumerate("abcd")}


def command(pictures: dict[str, str], *options: str) -> list[str]:
    """`framepack generate` of three small sections, with {a} for the picture a in options."""
    given = ("--prompt", "x", "--image_path", "{a}", "--video_sections", "3", *options)
    out = Path(pictures["a"]).parent / "out"
    return small("generate", out, *(option.format(**pictures) for option in given))


def edit_command(pictures: dict[str, str], *options: str) -> list[str]:
    """`framepack generate` of one small frame."""
    given = ("--prompt", "x", "--one_frame_inference", "target_index=1", *options)
    out = Path(pictures["a"]).parent / "out"
    return small("generate", out, *(option.format(**pictures) for option in given))


def video(pictures: dict[str, str], *options: str) -> Video:
    scene = Request.of(decide(parse(command(pictures, *options)))).scene
    assert isinstance(scene, Video)
    return scene


def edit(pictures: dict[str, str], *options: str) -> OneFrameEdit:
    scene = Request.of(decide(parse(edit_command(pictures, *options)))).scene
    assert isinstance(scene, OneFrameEdit)
    return scene


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """The latents of a video that nothing steers."""
    folder = tmp_path_factory.mktemp("plain")
    assert main(command({"a": picture(folder / "a.png")})) == 0
    [path] = (folder / "out").iterdir()
    return load_latents(path)[0]


# Sections


def test_prompts_with_times_are_those_of_the_nearest_sections(pictures: dict[str, str]) -> None:
    """Sections of a window of 1 take 4 frames, 0.13 s."""
    timed = command(pictures, "--prompt", "[0s: runs] [0.15s: sits] [0.25s: lies down]")
    scene = Request.of(decide(parse(timed))).scene
    assert isinstance(scene, Video) and scene.prompt == "runs"
    by_time = sorted(scene.plan.sections, key=lambda section: section.index)
    assert [section.prompt for section in by_time] == [None, "sits", "lies down"]


def test_prompts_and_images_by_section(pictures: dict[str, str]) -> None:
    images = "0:{a};;;1:{b};;;2:{c}"
    scene = video(pictures, "--prompt", DOG, "--image_path", images, "--end_image_path", "{d}")
    own = [(s.index, s.prompt, s.image and s.image.label) for s in scene.plan.sections]
    assert own == [
        (2, "runs back", pictures["c"]),
        (1, "catches", pictures["b"]),
        (0, None, None),
    ]
    assert (scene.prompt, scene.image.label) == ("runs", pictures["a"])
    wanted = scene.wanted()
    assert wanted.texts == ["runs", "catches", "runs back"]
    assert [p.label for p in wanted.for_image_encoder] == [pictures[name] for name in "abc"]
    assert [p.label for p in wanted.for_vae] == [pictures[name] for name in "abcd"]


def test_numbers_by_section(pictures: dict[str, str]) -> None:
    numbers = ("--section_seeds", "-1:7;;;0-2:8", "--section_guidance", "1:6.5")
    scene = video(pictures, *numbers, "--latent_paddings", "0,1,0")
    own = [(s.index, s.padding, s.seed, s.guidance) for s in scene.plan.sections]
    assert own == [(2, 0, 7, None), (1, 1, 8, 6.5), (0, 0, 8, None)]


ENDED = ("--end_image_path", "{b}", "--end_image_strength", "0.5")


@pytest.mark.parametrize(
    "loras",
    [
        (),
        ("--lora_weight", str(OPPOSITE_LORA)),
        ("--lora_weight", str(OPPOSITE_LORA), str(F1_END_LORA), "--lora_multiplier", "1", "0"),
    ],
)
def test_f1_takes_no_notice_of_paddings_and_an_end(
    pictures: dict[str, str], caplog: pytest.LogCaptureFixture, loras: tuple[str, ...]
) -> None:
    ignored = ("--latent_paddings", "0,0", *ENDED, "--loop", *loras)
    options = decide(parse(command(pictures, "--f1", *ignored)))
    reason = "has no effect with --f1, which makes a video forwards"
    advice = "apply a LoRA of F1 that was trained with end frames (see docs/training.md)"
    assert caplog.messages == [
        f"--latent_paddings {reason}",
        *(
            f"--{flag} {reason}; {advice}"
            for flag in ("end_image_path", "loop", "end_image_strength")
        ),
    ]
    request = Request.of(options)
    assert request.scene == Request.of(decide(parse(command(pictures, "--f1")))).scene
    assert "latent_paddings" not in request.metadata(30)


def test_f1_ends_with_an_image_that_its_lora_shows_it(
    pictures: dict[str, str],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its picture is encoded, and the plan has it."""
    given = ("--f1", "--lora_weight", str(OPPOSITE_LORA), str(F1_END_LORA))
    job = decide(parse(command(pictures, *given, *ENDED)))
    assert caplog.messages == []
    scene = Request.of(job).scene
    assert isinstance(scene, Video) and scene.plan.end is not None
    assert scene.plan.end.image.label == pictures["b"] and scene.plan.end.strength == 0.5
    assert pictures["b"] in [picture.label for picture in scene.wanted().for_vae]
    policy = ("--end_image_policy", "first_section")
    refused = failure(command(pictures, *given, *ENDED, *policy), capsys)
    assert "'first_section' is for the framepack mode" in refused


def test_the_plan_is_printed(pictures: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        "--prompt",
        "walks;;;1:sits",
        "--image_path",
        "{a};;;-1:{b}",
        "--section_seeds",
        "1:5",
    )
    end = ("--end_image_path", "{c}", "--end_image_strength", "0.5")
    assert main(command(pictures, *options, *end)) == 0
    name = {
        key: repr(path[:40] + "..." if len(path) > 40 else path) for key, path in pictures.items()
    }
    assert capsys.readouterr().out.splitlines()[:7] == [
        "framepack: 32x16, 13 frames, 0.43 s at 30 fps, 3 sections of 4 frames (window 1)",
        f"  made 1: section 2, frames 9-12 (0.30-0.40 s), padding 2, image {name['b']}",
        "  made 2: section 1, frames 5-8 (0.17-0.27 s), padding 1, prompt 'sits', seed 5",
        "  made 3: section 0, frames 1-4 (0.03-0.13 s), padding 0",
        f"  end image {name['c']}, persistent, strength 0.5",
        f"  otherwise prompt 'walks', image {pictures['a']!r}, guidance 10",
        "seed 1",
    ]


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        # made first: section 2; what is steered changes its section and those made after it
        ("--prompt x;;;2:y", {0, 1, 2}),
        ("--prompt x;;;1:y", {0, 1}),
        ("--image_path {a};;;1:{b}", {0, 1}),
        ("--section_seeds 1:5", {0, 1}),
        ("--section_guidance 0:3", {0}),
        ("--section_guidance -1:3", {0, 1, 2}),
        ("--latent_paddings 2,1,1", {0}),
        ("--end_image_path {b}", {0, 1, 2}),
        ("--end_image_path {b} --end_image_strength 0", set()),
        ("--image_mask_path {b}", {0, 1, 2}),
        ("--seed 2", {0, 1, 2}),
        ("--anchor 0.5", {0, 1, 2}),
        ("--anchor 0", set()),
    ],
)
def test_what_is_steered_changes_no_section_made_before(
    plain: torch.Tensor,
    pictures: dict[str, str],
    options: str,
    changed: set[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    steered = latents(command(pictures, *options.split()), capsys)
    same = {i for i in range(3) if torch.equal(plain[:, :, i + 1], steered[:, :, i + 1])}
    assert same == {0, 1, 2} - changed


def test_an_anchor_is_told_and_noted(
    pictures: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    request = Request.of(decide(parse(command(pictures, "--f1", "--anchor", "0.5"))))
    assert ", anchor 0.5, guidance 10\n" in request.describe()
    assert request.metadata(30)["anchor"] == "0.5"
    without = Request.of(decide(parse(command(pictures))))
    assert ", anchor" not in without.describe() and "anchor" not in without.metadata(30)
    assert caplog.messages == []
    ended = ("--video_sections", "1", "--end_image_path", "{b}", "--anchor", "1")
    Request.of(decide(parse(command(pictures, *ended))))
    assert caplog.messages == ["--anchor has no effect, as every section has a picture of its own"]


def test_a_loop_is_told_and_noted(
    pictures: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    request = Request.of(decide(parse(command(pictures, "--loop"))))
    assert "\n  a loop: the last section leads into the first\n" in request.describe()
    assert request.metadata(30)["loop"] == "True"
    assert "loop" not in Request.of(decide(parse(command(pictures)))).metadata(30)
    assert caplog.messages == []


def test_the_last_section_of_a_loop_sees_the_start_image_as_an_end_image(
    pictures: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    looped = latents(command(pictures, "--loop"), capsys)
    assert torch.equal(looped, latents(command(pictures, "--end_image_path", "{a}"), capsys))


def test_a_loop_is_decoded_around_its_start_when_made_and_from_its_latents(
    pictures: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--output_type", "latent_images", "--loop")
    folder, latent = sorted(files(command(pictures, *out), capsys))
    decode = ("--latent_path", str(latent), "--snapshot", "toyworld")
    again = ("--output_type", "images", "--save_path", str(folder.parent / "again"))
    [decoded] = files(["generate", *decode, *again], capsys)
    made, other = ([load_image(p) for p in sorted(place.iterdir())] for place in (folder, decoded))
    assert len(made) == 12 and all(map(np.array_equal, made, other))
    latents, metadata = load_latents(latent)
    plain = folder.parent / "plain.safetensors"
    save_latents(
        plain,
        torch.cat([latents[:, :, -2:], latents[:, :, 1:]], dim=2),
        {name: text for name, text in metadata.items() if name != "loop"},
    )
    decode = ("--latent_path", str(plain), "--snapshot", "toyworld")
    [decoded] = files(["generate", *decode, *again], capsys)
    whole = [load_image(path) for path in sorted(decoded.iterdir())]
    assert len(whole) == 17 and all(map(np.array_equal, made, whole[5:]))


def without_image(pictures: dict[str, str], *options: str) -> list[str]:
    words = command(pictures, *options)
    place = words.index("--image_path")
    return words[:place] + words[place + 2 :]


def test_a_start_picture_stands_for_the_image_that_is_missing(
    tmp_path: Path, pictures: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    made = without_image(pictures, "--start_picture", "#405060")
    flat = np.full((16, 32, 3), (0x40, 0x50, 0x60), dtype=np.uint8)
    save_png(tmp_path / "flat.png", flat)
    given = command(pictures, "--image_path", str(tmp_path / "flat.png"))
    assert torch.equal(latents(made, capsys), latents(given, capsys))
    noisy = [
        Request.of(decide(parse(without_image(pictures, *words)))).scene.image
        for words in (
            ("--start_picture", "noise"),
            ("--start_picture", "noise", "--seed", "2"),
            ("--start_picture", "noise", "--seed", "1"),
        )
    ]
    assert noisy[0] == noisy[2] != noisy[1]
    request = Request.of(decide(parse(made)))
    assert request.metadata(30)["start_picture"] == "#405060"
    assert "image '#405060'" in request.describe()


def test_without_an_image_and_a_start_picture_nothing_is_made(
    pictures: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = failure(without_image(pictures), capsys)
    assert "--image_path is missing; for text to video give --start_picture" in message
    message = failure(without_image(pictures, "--start_picture", "void"), capsys)
    assert "--start_picture: 'void' is no colour; use noise, gradient, or" in message


def test_first_frames_are_left_out_when_made_and_of_latents(
    pictures: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--output_type", "latent_images")
    folder, latent = sorted(files(command(pictures, *out, "--drop_first_frames", "5"), capsys))
    decode = ("--latent_path", str(latent), "--snapshot", "toyworld", "--output_type", "images")
    again = ("generate", *decode, "--save_path", str(folder.parent / "again"))
    whole, less = (
        [load_image(path) for path in sorted(place.iterdir())]
        for options in ((), ("--drop_first_frames", "5"))
        for place in files([*again, *options], capsys)
    )
    made = [load_image(path) for path in sorted(folder.iterdir())]
    assert len(whole) == 13 and len(made) == 8
    assert all(map(np.array_equal, made, whole[5:])) and all(map(np.array_equal, less, whole[5:]))


def test_a_video_of_fewer_sections_than_planned_keeps_its_frames(
    pictures: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """One that is told to finish early: what was to be left out is all that it has."""
    video = Request.of(decide(parse(command(pictures, "--drop_first_frames", "8")))).scene
    assert isinstance(video, Video) and (video.frames, video.drop) == (5, 8)
    assert (video.first(2).frames, video.first(2).drop) == (5, 0)
    assert set(caplog.messages) == {"all of its 5 frames are kept, as 8 were to be left out"}


def test_policies_of_the_end_image_differ_behind_the_section_made_first(
    pictures: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    end = ("--end_image_path", "{b}", "--end_image_policy")
    persistent, first = (
        latents(command(pictures, *end, policy), capsys)
        for policy in ("persistent", "first_section")
    )
    assert torch.equal(persistent[:, :, 3], first[:, :, 3])
    assert not torch.equal(persistent[:, :, 2], first[:, :, 2])


def test_a_negative_prompt_counts_with_real_guidance(
    pictures: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = (
        latents(command(pictures, "--guidance_scale", "2", "--negative_prompt", text), capsys)
        for text in ("n", "m")
    )
    assert not torch.equal(one, other)


def test_pictures_are_told_apart_by_content(tmp_path: Path, pictures: dict[str, str]) -> None:
    same = picture(tmp_path / "same.png", 0)
    load = [Picture.load(path, (32, 16)) for path in (pictures["a"], same, pictures["b"])]
    assert load[0] == load[1] != load[2]
    assert load[0] != Picture.load(same, (16, 32))


# One frame


def test_one_frame_is_a_picture(
    pictures: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--control_image_path", "{a}", "{b}", "--output_type", "both")
    made = files(edit_command(pictures, *options), capsys)
    saved, shown = made
    assert (saved.suffix, shown.suffix) == (".safetensors", ".png")
    assert load_image(shown).shape == (16, 32, 3)
    again = ["generate", "--latent_path", str(saved), "--snapshot", "toyworld"]
    [decoded] = files([*again, "--save_path", str(saved.parent / "again")], capsys)
    assert np.array_equal(load_image(decoded), load_image(shown))


def test_controls_masks_and_indices_reach_the_edit(
    tmp_path: Path, pictures: dict[str, str]
) -> None:
    Image.new("RGBA", (32, 16), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("L", (32, 16), 255).save(tmp_path / "white.png")
    clear, white = str(tmp_path / "clear.png"), str(tmp_path / "white.png")
    options = "target_index=1,control_index=0;10;12,no_2x,no_post"
    paths = ("--control_image_path", "{a}", clear, clear, "--control_image_mask_path", "{a}", white)
    scene = edit(pictures, *paths, "--one_frame_inference", options, "--image_path", "{b}")
    section = scene.section
    assert (section.latent_indices, section.clean_indices) == ((1,), (0, 10, 12))
    assert (section.clean_2x_indices, len(section.clean_4x_indices)) == ((), 16)
    masks = [control.mask for control in scene.controls]
    assert 0 < masks[0].mean() < 1 and masks[1].min() == 1 and masks[2].max() == 0
    assert scene.image.label == pictures["b"]
    assert "at 10, masked" in scene.describe()


def test_the_first_control_image_is_what_siglip_sees_by_default(pictures: dict[str, str]) -> None:
    scene = edit(pictures, "--control_image_path", "{b}", "{c}")
    assert scene.image == scene.controls[0].picture


def test_a_black_mask_removes_a_control_image(
    tmp_path: Path, pictures: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (32, 16), 0).save(tmp_path / "black.png")

    paths = ("--image_path", "{a}", "--control_image_path")
    black = ("--control_image_mask_path", str(tmp_path / "black.png"))
    masked, other, open_ = (
        latents(edit_command(pictures, *paths, *options), capsys)
        for options in (("{a}", *black), ("{b}", *black), ("{b}",))
    )
    assert torch.equal(masked, other)
    assert not torch.equal(masked, open_)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ("", (32, 16)),
        ("--one_frame_auto_resize", (32, 16)),
        ("--one_frame_auto_resize --video_size 64 64", (80, 48)),
        ("--control_image_path {tall} --one_frame_auto_resize --video_size 64 64", (32, 128)),
    ],
)
def test_size_of_an_edit(
    tmp_path: Path, pictures: dict[str, str], options: str, size: tuple[int, int]
) -> None:
    pictures["tall"] = picture(tmp_path / "tall.png", size=(40, 10))
    scene = edit(pictures, "--control_image_path", "{a}", *options.split())
    assert scene.size == size


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--prompt 0:a;;;", "--prompt: '' at character 7: an empty part"),
        ("--prompt 0:a;;;3:b", "--prompt: there is no section 3 in a video of 3"),
        ("--prompt 2-1:a;;;0:b", "'2-1' runs backwards; write 1-2"),
        ("--image_path 0:{a};;;1:none.png", "image none.png: no such file"),
        ("--image_path -4:{a};;;0:{a}", "--image_path: there is no section -4"),
        ("--latent_paddings 1,0", "paddings: 2 given for 3 sections"),
        ("--latent_paddings 1,-1,0", "--latent_paddings: '-1', the 2. of"),
        ("--section_seeds 1:a", "--section_seeds: section 1: 'a' is not a whole number"),
        ("--section_seeds 1:-2", "--section_seeds: section 1: '-2' must be at least 0"),
        ("--section_guidance 5:2", "--section_guidance: there is no section 5"),
        ("--section_guidance nan", "--section_guidance: section 0: 'nan' is not a finite number"),
        ("--end_image_path none.png", "image none.png: no such file"),
        (
            "--end_image_path {b} --end_image_strength 2",
            "--end_image_strength: '2' must be at most 1",
        ),
        ("--end_image_path {b} --end_image_policy x", "--end_image_policy: 'x' is unknown; use"),
        ("--end_image_path {b} --loop", "take the loop or the end image out"),
        ("--loop --drop_first_frames 1", "--drop_first_frames: a loop would jump"),
        ("--drop_first_frames 13", "--drop_first_frames: the video has 13 frames, 13 leave"),
        ("--drop_first_frames 9 --finish_after 1", "the video has 1 frames, 9 leave none"),
        ("--control_image_path {a}", "add --one_frame_inference default"),
        ("--control_image_mask_path {a}", "add --one_frame_inference default"),
        ("--image_mask_path none.png", "image none.png: no such file"),
        ("--image_mask_path {wide}", "another shape than its image's"),
    ],
)
def test_mistakes_in_a_video(
    tmp_path: Path,
    pictures: dict[str, str],
    options: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Models, "_use", lambda *_: pytest.fail("a model was used"))
    pictures["wide"] = picture(tmp_path / "wide.png", size=(8, 80))
    assert re.search(message, failure(command(pictures, *options.split()), capsys))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "--control_image_path is missing"),
        ("--control_image_path none.png", "image none.png: no such file"),
        ("--control_image_path {a} --one_frame_inference control_indices=0", "is unknown; use"),
        ("--control_image_path {a} --one_frame_inference target_index=x", "'x' is not a whole"),
        ("--control_image_path {a} --one_frame_inference no_2x,no_2x", "no_2x is given twice"),
        (
            "--control_image_path {a} {b} --one_frame_inference control_index=1",
            "1 values for 2 control images",
        ),
        ("--image_path {a} --control_image_mask_path {a}", "1 masks for 0 control images"),
        ("--control_image_path {a} --control_image_mask_path {a} {b}", "2 masks for 1 control"),
        ("--control_image_path {a} --control_image_mask_path {wide}", "another shape"),
        ("--image_path {a} --one_frame_auto_resize", "no control image to take the shape of"),
        ("--control_image_path {a} --prompt 0:a;;;1:b", "no section 1 in a video of 1"),
    ],
)
def test_mistakes_in_an_edit(
    tmp_path: Path,
    pictures: dict[str, str],
    options: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pictures["wide"] = picture(tmp_path / "wide.png", size=(2, 400))
    assert re.search(message, failure(edit_command(pictures, *options.split()), capsys))


@pytest.mark.parametrize(
    ("options", "unused"),
    [
        ("--video_seconds 5", ["--video_seconds"]),
        ("--end_image_strength 0", ["--end_image_strength"]),
        ("--start_picture noise", ["--start_picture"]),
        ("--one_frame_auto_resize", ["--one_frame_auto_resize"]),
        ("--magcache_k 2", ["--magcache_k"]),
        ("--one_frame_inference default --anchor 1", ["--video_sections", "--anchor"]),
        (
            "--one_frame_inference default --end_image_path {b} --latent_paddings 0 "
            "--section_lora_strengths 0",
            [
                "--video_sections",
                "--section_lora_strengths",
                "--latent_paddings",
                "--end_image_path",
            ],
        ),
    ],
)
def test_what_has_no_effect_is_told(
    pictures: dict[str, str], options: str, unused: list[str]
) -> None:
    lines = list(parse(command(pictures, *options.split())).unused())
    assert [line.partition(" has no effect ")[0] for line in lines] == unused
