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
INPUTS = re.compile(r"\| Input \| \|\n\|---\|---\|\n(?:\|.*\n)*")
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


def page_with_inputs(name: str) -> str:
    """A node's help page with its inputs as the English locale has them."""
    words = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    rows = [(f"`{x['name']}`", _plain(x["tooltip"])) for x in words[name]["inputs"].values()]
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    table = "".join(_rows([("Input", ""), ("---", "---"), *rows]))
    return INPUTS.sub(lambda _: table.replace("| --- | --- |", "|---|---|"), page, count=1)


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
        page.write_text(page_with_inputs(page.stem), encoding="utf-8")
    OPTIONS.write_text(options_page(), encoding="utf-8")
    FLAGS.write_text(flags_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
