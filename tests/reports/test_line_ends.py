"""Only a line feed ends a line; pasted text can hold characters that Python counts as ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reports.inputs import captioned, clips_toml, write_clip

from framepack_core.parsing.prompt_lines import number_prompts, read_prompt_file
from framepack_core.parsing.sample_prompts import load_sample_prompts
from framepack_core.runtime.files import split_lines
from framepack_core.training.dataset import TrainingSet

# What str.splitlines() cuts at besides the line feed and the carriage return before it.
NO_LINE_END = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r"]


@pytest.mark.parametrize("character", NO_LINE_END, ids=ascii)
def test_a_prompt_stays_whole(character: str, tmp_path: Path) -> None:
    prompt = f"a cat{character}in the rain"
    text = f"{prompt} --d 1\r\na dog\n"
    assert number_prompts(text, "lines") == [(1, f"{prompt} --d 1"), (2, "a dog")]
    (tmp_path / "prompts.txt").write_bytes(text.encode())
    assert read_prompt_file(tmp_path / "prompts.txt") == [(1, f"{prompt} --d 1"), (2, "a dog")]
    samples = load_sample_prompts(tmp_path / "prompts.txt")
    assert [sample.prompt for sample in samples] == [prompt, "a dog"]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85"], ids=ascii)
def test_a_caption_in_jsonl_stays_whole(character: str, tmp_path: Path) -> None:
    """JSON allows these inside of a string, as they are."""
    caption = f"a cat{character}in the rain"
    clip = write_clip(tmp_path / "clips" / "a.mp4")
    line = json.dumps({"video_path": str(clip), "caption": caption}, ensure_ascii=False)
    (tmp_path / "v.jsonl").write_text(f"{line}\n", encoding="utf-8")
    toml = clips_toml(tmp_path / "clips")
    source = f"video_directory = '{tmp_path / 'clips'}'"
    jsonl = f"video_jsonl_file = '{tmp_path / 'v.jsonl'}'"
    toml.write_text(toml.read_text().replace(source, jsonl))
    [item] = TrainingSet.load(toml).items
    assert item.captions == (caption,)


def test_a_caption_file_is_one_caption(tmp_path: Path) -> None:
    captioned(write_clip(tmp_path / "clips" / "a.mp4"), "a cat\u2028in the rain\n")
    [item] = TrainingSet.load(clips_toml(tmp_path / "clips")).items
    assert item.captions == ("a cat\u2028in the rain",)


def test_lines_of_windows_and_of_others() -> None:
    assert split_lines("a\r\nb\nc\x0cd\n\n") == ["a", "b", "c\x0cd", "", ""]
    assert split_lines("") == [""]
