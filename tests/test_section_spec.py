"""Section specs: what they mean, where they are refused, and that they are written as they read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framepack_core.parsing.section_spec import SectionSpec, format_spec, parse_spec, section_range
from framepack_core.runtime.errors import FramePackError

PIECES = ("a", ";;;", "\\;;;", ";", "\\", ":", "-", "0", "12", "-1", "1.5", " ", "\n")
NASTY = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("a cat: it runs", {0: "a cat: it runs"}),
        (" a cat ", {0: " a cat "}),
        ("", {0: ""}),
        ("-1: last", {-1: "last"}),
        ("0-1:a ;;; -3--2: b", {0: "a", 1: "a", -3: "b", -2: "b"}),
        ("0-2:a;;;1:b", {0: "a", 1: "b", 2: "a"}),
        ("one;;;1:", {0: "one", 1: ""}),
        ("0:3: the movie;;;1:b", {0: "3: the movie", 1: "b"}),
        (r"0:a\;;;b;;;1:c", {0: "a;;;b", 1: "c"}),
        (r"0:C:\a\ ;;;1:D:\b", {0: "C:\\a\\", 1: "D:\\b"}),
    ],
)
def test_meaning_by_hand(text: str, texts: dict[int, str]) -> None:
    assert parse_spec(text).texts == texts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0:a;;;", "'' at character 7: an empty part"),
        (";;;1:a", "'' at character 1: an empty part"),
        ("0:a;;;;1:b", "';;;;1:b' at character 4"),
        ("0:a;;; 1.5:b", "'1.5:b' at character 8: '1.5' is not a section"),
        ("0:a;;;+1:b", "'\\+1' is not a section; use 0, -1 or 0-2 .if it is prose, write 0:"),
        ("2-1:a;;;0:b", "'2-1:a' at character 1: '2-1' runs backwards; write 1-2"),
        ("-1--2:a", "write -2--1"),
        ("-1-2:a;;;0:b", "both ends"),
        ("0--1:a", "both ends"),
        ("a;;;b", "'a' at character 1: later parts replace all of it"),
        ("0-1:a;;;0:b;;;1:c", "'0-1:a' at character 1: later parts replace all of it"),
    ],
)
def test_errors_point_at_the_place(text: str, words: str) -> None:
    with pytest.raises(FramePackError, match=words) as caught:
        parse_spec(text, "--prompt")
    assert str(caught.value).startswith("--prompt: ")


def test_the_end_wins_over_the_start_and_both_over_the_default() -> None:
    spec = parse_spec("0:a;;;1:b;;;-1:c")
    assert spec.resolve(2) == ["a", "c"]
    assert spec.resolve(4) == ["a", "b", "a", "c"]


@pytest.mark.parametrize(
    ("text", "default"), [("2:c;;;1:b", "b"), ("-1:z;;;-2:y", "y"), ("-1:z;;;3:d", "d")]
)
def test_without_section_0_the_lowest_one_is_the_default(text: str, default: str) -> None:
    assert parse_spec(text).resolve(4)[0] == default


def test_nothing_given_gives_nothing() -> None:
    assert parse_spec(None).resolve(2) == [None, None]


def test_sections_that_do_not_exist_are_named() -> None:
    with pytest.raises(FramePackError, match="--prompt: there is no section 16 in a video of 4"):
        parse_spec("16:9 picture of a cat", "--prompt").resolve(4)
    with pytest.raises(FramePackError, match="no section -3 in a video of 2"):
        parse_spec("-3:a;;;0:b").resolve(2)


def test_section_range() -> None:
    assert list(section_range("-3--2", 4)) == [1, 2]
    assert list(section_range(" 1 ", 4)) == [1]
    for bad, words in (("x", "'x' is not a section"), ("4", "no section 4"), ("", "'' is not")):
        with pytest.raises(FramePackError, match=f"section: .*{words}"):
            section_range(bad, 4, "section")


@given(st.dictionaries(st.integers(-9, 9), NASTY.map(str.strip), min_size=1))
def test_texts_are_read_as_they_were_written(texts: dict[int, str]) -> None:
    assert parse_spec(format_spec(texts)).texts == texts


@given(NASTY)
def test_any_text_is_read_whole_or_refused_in_one_line(text: str) -> None:
    try:
        spec = parse_spec(text)
    except FramePackError as error:
        assert "\n" not in str(error)
        return
    assert parse_spec(format_spec(spec.texts)) == SectionSpec(spec.texts)
