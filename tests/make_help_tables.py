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

from framepack_core.cli import SCRIPTS  # noqa: E402
from framepack_core.cli.commands import Extend, Generate, Merge  # noqa: E402
from framepack_core.cli.foreign_options import CACHING, TRAINING, Foreign  # noqa: E402
from framepack_core.cli.options import default_of, shown_default  # noqa: E402
from framepack_core.headless.training_options import CacheJob, TrainJob  # noqa: E402
from framepack_core.runtime.options import SAME, Leaf, Settings, leaves  # noqa: E402

PAGES = ROOT / "js" / "docs"
OPTIONS = ROOT / "docs" / "options.md"
FLAGS = ROOT / "docs" / "musubi_flags.md"
MUSUBI_FLAGS = Path(__file__).with_name("musubi_flags.json")  # of each script, as of 30c658c
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

ABOUT_FLAGS = """\
# The flags of musubi-tuner's scripts

What each flag of its four FramePack scripts (at 30c658c) does here, also in a config file. *works*:
as there, with the differences that
[coming from musubi-tuner](../js/docs/coming_from_musubi_tuner.md) lists. *accepted*: changes
nothing here, and one line names all such flags. *refused*: an error that says what to do instead.
"""
FOREIGN = {"generate": (), "cache": CACHING, "train": TRAINING}


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


def flags_page() -> str:
    """docs/musubi_flags.md."""
    scripts = json.loads(MUSUBI_FLAGS.read_text(encoding="utf-8"))
    return "".join([ABOUT_FLAGS, *(part for name in scripts for part in _script(name, scripts))])


def _script(name: str, scripts: dict[str, list[str]]) -> Iterator[str]:
    command, _ = SCRIPTS[name]
    own = {flag: leaf for leaf in leaves(COMMANDS[f"framepack {command}"]) for flag in _all(leaf)}
    foreign = {option.name: option for option in FOREIGN[command]}
    yield f"\n## {name}\n\n"
    rows = [("Flag", "Here", ""), ("---",) * 3]
    for flag in scripts[name]:
        if (name, flag) in SPECIAL:
            rows.append((f"`--{flag}`", *SPECIAL[name, flag]))
        elif flag in own:
            rows.append((f"`--{flag}`", *_own(own[flag], flag)))
        else:
            rows.append((f"`--{flag}`", *_verdict(foreign[flag])))
    yield from _rows(rows)


# Where a flag that works elsewhere does not.
SPECIAL = {
    ("fpack_cache_text_encoder_outputs", "batch_size"): (
        "accepted",
        "captions are encoded alone",
    ),
}


def _all(leaf: Leaf) -> Iterator[str]:
    """Every flag of an option, without dashes."""
    own = leaf.option.flags or (() if leaf.option.switches else (leaf.name,))
    yield from [leaf.flag] if leaf.option.pair else own
    yield from leaf.option.switches


NOTHING = "Changes nothing: "  # in a help, before why


def _own(leaf: Leaf, flag: str) -> tuple[str, str]:
    """What an option of ours does, and what may stand behind its flag where that is a list."""
    if NOTHING in leaf.option.help:
        return "accepted", leaf.option.help.partition(NOTHING)[2].rstrip(".")
    return "works", _values(leaf, flag)


def _values(leaf: Leaf, flag: str) -> str:
    if leaf.option.switches and flag not in leaf.option.flags:
        return leaf.option.switches[flag][1]
    return ", ".join(map(str, leaf.choices))


def _verdict(option: Foreign) -> tuple[str, str]:
    if option.harmless is None:
        return "accepted", option.reason
    but = f"{option.harmless[0]} is accepted; otherwise " if option.harmless else ""
    return "refused", but + option.reason


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
