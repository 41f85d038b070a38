"""Streamed blocks and torch.compile on the command line: the same latents, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli_runs import failure, latents, parse, picture, small
from tiny import guided, randn, tiny_dit

from framepack_core.cli import check, main
from framepack_core.headless import jobs
from framepack_core.headless.execution import Execution
from framepack_core.headless.jobs import Job
from framepack_core.headless.models import open_job_models
from framepack_core.headless.request import decide
from framepack_core.models.offload import MOST_TO_SWAP, WeightSizes, blocks_of
from framepack_core.runtime.memory import GIB
from framepack_core.sampling.estimate import OTHER_MEMORY, pass_memory
from framepack_core.sampling.flow import FlowDenoiser
from framepack_core.sampling.latents import load_latents
from framepack_core.sampling.probe import StepCost
from framepack_core.toyworld import OPPOSITE_LORA


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    options = ("--prompt", "x", "--image_path", picture(tmp_path / "a.png"))
    return small("generate", tmp_path / "out", *options, "--video_sections", "1")


@pytest.mark.parametrize("extra", [(), ("--fp8_scaled", "--lora_weight", str(OPPOSITE_LORA))])
def test_streamed_blocks_change_nothing(
    command: list[str], extra: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = latents([*command, *extra], capsys)
    streamed = latents([*command, *extra, "--blocks_to_swap", "3"], capsys)
    assert torch.equal(streamed, expected)


def test_a_budget_of_gpu_memory_chooses_how_many_blocks_are_swapped(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = latents(command, capsys)
    job = parse(command)
    models = open_job_models(job)
    with models.dit() as dit:
        sizes = WeightSizes.of_model(dit)
    taken = pass_memory(jobs.pass_of(Job.prepare(decide(job))[0], models)) + OTHER_MEMORY
    budget = 0

    @contextmanager
    def limited(gib: float | None, device: torch.device) -> Iterator[int]:
        assert (gib, device.type) == (12.0, "cpu")
        yield budget

    monkeypatch.setattr(jobs, "limited_memory", limited)
    for swapped in (0, 1, 4):
        budget = sizes.needed(swapped) + taken
        assert main([*command, "--gpu_memory", "12"]) == 0
        *_, path = capsys.readouterr().out.splitlines()
        assert torch.equal(load_latents(path)[0], expected)
    budget = min(map(sizes.needed, range(MOST_TO_SWAP))) + taken - 1
    assert "--gpu_memory: 0.0 GiB more are needed" in failure(
        [*command, "--gpu_memory", "12"], capsys
    )


def test_layers_of_llama_visit_the_device_where_they_do_not_fit(command: list[str]) -> None:
    models = open_job_models(parse(command))
    with models.text_encoders() as encoders:
        expected = encoders.encode("a red circle moves right")
    models.budget = OTHER_MEMORY  # nothing is left for weights
    with models.text_encoders() as encoders:
        assert all("forward" in vars(layer) for layer in encoders.llama.layers)
        found = encoders.encode("a red circle moves right")
    assert torch.equal(found.text, expected.text) and torch.equal(found.pooled, expected.pooled)


def test_check_counts_within_a_budget(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check.Check, "step", StepCost(seconds=1, memory=10**6))
    plain = parse(["check", *command[1:]])
    sizes = check.Check(Job.prepare(decide(plain))[0], open_job_models(plain))._sizes
    budget = (sizes.needed(4) + 10**6 + OTHER_MEMORY + 1) / GIB
    job = parse(["check", *command[1:], "--gpu_memory", str(budget)])
    found = check.Check(Job.prepare(decide(job))[0], open_job_models(job))
    assert found._free_device == int(budget * GIB)
    assert (found._swapped, found._encoder_need) == (4, 0)
    assert found._transformer_need <= found._free_device


@pytest.mark.slow
def test_compiled_blocks_make_the_same(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = latents(command, capsys)
    options = ("--compile", "--compile_backend", "aot_eager", "--compile_dynamic", "true")
    torch.testing.assert_close(latents([*command, *options], capsys), expected)


@pytest.mark.slow
def test_a_compiled_block_that_is_swapped_later_is_compiled_as_a_swapped_one() -> None:
    """As where the next video leaves less of a budget to weights."""
    cpu, sizes = torch.device("cpu"), []

    def backend(graph: torch.fx.GraphModule, _inputs: object) -> torch.fx.GraphModule:
        sizes.append(len(graph.graph.nodes))
        return graph

    def compiled(*ways: Execution) -> list[int]:
        torch._dynamo.reset()
        dit, given = tiny_dit(), guided()
        for way in ways:
            way.prepare(dit, cpu)
            way.place(dit, cpu)
        sizes.clear()
        FlowDenoiser(dit).velocity(randn(1, 16, 3, 4, 4), torch.tensor([0.5]), given)
        return list(sizes)

    whole = Execution(compilation={"backend": backend, "dynamic": True})
    swapped = replace(whole, swapped=MOST_TO_SWAP)
    with torch.no_grad():
        assert compiled(whole, swapped) == compiled(swapped) != []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--blocks_to_swap -1", "--blocks_to_swap: '-1' must be at least 0"),
        ("--blocks_to_swap 61", "--blocks_to_swap: '61' must be at most 60"),
        ("--use_pinned_memory_for_block_swap", "it needs --blocks_to_swap"),
        ("--compile_mode max-autotune", "it needs --compile"),
        ("--gpu_memory 12 --blocks_to_swap 3", "chooses --blocks_to_swap itself; leave that out"),
        ("--gpu_memory 12", "gpu_memory: cpu has no memory of its own; leave it out"),
        ("--compile_cache_size_limit 8", "it needs --compile"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    command: list[str], options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failure([*command, *options.split()], capsys).endswith(message)


def test_an_option_that_changes_nothing_says_so(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--disable_numpy_memmap"]) == 0
    assert "warning: --disable_numpy_memmap changes nothing" in capsys.readouterr().err


@pytest.mark.parametrize("precision", [[], ["--fp8_scaled"]])
def test_check_counts_the_weights_that_are_on_the_device(
    command: list[str], precision: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check.Check, "step", StepCost(seconds=1, memory=10**6))
    needs = []
    for swapped in ("0", "2"):
        job = parse(["check", *command[1:], *precision, "--blocks_to_swap", swapped])
        models = open_job_models(job)
        needs.append(check.Check(Job.prepare(decide(job))[0], models)._transformer_need - 10**6)
    with models.dit() as dit:
        whole, *blocks = (
            sum(x.nbytes for x in module.state_dict().values()) for module in (dit, *blocks_of(dit))
        )
    streamed = [blocks[1], *blocks[-3:]]  # of 2 double and 6 single ones
    assert needs == [whole, whole - sum(streamed) + max(streamed)]


def test_check_counts_all_that_a_loop_decodes(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []
    monkeypatch.setattr(
        check, "probe_decode", lambda _, start, slices, device: counted.append(slices)
    )
    for options in ((), ("--loop",)):
        both = ("--video_sections", "2", "--output_type", "video", *options)
        job = parse(["check", *command[1:], *both])
        check.Check(Job.prepare(decide(job))[0], open_job_models(job))._decoding  # noqa: B018
    assert counted == [[(0, 3), (2, 3)], [(0, 3), (2, 4), (3, 4)]]


def test_check_proposes_what_makes_the_transformer_fit(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check.Check, "step", StepCost(seconds=1, memory=10**6))
    options = parse(["check", *command[1:]])
    [job], models = Job.prepare(decide(options)), open_job_models(options)
    found = check.Check(job, models)
    scaled = check.Check(job, replace(models, precision="fp8_scaled"))._transformer_need
    assert found._smaller_transformer(scaled + 1) == "use --fp8_scaled"
    assert found._smaller_transformer(scaled - 1) == "use a smaller --video_size"
    models = replace(models, device=torch.device("cuda"), precision="fp8_scaled")
    on_gpu = check.Check(job, models)
    for swapped in (1, 4):
        free = on_gpu._transformer_with(swapped)
        assert on_gpu._smaller_transformer(free) == f"use --blocks_to_swap {swapped}"
    assert on_gpu._smaller_transformer(10**6) == "use a smaller --video_size"
