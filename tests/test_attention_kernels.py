"""The choice of an attention kernel: what is fastest, right and installed."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from framepack_core.models import attention_kernels, fastest
from framepack_core.models.attention import sdpa
from framepack_core.models.attention_kernels import (
    AttentionKernel,
    AutoAttention,
    NamedAttention,
    attention_of,
    choose,
    find_kernel,
    training_attention,
)
from framepack_core.runtime.errors import FramePackError
from framepack_core.sampling.ledger import Ledger
from framepack_core.sampling.sections import plan_video


def tensors(length: int = 130) -> tuple[Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, length, 8, generator=draws) for _ in range(3))
    return q, k, v


def with_times(monkeypatch: pytest.MonkeyPatch, times: dict[str, float]):
    """Kernels that compute plain attention, and a clock that says how long each takes."""

    def kernel(name: str) -> AttentionKernel:
        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return sdpa(q, k, v)

        return AttentionKernel(name, run)

    kernels = [kernel(name) for name in times]
    by_run = {k.run: times[k.name] for k in kernels}
    return kernels, lambda call: by_run[call.func]


def test_the_fastest_is_chosen_and_said(monkeypatch, capsys) -> None:
    kernels, clock = with_times(monkeypatch, {"slow": 3.0, "fast": 1.0, "middle": 2.0})
    assert choose(kernels, *tensors(), clock).name == "fast"
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "fast is the fastest for 130 tokens of 2 x 8, float32" in said
    assert (
        "slow 3.00 ms, error 0.000; fast 1.00 ms, error 0.000; middle 2.00 ms, error 0.000" in said
    )


def test_a_tie_ends_with_the_first(monkeypatch) -> None:
    kernels, clock = with_times(monkeypatch, {"first": 1.0, "hardly faster": 0.99})
    assert choose(kernels, *tensors(), clock).name == "first"


def test_ways_are_timed_on_the_gpu_that_they_run_on(monkeypatch) -> None:
    """Also where another one is current, as with --device cuda:1."""
    current = [0]

    @contextmanager
    def use(device: torch.device) -> Iterator[None]:
        current.append(device.index)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", use)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "a card")
    timed_on: list[int] = []

    def clock(_run: object) -> float:
        timed_on.append(current[-1])
        return 1.0

    ways = [fastest.Way(name, lambda: torch.ones(1), 0.1) for name in "ab"]
    device = torch.device("cuda", 1)
    assert fastest.fastest("x", "x", ways, lambda _out: 0.0, device, clock=clock) == 0
    assert timed_on == [1, 1] and current == [0]


def test_a_wrong_kernel_and_one_that_fails_are_passed_over(monkeypatch, capsys) -> None:
    def fail(*_: Tensor) -> Tensor:
        raise RuntimeError("no kernel image is available\nand more")

    (good,), clock = with_times(monkeypatch, {"good": 9.0})
    wrong = AttentionKernel("wrong", lambda q, k, v: sdpa(q, k, v) * 1.1)
    broken = AttentionKernel("broken", lambda q, k, v: sdpa(q, k, v) * float("nan"))
    kernels = [AttentionKernel("failing", fail), wrong, broken, good]
    assert choose(kernels, *tensors(), clock) is good
    said = capsys.readouterr().out
    assert "wrong is wrong by 10%" in said and "failing refuses (no kernel image is" in said
    assert "broken is wrong by nan" in said


@pytest.mark.parametrize("name", ["auto", "torch", "sdpa"])
def test_on_a_cpu_nothing_is_timed(name, monkeypatch) -> None:
    monkeypatch.setattr(attention_kernels, "choose", None)
    q, k, v = tensors(2000)
    assert torch.equal(attention_of(name)(q, k, v, None), sdpa(q, k, v))


def test_masks_and_gradients_take_pytorchs_attention() -> None:
    class Other(AutoAttention):
        def kernel(self, *_: Tensor) -> AttentionKernel:
            raise AssertionError

    q, k, v = tensors()
    mask = torch.arange(130)[None] < 100
    named = NamedAttention(AttentionKernel("wrong", lambda q, k, v: q, backward=True))
    for attention in (Other(), named):
        torch.testing.assert_close(attention(q, k, v, mask), sdpa(q, k, v, mask))
    assert Other()(q.requires_grad_(), k, v).requires_grad


def test_a_kernel_without_gradients_is_refused_by_name_where_they_are_needed() -> None:
    attention = NamedAttention(AttentionKernel("flash3", sdpa))
    q, k, v = tensors()
    with torch.no_grad():
        attention(q.requires_grad_(), k, v)
    with pytest.raises(FramePackError, match="attention flash3: it has no gradients"):
        attention(q, k, v)


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention [B, heads, L, head_dim] by its formula."""
    return (q @ k.mT * q.shape[3] ** -0.5).softmax(dim=-1) @ v


