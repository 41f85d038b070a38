"""Check every golden case of a folder: `python tests/goldens.py DIR [--only kind,kind]`.

One line a case, `PASS|FAIL kind/case max_err tolerance`; `DIFFERS kind/case reason` where we differ
on purpose (reviewed list in `golden/differences.py`), `TODO kind` where nothing is built yet,
`UNKNOWN file`. The last line counts them. Exit code 1 on any FAIL or UNKNOWN.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(Path(__file__).parent)]
sys.path.append(str(ROOT))  # last, so that our nodes/ never hides another package's

from golden.differences import DIFFERENCES  # noqa: E402

KINDS = (
    "dit_tiny", "sample_tiny", "step_skip", "rope", "sigmas", "unipc", "soft_append", "sections",
    "one_frame_mask", "section_spec", "prompt_lines", "buckets", "resize_pixels", "cache", "lora",
    "fp8", "train", "vae_tiny", "te_tiny",
)  # fmt: skip
NOT_DATA = {"README.md"}


def kind_of(name: str) -> str | None:
    """The kind whose name the file name starts with, the longest if several do."""
    return max((k for k in KINDS if name.startswith(k)), key=len, default=None)


def lines_of_kind(kind: str, folder: Path) -> Iterator[tuple[str, str]]:
    """(verdict, rest of the line) for every case of one kind."""
    if not (Path(__file__).parent / "golden" / f"{kind}.py").exists():
        yield "TODO", kind
        return
    cases = 0
    for case in importlib.import_module(f"golden.{kind}").check(folder):
        cases += 1
        name = f"{kind}/{case.name}"
        reason = next((why for mark, why in DIFFERENCES.items() if mark in name), None)
        if case.ok is None:
            yield "TODO", name
        elif not case.ok and reason is not None:
            yield "DIFFERS", f"{name} {reason}"
        else:
            yield ("PASS" if case.ok else "FAIL"), f"{name} {case.error} {case.tolerance}"
    if not cases:
        yield "FAIL", f"{kind}/none no-case-found exact"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="kinds, separated by commas")
    args = parser.parse_args()
    if not args.folder.is_dir():
        parser.error(f"{args.folder} is not a folder")
    only = set(filter(None, args.only.split(",")))
    if only - set(KINDS):
        parser.error(
            f"--only: unknown kind {sorted(only - set(KINDS))[0]}; known: {', '.join(KINDS)}"
        )

    files = sorted(p.name for p in args.folder.iterdir() if p.name not in NOT_DATA)
    present = {kind_of(name) for name in files} - {None}
    counts: Counter[str] = Counter()

    def say(verdict: str, rest: str) -> None:
        counts[verdict] += 1
        print(verdict, rest, flush=True)

    for kind in KINDS:
        if kind in present and (not only or kind in only):
            try:
                for verdict, rest in lines_of_kind(kind, args.folder):
                    say(verdict, rest)
            except Exception as error:  # a broken case must not hide the kinds after it
                say("FAIL", f"{kind}/error {type(error).__name__}: {error} exact")
    if not only:
        for name in files:
            if kind_of(name) is None:
                say("UNKNOWN", name)
    print(
        f"{counts['PASS']} passed, {counts['FAIL']} failed, "
        f"{counts['DIFFERS']} differ, {counts['TODO']} todo"
    )
    return 1 if counts["FAIL"] or counts["UNKNOWN"] else 0


if __name__ == "__main__":
    sys.exit(main())
