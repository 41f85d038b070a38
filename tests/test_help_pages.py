"""The help of every node: its picture, its inputs, and that the code can say what a page quotes."""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest
from make_help_tables import HEAD, INPUTS, help_page, options_page, page_with_inputs
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "js" / "docs"
PAGES = sorted(DOCS.glob("FPReel*.md"))
SOURCES = [*(ROOT / "nodes").rglob("*.py"), *(ROOT / "framepack_core").rglob("*.py")]
PICTURE, PICTURES = 60_000, 600_000  # bytes of one, and of all
LEAST_WIDTH = 300  # pixels, or nobody reads what is on it
LINK = re.compile(r"!?\[([^\]]*)\]\(([^)\s]+)\)")
# What a translation keeps: code and quotations, links and pictures, and headings and entries.
KEPT = re.compile(r"`[^`\n]+`|\]\([^)\s]+\)|^(?:#+|-) ", re.MULTILINE)
VALUE = "\0"  # in a message, where the code puts a value
OPEN = "…"  # in a quotation, where one is left out

per_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def mistakes(page: Path) -> list[str]:
    """The entries of the last section."""
    _, heading, section = read(page).partition("\n## Common mistakes\n")
    assert heading, "no section of common mistakes"
    assert "\n## " not in section
    return [line for line in section.splitlines() if line]


def test_every_node_has_a_page() -> None:
    declared = {
        name
        for path in (ROOT / "nodes").rglob("*.py")
        for name in re.findall(r'node_id="(\w+)"', read(path))
    }
    assert {page.stem for page in PAGES} == declared


@per_page
def test_page_shows_its_node(page: Path) -> None:
    """Run tests/browser/make_help_pictures.py where the picture is missing or out of date."""
    name = f"{page.stem}.png"
    before_inputs, _, _ = read(page).partition("\n| Input |")
    assert [alt for alt, target in LINK.findall(before_inputs) if target == name and alt]
    assert (DOCS / name).stat().st_size <= PICTURE
    with Image.open(DOCS / name) as picture:
        assert picture.width >= LEAST_WIDTH


def test_pictures_are_small_together() -> None:
    pictures = [path for path in DOCS.iterdir() if path.suffix in (".png", ".jpg")]
    sizes = [picture.stat().st_size for picture in pictures]
    assert len(sizes) >= len(PAGES) and sum(sizes) <= PICTURES


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [target for _, target in LINK.findall(read(page)) if "://" not in target]
    assert [target for target in targets if not (DOCS / target).is_file()] == []


@per_page
def test_table_names_every_input(page: Path) -> None:
    words = json.loads(read(ROOT / "locales" / "en" / "nodeDefs.json"))[page.stem]
    table = "\n".join(line for line in read(page).splitlines() if line.startswith("|"))
    names = [entry["name"] for entry in words["inputs"].values()]
    assert [name for name in names if f"`{name}`" not in table] == []


@per_page
def test_table_says_what_the_inputs_say(page: Path) -> None:
    """Run tests/make_help_tables.py where it does not."""
    for language in INPUTS:
        path = help_page(page.stem, language)
        assert read(path) == page_with_inputs(page.stem, language), path


@per_page
def test_translations_keep_what_is_no_prose(page: Path) -> None:
    kept = {language: sorted(set(KEPT.findall(prose(page.stem, language)))) for language in INPUTS}
    assert [language for language in INPUTS if kept[language] != kept["en"]] == []
    counts = [len(re.findall("^- ", prose(page.stem, x), re.MULTILINE)) for x in INPUTS]
    assert len(set(counts)) == 1


def prose(name: str, language: str) -> str:
    """A page without what make_help_tables.py writes."""
    page = HEAD.sub("", read(help_page(name, language)), count=1)
    before, table, rest = page.partition(f"| {INPUTS[language]} | |\n")
    assert table
    return before + re.sub(r"\A(?:\|.*\n)+", "", rest)


def test_options_page_is_what_is_declared() -> None:
    assert read(ROOT / "docs" / "options.md") == options_page()


@per_page
def test_mistakes_are_told(page: Path) -> None:
    """Each begins with a message in backticks or with what is seen in italics."""
    entries = mistakes(page)
    assert 2 <= len(entries) <= 4
    assert [line for line in entries if not re.match(r"- (`[^`]+`|\*[^*]+\*): \S", line)] == []


@per_page
def test_quoted_messages_exist(page: Path) -> None:
    quotes = [line.split("`")[1] for line in mistakes(page) if line.startswith("- `")]
    assert [quote for quote in quotes if not any(says(m, quote) for m in messages())] == []


@cache
def messages() -> tuple[str, ...]:
    """Every text in the code, with a mark for each value that is put into it."""
    trees = (ast.parse(read(path)) for path in SOURCES)
    found = (template(node) for tree in trees for node in ast.walk(tree))
    return tuple({text for text in found if text is not None and " " in text})


def template(node: ast.AST) -> str | None:
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) or VALUE for part in node.values)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return None


def says(message: str, quote: str) -> bool:
    """Whether a message can begin like a quotation, or where that is open in front, contain it.

    The name in front of a colon may be a value that the code puts there.
    """
    name, colon, rest = quote.partition(": ")
    if message.startswith(f"{VALUE}: ") and colon and OPEN not in name:
        message, quote = message[3:], rest
    pattern = ".*".join(re.escape(part.strip()) for part in quote.split(OPEN))
    return re.match(pattern, message.lstrip(), re.DOTALL) is not None


@pytest.mark.parametrize(
    ("quote", "can"),
    [
        ("steps: … is too many", True),
        ("… is too many; use", True),
        ("steps: is too many", False),
        ("is too many", False),
        ("steps: … are too many", False),
        ("too many: … are too many", False),
    ],
)
def test_quotations_are_compared(quote: str, can: bool) -> None:
    assert says(f"steps: {VALUE} is too many; use {VALUE}", quote) == can
    assert says(f"{VALUE}: {VALUE} is too many; use {VALUE}", quote) == can
