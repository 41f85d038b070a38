"""Check every golden case of a folder: `python tests/goldens.py DIR [--only kind,kind]`.

One line a case, `PASS|FAIL kind/case max_err tolerance`; `DIFFERS kind/case reason` where our value
is not the reference's on purpose, and is the one that our rule and the reviewed list ask for
(`golden/differences.py`, `golden/reviewed/`); `TODO kind` where nothing is built yet, `UNKNOWN
file`. The last line counts them. Exit code 1 on any FAIL or UNKNOWN.

`--review` writes our values of the differing cases to `golden/reviewed/`, for a reader to approve.
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

from golden import reviewed  # noqa: E402
from golden.differences import DIFFERENCES  # noqa: E402
from golden.result import Case  # noqa: E402

KINDS = (
    "dit_tiny", "sample_tiny", "step_skip", "rope", "sigmas", "unipc", "soft_append", "sections",
    "one_frame_mask", "section_spec", "prompt_lines", "buckets", "resize_pixels", "cache", "lora",
    "fp8", "train", "vae_tiny", "te_tiny",
)  # fmt: skip
NOT_DATA = {"README.md"}


def kind_of(name: str) -> str | None:
    """The kind whose name the file name starts with, the longest if several do."""
    return max((k for k in KINDS if name.startswith(k)), key=len, default=None)


def cases_of_kind(kind: str, folder: Path) -> Iterator[Case]:
    """Every case of a kind, held to its reviewed value if there is one."""
    for case in importlib.import_module(f"golden.{kind}").check(folder):
        yield reviewed.judged(kind, case)


def line_of(kind: str, case: Case) -> tuple[str, str]:
    """(verdict, rest of the line) of a case."""
    name = f"{kind}/{case.name}"
    if case.ok is None:
        return "TODO", name
    if case.ok and case.deviation is not None:
        return "DIFFERS", f"{name} {DIFFERENCES[case.deviation.tag]}"
    return ("PASS" if case.ok else "FAIL"), f"{name} {case.error} {case.tolerance}"


def lines_of_kind(kind: str, folder: Path) -> Iterator[tuple[str, str]]:
    """(verdict, rest of the line) for every case of one kind."""
    if not (Path(__file__).parent / "golden" / f"{kind}.py").exists():
        yield "TODO", kind
        return
    lines = 0
    for case in cases_of_kind(kind, folder):
        lines += 1
        yield line_of(kind, case)
    if not lines:
        yield "FAIL", f"{kind}/none no-case-found exact"


def review(kind: str, folder: Path) -> None:
    """Write the values of the cases that differ and keep to their rule."""
    cases = importlib.import_module(f"golden.{kind}").check(folder)
    deviations = [case.deviation for case in cases if case.ok and case.deviation is not None]
    if deviations:
        reviewed.write(kind, deviations)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="kinds, separated by commas")
    parser.add_argument("--review", action="store_true", help="write the values that differ")
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
    if args.review:
        for kind in sorted(present & only or present):
            review(kind, args.folder)

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
