"""Write the tables of the help pages and of docs anew, from what declares options.

`python tests/make_help_tables.py` after tests/comfyui/make_locales.py, which asks the nodes.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from musubi_tuner_page import page as flags_page  # noqa: E402

from framepack_core.cli.commands import Extend, Generate, Merge  # noqa: E402
from framepack_core.cli.options import default_of, shown_default  # noqa: E402
from framepack_core.headless.training_options import CacheJob, TrainJob  # noqa: E402
from framepack_core.runtime.options import SAME, Leaf, Settings, leaves  # noqa: E402

PAGES = ROOT / "js" / "docs"
OPTIONS = ROOT / "docs" / "options.md"
FLAGS = ROOT / "docs" / "musubi_flags.md"
HEAD = re.compile(r"# .*\n\n.*\n")  # the title and what the node does
INPUTS = {
    "en": "Input",
    "ja": "入力",
    "zh": "输入",
    "zh-TW": "輸入",
}  # above the tables, by language
COMMANDS: dict[str, type[Settings]] = {
    "framepack generate": Generate,
    "framepack extend": Extend,
    "framepack merge": Merge,
    "framepack cache": CacheJob,
    "framepack train": TrainJob,
}
ABOUT = """\
# Options of the command line

Flags have musubi-tuner's names. *musubi-tuner*: its default where that differs and changes the
result. *Resume*: a resumed run may change it.
"""


def help_page(name: str, language: str = "en") -> Path:
    """Where ComfyUI looks for a node's help; for the other languages it shows the English page."""
    return PAGES / f"{name}.md" if language == "en" else PAGES / name / f"{language}.md"


def page_with_inputs(name: str, language: str = "en") -> str:
    """A node's help page with its title, what it does and its inputs as a locale has them."""
    words = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    node = words[name]
    head = f"# {_plain(node['display_name'])}\n\n{_plain(node['description'])}\n"
    own = {key: f"`{key}`" for key in node["inputs"]}
    if language != "en":
        own = {key: f"{node['inputs'][key]['name']} ({code})" for key, code in own.items()}
    rows = [(own[key], _plain(x["tooltip"])) for key, x in node["inputs"].items()]
    table = "".join(_rows([(INPUTS[language], ""), ("---", "---"), *rows]))
    table = table.replace("| --- | --- |", "|---|---|")
    inputs = rf"\| {INPUTS[language]} \| \|\n\|---\|---\|\n(?:\|.*\n)*"
    page = HEAD.sub(lambda _: head, help_page(name, language).read_text(encoding="utf-8"), count=1)
    return re.sub(inputs, lambda _: table, page, count=1)


def options_page() -> str:
    """docs/options.md."""
    return "".join([ABOUT, *(part for name in COMMANDS for part in _command(name))])


def _command(name: str) -> Iterator[str]:
    yield f"\n## {name}\n"
    groups: dict[str, list[Leaf]] = {}
    for leaf in leaves(COMMANDS[name]):
        if leaf.option.cli:
            groups.setdefault(leaf.group.title, []).append(leaf)
    for title, members in groups.items():
        if title:
            yield f"\n### {title[:1].upper()}{title[1:]}\n"
        head = ("Flag", "Default", "musubi-tuner", "", "Resume")
        yield "\n"
        yield from _rows([head, ("---",) * len(head), *map(_row, members)])


def _row(leaf: Leaf) -> tuple[str, ...]:
    own, theirs = default_of(leaf), leaf.option.reference
    return (
        "<br>".join(f"`{name}`" for name in _flags(leaf)),
        own and f"`{own}`",
        "" if theirs is SAME else f"`{shown_default(theirs) or 'none'}`",
        leaf.option.help,
        "yes" if leaf.option.mutable else "",
    )


def _flags(leaf: Leaf) -> Iterator[str]:
    if leaf.option.pair:
        yield f"--{leaf.flag} {leaf.option.pair}=…"
    elif leaf.option.flags or not leaf.option.switches:
        no = "no-" if leaf.default is True else ""
        yield from (f"--{no}{name}" for name in leaf.option.flags or (leaf.name,))
    yield from (f"--{name}" for name in leaf.option.switches)


def _rows(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    for row in rows:
        cells = (cell.replace("|", "\\|") for cell in row)
        yield re.sub(r"  +", " ", f"| {' | '.join(cells)} |\n")


def _plain(text: str) -> str:
    """Without the quotes that vue-i18n needs around its own characters."""
    return re.sub(r"\{'(.)'\}", r"\1", text)


def main() -> None:
    for page in PAGES.glob("FPReel*.md"):
        for language in INPUTS:
            text = page_with_inputs(page.stem, language)
            help_page(page.stem, language).write_text(text, encoding="utf-8")
    OPTIONS.write_text(options_page(), encoding="utf-8")
    FLAGS.write_text(flags_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
