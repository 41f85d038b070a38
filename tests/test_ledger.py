"""The ledger: stopped runs resume, changes start afresh where they matter, damage heals."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import guided, randn, tiny_dit

from framepack_core.cli import read_command
from framepack_core.headless.request import Request
from framepack_core.runtime.errors import FramePackError
from framepack_core.runtime.files import atomic_path
from framepack_core.runtime.fingerprint import fingerprint
from framepack_core.sampling.flow import FlowDenoiser
from framepack_core.sampling.generate import SamplerConfig, generate, unipc_sampler
from framepack_core.sampling.ledger import Ledger, LedgerRun
from framepack_core.sampling.plan import Plan
from framepack_core.sampling.sections import plan_f1, plan_framepack
from framepack_core.sampling.step_cache import TeaCache

WINDOW = 2
START = randn(1, 16, 1, 4, 4, seed=3)


class Killed(Exception):
    pass


def run(
    plan: Plan, ledger: LedgerRun | None = None, seed: int = 1, stop_before: int | None = None
) -> tuple[torch.Tensor, list[int]]:
    """The latents and the orders of the sections that were really made."""
    sampler = unipc_sampler(FlowDenoiser(tiny_dit()), guided(), SamplerConfig(2))
    made: list[int] = []

    def sample(task):
        if task.order == stop_before:
            raise Killed
        made.append(task.order)
        return sampler(task)

    return generate(plan, sample, START, seed, ledger=ledger), made


def settings(**changed) -> dict:
    return {"seed": 1, "prompt": "p", "start image": START} | changed


@pytest.mark.parametrize("plan", [plan_framepack(3, WINDOW), plan_f1(3, WINDOW)])
@pytest.mark.parametrize("stop_before", [0, 1, 2])
def test_a_stopped_run_goes_on_to_the_same_bits(plan, stop_before, tmp_path) -> None:
    expected, _ = run(plan)
    with pytest.raises(Killed):
        run(plan, Ledger(tmp_path).open(plan, settings()), stop_before=stop_before)
    again = Ledger(tmp_path).open(plan, settings())
    assert again.finished == stop_before
    latents, made = run(plan, again)
    assert torch.equal(latents, expected)
    assert made == list(range(stop_before, 3))
    assert run(plan, Ledger(tmp_path).open(plan, settings()))[1] == []


def test_what_is_there_and_what_changed_is_said(tmp_path) -> None:
    """Changes are those against the most similar run, whichever was the last."""
    plan, said = plan_framepack(2, WINDOW), []
    ledger = Ledger(tmp_path, say=said.append)
    with pytest.raises(Killed):
        run(plan, ledger.open(plan, settings()), stop_before=1)
    ledger.open(plan, settings(seed=3, prompt="q"))
    assert ledger.open(plan, settings(seed=2)).finished == 0
    assert ledger.open(plan, settings()).finished == 1
    ledger.open(plan_f1(2, WINDOW), settings())
    run(plan, ledger.open(plan, settings()))
    ledger.open(plan, settings())
    fresh = "ledger: starts afresh, as no earlier run fits; the most similar one had another "
    assert said == [
        f"{fresh}seed (1, now 3), prompt",
        f"{fresh}seed (1, now 2)",
        "ledger: 1 of 2 sections are there already; resuming after them",
        f"{fresh}mode, section plan",
        "ledger: 1 of 2 sections are there already; resuming after them",
        "ledger: 2 of 2 sections are there already; nothing is left to make",
    ]
    lines = ledger.describe().splitlines()
    assert "2 sections" in lines[0]
    assert len(lines) == 2 and "2 of 2 sections" in lines[1] and lines[1].endswith("seed 1")


def test_one_section_rolled_again_keeps_those_made_before_it(tmp_path) -> None:
    plan = plan_framepack(3, WINDOW)
    first, _ = run(plan, Ledger(tmp_path).open(plan, settings()))
    rolled = plan.with_overrides("1", seed=99)
    latents, made = run(rolled, Ledger(tmp_path).open(rolled, settings()))
    assert made == [1, 2]
    last = slice(1 + 2 * WINDOW, None)
    assert torch.equal(latents[:, :, last], first[:, :, last])
    assert not torch.equal(latents, first)


@pytest.mark.parametrize("own", [{"guidance": 3.0}, {"lora_strength": 0.0}])
def test_what_a_section_has_of_its_own_keeps_those_made_before_it(own, tmp_path) -> None:
    plan = plan_framepack(3, WINDOW)
    run(plan, Ledger(tmp_path).open(plan, settings()))
    for section, kept in (("0", 2), ("1", 1), ("2", 0)):
        other = plan.with_overrides(section, **own)
        assert Ledger(tmp_path).open(other, settings()).finished == kept
    assert Ledger(tmp_path).open(plan, settings()).finished == 3


def test_a_loop_is_another_run_and_so_is_one_that_begins_with_another_picture(tmp_path) -> None:
    plan = plan_framepack(3, WINDOW)
    loop = plan.with_loop()
    run(plan, Ledger(tmp_path).open(plan, settings()))
    assert Ledger(tmp_path).open(loop, settings()).finished == 0
    run(loop, Ledger(tmp_path).open(loop, settings()))
    assert Ledger(tmp_path).open(loop, settings()).finished == 3
    assert Ledger(tmp_path).open(loop.first(2), settings()).finished == 2
    for begun, kept in ((plan, 2), (loop, 0)):
        other = begun.with_overrides("0", image=randn(1, 16, 1, 4, 4, seed=8))
        assert Ledger(tmp_path).open(other, settings()).finished == kept


def test_f1_is_extended_later_from_what_is_there(tmp_path) -> None:
    short, long = plan_f1(2, WINDOW), plan_f1(3, WINDOW)
    run(short, Ledger(tmp_path).open(short, settings()))
    latents, made = run(long, Ledger(tmp_path).open(long, settings()))
    assert made == [2]
    assert torch.equal(latents, run(long)[0])


def test_a_damaged_entry_is_set_aside_and_made_again(tmp_path) -> None:
    plan = plan_framepack(2, WINDOW)
    expected, _ = run(plan, Ledger(tmp_path).open(plan, settings()))
    entry = Ledger(tmp_path).entries()[0].path
    entry.write_bytes(entry.read_bytes()[:-10])
    said: list[str] = []
    latents, made = run(plan, Ledger(tmp_path, say=said.append).open(plan, settings()))
    assert len(made) == 1 and torch.equal(latents, expected)
    assert "is damaged" in said[-1]
    assert entry.with_name(entry.name + ".damaged").is_file()
    assert "3 sections, 1 of them damaged" in Ledger(tmp_path).describe()
    assert Ledger(tmp_path, limit=0).prune() == 3


def test_old_entries_are_pruned_by_the_limit_but_never_this_run(tmp_path) -> None:
    plan = plan_framepack(2, WINDOW)
    run(plan, Ledger(tmp_path).open(plan, settings()))
    old = {entry.path for entry in Ledger(tmp_path).entries()}
    for path in old:
        os.utime(path, (1, 1))
    size = sum(path.stat().st_size for path in old)
    small = Ledger(tmp_path, limit=size)
    run(plan, small.open(plan, settings(prompt="q")), seed=2)
    left = {entry.path for entry in small.entries()}
    assert len(left) == 2 and not left & old
    assert "2 sections" in small.describe()
    run(plan, Ledger(tmp_path, limit=0).open(plan, settings(prompt="r")))
    assert len(Ledger(tmp_path).entries()) == 2
    with pytest.raises(FramePackError, match="limit of -1"):
        Ledger(tmp_path, limit=-1)


def test_what_a_killed_process_left_is_swept_up_a_day_later(tmp_path) -> None:
    with atomic_path(tmp_path / "a.safetensors") as temporary:
        left = [temporary.with_name(f".{name}{temporary.name}") for name in ("old", "new")]
        temporary.touch()
    for path in left:
        path.touch()
    os.utime(left[0], (1, 1))
    Ledger(tmp_path).prune()
    assert sorted(path.name for path in tmp_path.iterdir()) == [left[1].name, "a.safetensors"]


def test_no_partial_file_is_left_when_the_disk_is_full(tmp_path, monkeypatch) -> None:
    plan = plan_framepack(2, WINDOW)
    ledger = Ledger(tmp_path).open(plan, settings())
    before = set(tmp_path.iterdir())

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FramePackError, match="No space left"):
        run(plan, ledger)
    assert set(tmp_path.iterdir()) == before


def test_unreadable_history_of_runs_is_no_obstacle(tmp_path) -> None:
    (tmp_path / "runs.json").write_text('{"half')
    said: list[str] = []
    Ledger(tmp_path, say=said.append).open(plan_framepack(1, WINDOW), settings())
    assert said == []


def holding(value):
    def held():
        return value

    return held


def bound(strength: float) -> Any:
    def scaled(x, strength=strength):
        return x * strength

    return scaled


def branch(up: bool) -> Any:
    if up:

        def moved(x):
            return x + 1
    else:

        def moved(x):
            return x - 1

    return moved


def test_writers_share_a_folder(tmp_path: Path) -> None:
    plans = [plan_f1(3, WINDOW) for _ in range(4)]
    said: list[str] = []
    ledger = Ledger(tmp_path, limit=1, say=said.append)
    runs = [ledger.open(plan, {"run": i}) for i, plan in enumerate(plans)]
    latents = [torch.full((1, 1, 1, 2, 2), float(i)) for i in range(len(runs))]

    def write(i: int) -> None:
        for _ in range(20):
            for order in range(3):
                runs[i].store(order, latents[i])

    said.clear()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(len(runs))))  # raises what a writer raised
    entries = [path for path in tmp_path.iterdir() if path.name != "runs.json"]
    assert sorted(entries) == sorted(entry.path for entry in ledger.entries())  # nothing half done
    assert not any(entry.damaged for entry in ledger.entries())
    for run, own in zip(runs, latents, strict=True):
        found = [run.load(order, own.shape) for order in range(3)]
        assert all(x is None or torch.equal(x, own) for x in found)
        for order in range(3):
            run.store(order, own)
        assert run.finished == 3 and len(ledger.entries()) == 3  # the others' were pruned
    assert said == []


def test_fingerprints_tell_contents_apart(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(bytes(10**7))
    first = fingerprint(file)
    with file.open("r+b") as handle:
        handle.seek(10**7 - 1)
        handle.write(b"x")
    assert fingerprint(file) != first
    different = [
        1,
        1.0,
        "1",
        True,
        None,
        [1],
        [[1]],
        ["a", "b"],
        ["ab"],
        {"a": 1},
        torch.tensor(1),
        torch.tensor(1.0),
        torch.tensor([1.0]),
        torch.zeros(2, 3),
        torch.zeros(3, 2),
        torch.zeros(2, 3, dtype=torch.bfloat16),
        torch.tensor(1, dtype=torch.bfloat16),
        torch.bfloat16,
        *(bound(strength) for strength in (1, 2)),
        *(branch(up) for up in (True, False)),
        partial(holding, 1),
        partial(holding, 2),
        holding(1),
        holding(2),
        Ledger,
        plan_f1(2, WINDOW),
        replace(plan_f1(2, WINDOW), window=3),
    ]
    assert len({fingerprint(value) for value in different}) == len(different)
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    for unknown in (object(), holding(object())):
        with pytest.raises(TypeError, match="no fingerprint of a object"):
            fingerprint(unknown)
    assert fingerprint(lambda: 1)
    with pytest.raises(TypeError, match="one of several lambdas"):
        fingerprint([lambda: 1, lambda: 2])


def test_every_python_gives_the_same_fingerprint() -> None:
    """Stored values: they hold for what is on users' disks, whatever runs them."""
    plan = plan_f1(2, WINDOW).with_overrides("1", seed=7, guidance=2.5)
    values = [
        {"steps": 25, "shift": None, "on": True, "of": [torch.bfloat16, torch.arange(3)]},
        plan.sections,
        partial(TeaCache, threshold=0.15),
        [holding(1), bound(2), branch(True), holding],
    ]
    stored = ["a7704355", "6a96bc4c", "1a70f0db", "55c02175"]
    assert [fingerprint(value)[:8] for value in values] == stored


# Ledgers of before

SAVED = json.loads((Path(__file__).parent / "saved_ledger_keys_0.1.json").read_text("utf-8"))


@pytest.mark.parametrize("line", SAVED, ids=str)
def test_sections_kept_by_an_earlier_release_are_found(line: str, tmp_path: Path) -> None:
    """Keys of a plan with overrides, under the settings of a command line."""
    command = ["generate", "--prompt", "x", "--seed", "1", *line.split()]
    job = read_command(command)[1].decided()
    plan = plan_framepack(3).with_overrides("1", prompt="a", seed=7, guidance=6.5)
    plan = plan.with_overrides("-1", image="b.png", padding=0, lora_strength=0.5)
    ledger = Ledger(tmp_path)
    ledger.open(plan, Request(job, None, 1, job.step_cache.factory()).ledger_settings())
    assert list(ledger.runs()[0].keys) == SAVED[line]
