"""The words of the interface: every language with the same keys and the same {names} in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOCALES = ROOT / "locales"
SOURCES = [*(ROOT / "js").glob("*.js")]
LANGUAGES = ("en", "ja", "zh", "zh-TW", "ko", "ru")
FILES = ("main.json", "nodeDefs.json")
ALL = [(language, file) for language in LANGUAGES for file in FILES]
NAME = re.compile(r"\{\w+\}")
# What is typed or chosen as it stands: names with "_", flags, syntax and file endings.
CODE = re.compile(r"\b\w+_\w+\b|--[a-z]+|;;;|\[\[?\w+\]\]?|\.[a-z]{2,}\b(?<!\.txt)", re.ASCII)


def words(language: str, file: str) -> dict[str, str]:
    """Texts by dotted key."""
    return dict(flat(json.loads((LOCALES / language / file).read_text(encoding="utf-8"))))


def flat(table: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        place = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            yield from flat(value, place)
        else:
            yield place, value


@pytest.mark.parametrize(("language", "file"), ALL)
def test_languages_say_the_same(language: str, file: str) -> None:
    english, here = words("en", file), words(language, file)
    assert here.keys() == english.keys()
    assert [key for key, text in here.items() if not text.strip()] == []
    if file == "main.json":
        named = {key: sorted(NAME.findall(text)) for key, text in here.items()}
        assert named == {key: sorted(NAME.findall(text)) for key, text in english.items()}


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_sentences_are_translated(language: str) -> None:
    english, here = words("en", "nodeDefs.json"), words(language, "nodeDefs.json")
    same = [key for key, text in here.items() if " " in text and text == english[key]]
    assert [key for key in same if key.endswith(("tooltip", "description"))] == []


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_what_is_typed_stays_as_it_is(language: str) -> None:
    english, here = words("en", "nodeDefs.json"), words(language, "nodeDefs.json")
    prose = [key for key in english if key.endswith(("tooltip", "description"))]
    lost = {key: set(CODE.findall(english[key])) - set(CODE.findall(here[key])) for key in prose}
    assert {key: names for key, names in lost.items() if names} == {}


def test_clips_of_frames_and_sections_have_words_of_their_own() -> None:
    """Not that of the text encoder, and not each other's."""
    for language in LANGUAGES[1:]:
        clip = words(language, "nodeDefs.json")["FPReelToyWorldScene.outputs.2.name"]
        assert "CLIP" not in clip, language
    for language in ("zh", "zh-TW"):
        assert [text for text in words(language, "main.json").values() if "片段" in text] == []


def test_widgets_use_words_that_exist() -> None:
    known = {key.removeprefix("fpreel.") for key in words("en", "main.json")}
    used = {
        key
        for path in SOURCES
        for key in re.findall(r'\bt\(\s*"([\w.]+)"', path.read_text(encoding="utf-8"))
    }
    assert len(used) > 40
    assert used <= known
