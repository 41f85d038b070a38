"""Prompt lines of batches and of training samples: every option, and every mistake by its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from framepack_core.headless.job import LINE_OPTIONS, AnyJob, parse_prompt_line
from framepack_core.parsing.prompt_lines import read_prompt_file
from framepack_core.parsing.sample_prompts import (
    SamplePrompt,
    load_sample_prompts,
    parse_sample_line,
)
from framepack_core.runtime.errors import FramePackError
from framepack_core.sampling.options import LengthOptions


def test_a_line_of_the_documentation() -> None:
    line = (
        "A beautiful sunset over mountains --w 832 --h 480 --f 5 --d 42 --s 20 "
        "--i path/to/start_image.jpg"
    )
    assert parse_prompt_line(line) == {
        "prompt": "A beautiful sunset over mountains",
        "width": 832,
        "height": 480,
        "video_seconds": 5.0,
        "seed": 42,
        "infer_steps": 20,
        "image_path": "path/to/start_image.jpg",
    }


def test_every_option_reaches_a_field_of_its_own_but_for_g_and_l() -> None:
    values = {"mcrr": "0.5", "n": "bad, worse", "of": "no_2x,control_index=0;1"}
    for name, leaf in LINE_OPTIONS.items():
        line = parse_prompt_line(f"a cat --{name} {values.get(name, '7')}")
        assert set(line) == {"prompt", leaf.flag}
    assert len({leaf.path for leaf in LINE_OPTIONS.values()}) == len(LINE_OPTIONS) - 1


def test_repeated_options_add_up_or_the_last_counts() -> None:
    line = parse_prompt_line("a --ci 1.png --cim m 1.png --ci 2.png --w 64 --W 32")
    assert line["control_image_path"] == ("1.png", "2.png")
    assert (line["control_image_mask_path"], line["width"]) == (("m 1.png",), 32)


def test_dashes_in_prose_stay() -> None:
    text = r"a well-lit cat -- happy, 3 --4 years \--old --n \--bad -- art --d 1"
    line = parse_prompt_line(text)
    assert line["prompt"] == "a well-lit cat -- happy, 3 --4 years --old"
    assert (line["negative_prompt"], line["seed"]) == ("--bad -- art", 1)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a cat --ar 16:9", "^--ar: unknown option; known are --n, .*--ar if it is text"),
        ("a cat --w", "^--w: '' is not a whole number"),
        ("a cat --w 64px", "^--w: '64px' is not"),
        ("a cat --h 0", "^--h: '0' must be at least 1"),
        ("a cat --vs 2.0", "^--vs: '2.0' is not"),
        ("a cat --f 0", "^--f: '0' must be above 0"),
        ("a cat --f nan", "^--f: 'nan' is not"),
        ("a cat --fs inf", "^--fs: 'inf' is not"),
        ("a cat --d -5", "^--d: '-5' must be at least 0"),
        ("a cat --mcrr 1.5", "^--mcrr: '1.5' must be at most 1"),
        ("a cat --i", "^--i: '' is empty"),
        ("a cat --of", "^--of: '' is empty"),
    ],
)
def test_mistakes_name_the_option(line: str, words: str) -> None:
    with pytest.raises(FramePackError, match=words):
        parse_prompt_line(line)


def test_lines_replace_the_command_lines() -> None:
    def merged(line: str, **prompt: object) -> AnyJob:
        job = AnyJob(prompt={"prompt": "x", **prompt}, length={"video_seconds": 2})
        return job.with_line(parse_prompt_line(line))

    assert merged("a") == AnyJob(prompt={"prompt": "a"}, length={"video_seconds": 2})
    assert merged("--d 3").prompt.prompt == "x" and merged("--d 3").sampling.seed == 3
    assert merged("a --vs 3").length == LengthOptions(video_sections=3)
    assert merged("a --f 3").length == LengthOptions(video_seconds=3)
    assert merged("a --f 3 --vs 2").length == LengthOptions(video_seconds=3, video_sections=2)
    assert merged("a --w 64 --h 32").prompt.size == (64, 32)
    assert merged("a --h 32", video_size=(128, 96)).prompt.size == (96, 32)
    with pytest.raises(FramePackError, match="--w and --h: one of them is missing"):
        _ = merged("a --w 64").prompt.size


def test_files_have_numbered_lines_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeff# first\n\n  a cat --d 1 \n\t# indented\na # dog\n", encoding="utf-8")
    assert read_prompt_file(path) == [(3, "a cat --d 1"), (5, "a # dog")]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"# nothing\n\n", "no prompt in it"), (b"caf\xe9 au lait\n", "not UTF-8 .byte 3")],
)
def test_files_without_prompts_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(FramePackError, match=f"prompts.txt: {words}"):
        read_prompt_file(path)
    with pytest.raises(FramePackError, match="cannot be read"):
        read_prompt_file(tmp_path / "none.txt")


def test_sample_lines_count_frames_and_know_two_guidances() -> None:
    line = "I am a cat --w 640 --f 25 --d 1 --s 20 --g 6 --l 2 --of no_post --ei e.png --vs 2"
    assert parse_sample_line(line) == SamplePrompt(
        prompt="I am a cat",
        width=640,
        frame_count=25,
        video_sections=2,
        seed=1,
        sample_steps=20,
        guidance_scale=6.0,
        cfg_scale=2.0,
        end_image_path="e.png",
        one_frame="no_post",
    )
    with pytest.raises(FramePackError, match="sample 'a': no start image"):
        parse_sample_line("a").check()


SAMPLES = [
    SamplePrompt(prompt="a", width=64, seed=1, control_image_path=("1.png", "2.png")),
    SamplePrompt(prompt="b", width=32, guidance_scale=6.0),
]
TOML = """
[prompt]
width = 64
[[prompt.subset]]
prompt = "a"
seed = 1
control_image_path = ["1.png", "2.png"]
[[prompt.subset]]
prompt = "b"
width = 32
guidance_scale = 6
"""
JSON = [
    {"prompt": "a", "width": 64, "seed": 1, "control_image_path": ["1.png", "2.png"], "enum": 3},
    "b --w 32 --g 6",
]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("s.txt", "a --w 64 --d 1 --ci 1.png --ci 2.png\n# no\n b --w 32 --g 6.0"),
        ("s.prompts", "a --w 64 --d 1 --ci 1.png --ci 2.png\n# no\n b --w 32 --g 6.0"),
        ("s.toml", TOML),
        ("s.json", json.dumps(JSON)),
    ],
)
def test_three_formats_say_the_same(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert load_sample_prompts(tmp_path / name) == SAMPLES


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("s.txt", "a\n\nb --x 1", "s.txt line 3: --x: unknown option"),
        ("s.json", "[5]", "s.json prompt 1: 5 is neither a line nor a table"),
        ("s.json", '{"prompt": "a"}', "should hold a list"),
        ("s.json", "[", "not JSON .*line 1"),
        ("s.json", '[{"prompt": "a", "steps": 5}]', "prompt 1: steps: unknown; known are prompt,"),
        ("s.json", '[{"prompt": "a", "width": 64.5}]', "width: '64.5' is not a whole number"),
        ("s.json", '[{"prompt": "a", "seed": true}]', "seed: True is neither a text nor a number"),
        ("s.json", '[{"prompt": "a", "image_path": null}]', "image_path: None is neither"),
        ("s.json", '[{"width": 64}]', "prompt: missing"),
        ("s.toml", "width = 64", r"no \[\[prompt.subset\]\] in it"),
        ("s.toml", "width =", "not TOML"),
    ],
)
def test_bad_files_name_the_place(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(FramePackError, match=words) as caught:
        load_sample_prompts(tmp_path / name)
    assert "\n" not in str(caught.value)