def by_token(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same as packages have it, [B, L, heads, head_dim]."""
    return plain(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def sage(q: Tensor, k: Tensor, v: Tensor, tensor_layout: str) -> Tensor:
    assert tensor_layout == "HND"
    return plain(q, k, v)


@pytest.fixture(autouse=True)
def unnoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of what tests before these have chosen."""
    monkeypatch.setattr(fastest, "_file", None)


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """All packages are installed, and attend by the formula in the layouts that they document."""
    modules = {
        "flash_attn": {"flash_attn_func": by_token},
        "flash_attn.cute": {"flash_attn_func": by_token},
        "fa3_fwd_interface": {"flash_attn_func": lambda *x: (by_token(*x), None)},
        "flash_attn_interface": {"flash_attn_func": lambda *x: (by_token(*x), None)},
        "xformers.ops": {"memory_efficient_attention": by_token},
        "sageattention": {"sageattn": sage},
    }
    assert modules.keys() == {kernel.module for kernel in attention_kernels.KERNELS} - {""}
    monkeypatch.setattr(attention_kernels, "_module", importlib.import_module)  # without a cache
    monkeypatch.setattr(attention_kernels, "find_spec", lambda name: name)
    for name, functions in modules.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**functions))


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("name", ["flash", "torch", "sageattn", "xformers", "sdpa", "flash3"])
def test_every_name_of_musubi_tuner_is_plain_attention(name: str) -> None:
    q, k, v = tensors()
    expected = plain(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention_of(name)(q, k, v, None), expected)
    if name == "sageattn":
        return
    gradients = []
    for attend in (training_attention(name), lambda *x: plain(*x).transpose(1, 2).flatten(2)):
        given = [x.clone().requires_grad_() for x in (q, k, v)]
        attend(*given).square().sum().backward()
        gradients.append([x.grad for x in given])
    torch.testing.assert_close(*gradients)


@pytest.mark.usefixtures("packages")
def test_training_takes_a_kernel_with_gradients_or_refuses_the_name() -> None:
    assert find_kernel("flash3").module == "fa3_fwd_interface"
    assert find_kernel("flash3", trained=True).module == "flash_attn_interface"
    for name in ("sageattn", "flash4"):
        with pytest.raises(FramePackError, match=f"attention {name}: it has no gradients; train"):
            training_attention(name)


@pytest.mark.usefixtures("packages")
def test_a_package_that_cannot_be_loaded_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    for find in (attention_of, training_attention):
        with pytest.raises(FramePackError, match=r"flash: its package cannot be loaded .*flash_"):
            find("flash")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(
    "kernel", [k for k in attention_kernels.KERNELS if k.installed()], ids=lambda k: k.name
)
def test_installed_kernels_against_plain_attention(kernel: AttentionKernel) -> None:
    """bf16 of the released head size, forward and, where it has them, gradients."""
    draws = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(1, 24, 700, 128, generator=draws, device="cuda", dtype=torch.bfloat16)
        for _ in range(3)
    )
    results = []
    for run in (kernel.run, lambda *x: plain(*x).transpose(1, 2).flatten(2)):
        dtype = torch.float32 if run is not kernel.run else torch.bfloat16
        given = [x.to(dtype, copy=True).requires_grad_(kernel.backward) for x in (q, k, v)]
        out = run(*given)
        if kernel.backward:
            out.float().square().sum().backward()
        results.append([out, *(x.grad for x in given if kernel.backward)])
    for found, expected in zip(*results, strict=True):
        error = (found.float() - expected.float()).norm() / expected.float().norm()
        assert error < (0.02 if kernel.exact else 0.1), kernel.name


def test_names_that_are_not_installed_or_unknown_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(attention_kernels, "find_spec", lambda name: None)
    for name in ("flash", "flash3", "flash4", "sageattn", "xformers"):
        with pytest.raises(FramePackError, match=f"attention {name}: .*is not installed; `pip ins"):
            attention_of(name)
    with pytest.raises(FramePackError, match="attention fast: unknown; use auto, torch, sdpa"):
        find_kernel("fast")


def test_lossy_kernels_are_used_only_where_they_are_named() -> None:
    assert not find_lossy() & {kernel.name for kernel in attention_kernels.KERNELS if kernel.exact}
    assert find_lossy() == {"sageattn"}


def find_lossy() -> set[str]:
    return {kernel.name for kernel in attention_kernels.KERNELS if not kernel.exact}


def test_compiled_code_calls_it_as_one_operation() -> None:
    calls = []

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls.append(q.shape)
        return sdpa(q, k, v)

    attention = NamedAttention(AttentionKernel("counted", run))

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def block(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(2 * q, k, v, None) + 1

    q, k, v = tensors()
    with torch.no_grad():
        for length in (130, 70):
            found = block(q[:, :, :length], k, v)
            torch.testing.assert_close(found, sdpa(2 * q[:, :, :length], k, v) + 1)
    assert [shape[2] for shape in calls] == [130, 70]


def test_a_choice_is_made_again_by_the_next_process(monkeypatch, tmp_path, capsys) -> None:
    fast = AttentionKernel("fast", lambda q, k, v: sdpa(q, k, v))
    slow = AttentionKernel("slow", lambda q, k, v: sdpa(q, k, v))
    monkeypatch.setattr(attention_kernels, "KERNELS", (slow, fast))
    fastest.chosen.clear()
    times = iter([2.0, 1.0, 1.0, 2.0])
    monkeypatch.setattr(fastest, "milliseconds", lambda _run: next(times))
    file = tmp_path / "ledger" / "attention.json"
    Ledger(tmp_path / "ledger").open(plan_video("framepack", 1), {})
    assert AutoAttention().kernel(*tensors()).name == "fast"
    fastest.chosen.clear()  # as in another process, where it would be measured anew
    capsys.readouterr()
    assert AutoAttention().kernel(*tensors()).name == "fast"
    assert "fast, as it was chosen here before" in capsys.readouterr().out
    fastest.chosen.clear()
    (key,) = json.loads(file.read_text())
    assert (
        key
        == f"cpu, PyTorch {torch.__version__}, 2^8 tokens of 2 x 8, torch.float32, of slow, fast"
    )
    file.write_text("damaged")
    assert AutoAttention().kernel(*tensors()).name == "slow"  # measured, as nothing is known
