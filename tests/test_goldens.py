"""Every golden case of the repository passes or differs as reviewed, and none could do otherwise.

A checker compares through exact() and compare() and their like with a rule of ours; each comparison
is made a second time with a wrong value in the place of ours, and then has to fail.
"""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import reviewed
from golden.differences import DIFFERENCES
from golden.result import Case, Deviation
from goldens import KINDS, cases_of_kind, line_of, main
from torch import Tensor

from framepack_core.parsing.section_spec import SectionSpec

TESTS = Path(__file__).resolve().parent
FOLDER = TESTS / "goldens"
COMPARISONS = ("exact", "compare", "exact_ours", "compare_ours")
VALUE = {"exact": 1, "compare": 1, "exact_ours": 2, "compare_ours": 2}  # where ours is given
DIFFERING = ("fp8", "lora", "prompt_lines", "section_spec", "sections", "train")


def wrong(value: Any) -> Any:
    """Another value of the same type, further away than any tolerance."""
    if isinstance(value, Tensor):
        if not value.numel():
            return torch.ones(1)
        if value.is_floating_point():
            return value * 1.5 + 1
        return ~value if value.dtype == torch.bool else value + 1
    if isinstance(value, dict):
        return {**value, **{key: wrong(value[key]) for key in list(value)[-1:]}} or {"wrong": 1}
    if isinstance(value, list | tuple):
        return [*value[:-1], wrong(value[-1])] if value else ["wrong"]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 1.5 + 1
    return f"{value} and wrong"


@cache
def run(kind: str) -> tuple[list[Case], list[str]]:
    """The cases of a kind, and the names of the comparisons that took a wrong value."""
    module, blind = importlib.import_module(f"golden.{kind}"), []

    def twice(name: str, compare: Callable[..., Case]) -> Callable[..., Case]:
        def both(*args: Any, **kwargs: Any) -> Case:
            given = list(args)
            given[VALUE[name]] = wrong(args[VALUE[name]])
            if compare(*given, **kwargs).ok:
                blind.append(args[0])
            return compare(*args, **kwargs)

        return both

    with pytest.MonkeyPatch.context() as patch:
        for name in COMPARISONS:
            if hasattr(module, name):
                patch.setattr(module, name, twice(name, getattr(module, name)))
        return list(cases_of_kind(kind, FOLDER)), blind


def deviations(kind: str) -> list[Deviation]:
    return [case.deviation for case in run(kind)[0] if case.deviation is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_every_case_passes_or_differs_and_no_wrong_value_would(kind: str) -> None:
    cases, blind = run(kind)
    assert cases
    assert [line_of(kind, case) for case in cases if not case.ok] == []
    assert blind == []
    assert bool(deviations(kind)) == (kind in DIFFERING)


@pytest.mark.parametrize("kind", DIFFERING)
def test_every_value_that_differs_is_reviewed(kind: str) -> None:
    found = {reviewed.key(deviation) for deviation in deviations(kind)}
    entries = json.loads((reviewed.FOLDER / f"{kind}.json").read_text(encoding="utf-8"))
    assert found == {json.dumps([e["tag"], e["inputs"]], sort_keys=True) for e in entries}
    assert {deviation.tag for deviation in deviations(kind)} <= DIFFERENCES.keys()


@pytest.mark.parametrize("side", ["ours", "reference"])
@pytest.mark.parametrize("kind", DIFFERING)
def test_a_wrong_value_in_a_case_that_differs_fails(kind: str, side: str) -> None:
    for case in run(kind)[0]:
        if case.deviation is not None:
            value = wrong(getattr(case.deviation, side))
            changed = replace(case, deviation=replace(case.deviation, **{side: value}))
            assert line_of(kind, reviewed.judged(kind, case))[0] == "DIFFERS"
            assert line_of(kind, reviewed.judged(kind, changed))[0] == "FAIL"


TO_V = "single_transformer_blocks.1.attn.to_v.weight"
# A file, the way to a number or text in it, what to put there, and a case that must fail by it.
TAMPERED = {
    "fp8": (["errors", "plain_fp8_flag"], "no error", "errors.plain_fp8_flag"),
    "lora": (["bf16_base", "cases", 0, "merged_dtypes", TO_V], "float16", "bf16base+float32.promo"),
    "prompt_lines": (["generate", "cases", 38, "result", "seed"], 5, "generate.38[prompt-range]"),
    "section_spec": (["cases", 14, "result", "0"], "b", "14[spec-negative-range]"),
    "sections": (["musubi", 8, "sections", 0, "latent_indices"], "2..10", "fps_24.sections"),
    "train": (
        ["continuous", "cases", 0, "from_uniform", "timesteps", 3],
        52.0,
        "uniform.0.from_uniform.timesteps[timestep-offset]",
    ),
}


@pytest.mark.parametrize("kind", DIFFERING)
def test_a_wrong_number_in_the_file_of_a_case_that_differs_fails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    way, value, name = TAMPERED[kind]
    folder = shutil.copytree(FOLDER, tmp_path / "goldens")
    path = folder / f"{kind}.json"
    spec = json.loads(path.read_text(encoding="utf-8"))
    place = spec
    for step in way[:-1]:
        place = place[step]
    assert place[way[-1]] != value
    place[way[-1]] = value
    path.write_text(json.dumps(spec), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["goldens.py", str(folder), "--only", kind])
    assert main() == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert failed and all(name in line for line in failed[:1])


def test_inputs_that_nobody_reviewed_are_held_to_their_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["9-7:back", "7:alone"]
    spec = {"cases": [{"input": text, "result": {"0": text}} for text in texts]}
    (tmp_path / "section_spec.json").write_text(json.dumps(spec))

    def verdicts() -> list[str]:
        cases = cases_of_kind("section_spec", tmp_path)
        return [line_of("section_spec", case)[0] for case in cases if "written" not in case.name]

    assert verdicts() == ["DIFFERS", "DIFFERS"]
    as_the_reference = lambda text: SectionSpec({0: text})  # noqa: E731
    monkeypatch.setattr("golden.section_spec.parse_spec", as_the_reference)
    assert verdicts() == ["FAIL", "FAIL"]


def test_the_command_counts_cases_and_says_where_we_differ() -> None:
    command = [sys.executable, str(TESTS / "goldens.py"), str(FOLDER), "--only", "section_spec"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    *lines, last = result.stdout.splitlines()
    verdicts = [line.split()[0] for line in lines]
    passed, differ = verdicts.count("PASS"), verdicts.count("DIFFERS")
    assert passed and differ and passed + differ == len(lines)
    assert last == f"{passed} passed, 0 failed, {differ} differ, 0 todo"
