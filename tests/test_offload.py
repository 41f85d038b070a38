"""Blocks whose weights come from main memory: which copies they run on, and pinned memory."""

from __future__ import annotations

import mmap
import random
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_dit
from torch import nn

from framepack_core.models import offload
from framepack_core.models.dit import DiTConfig, FramePackDiT
from framepack_core.models.offload import (
    HostWeights,
    Visit,
    WeightSizes,
    _pin,
    _Prefetcher,
    blocks_of,
    place,
    streamed_blocks,
    streamed_forwards,
)

# musubi-tuner's blocks_to_swap, and by its arithmetic the bytes of bf16 weights that stay: all but
# the linear layers of N // 2 double and 2 (N - N // 2) + 1 single blocks.
KEPT_BY_MUSUBI = {
    0: 25749022976,
    10: 19235700992,
    20: 13005562112,
    36: 3037339904,
    38: 1791312128,
}


def bytes_of(modules: list[nn.Module]) -> int:
    return sum(x.nbytes for m in modules for x in (*m.parameters(), *m.buffers()))


@pytest.mark.parametrize(("swapped", "kept"), KEPT_BY_MUSUBI.items())
def test_blocks_to_swap_means_what_it_means_in_musubi_tuner(swapped: int, kept: int) -> None:
    """Beside its small norms we stream all of a block, so a little less stays."""
    dit = FramePackDiT(DiTConfig(), device="meta", dtype=torch.bfloat16)
    streamed = streamed_blocks(dit, swapped)
    linears = [x for block in streamed for x in block.modules() if isinstance(x, nn.Linear)]
    assert bytes_of([dit]) - bytes_of(linears) == kept
    ours = bytes_of([dit]) - bytes_of(streamed)
    assert 0 <= kept - ours < 50_000
    sizes = WeightSizes.of_model(dit)
    assert sizes.kept(swapped) == ours
    largest = max(map(bytes_of, ([block] for block in streamed)), default=0)
    assert sizes.needed(swapped) == ours + 2 * largest
    assert sizes.fewest(ours + 2 * largest) == swapped


def test_the_last_blocks_of_both_kinds_are_streamed_as_far_as_there_are() -> None:
    dit = FramePackDiT(DiTConfig(), device="meta")
    double, single = list(dit.transformer_blocks), list(dit.single_transformer_blocks)
    assert streamed_blocks(dit, 38) == [*double[1:], *single[1:]]
    assert streamed_blocks(dit, 5) == [*double[-2:], *single[-7:]]
    for every in (40, 60):  # 0.1 counted up to 60
        assert streamed_blocks(dit, every) == blocks_of(dit)
    assert WeightSizes.of_model(dit).fewest(10**9) is None


class Block(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        nn.init.constant_(self.linear.weight, float(number))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams and events that do nothing: copies on a CPU are done when they are asked for."""

    class Quiet(SimpleNamespace):
        def __init__(self, *_: object) -> None:
            super().__init__(waits=0)

        def __getattr__(self, _name: str) -> object:
            return lambda *_: None

    monkeypatch.setattr(torch.cuda, "Stream", Quiet)
    monkeypatch.setattr(torch.cuda, "Event", Quiet)
    monkeypatch.setattr(torch.cuda, "current_stream", Quiet)
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: nullcontext())


class Noted(HostWeights):
    """Weights that note the numbers of the blocks that are copied, as they are."""

    def __init__(self, count: int) -> None:
        super().__init__([Block(number) for number in range(count)], torch.device("cpu"))
        self.numbers: list[int] = []

    def visit(self, number: int) -> Visit:
        visit = super().visit(number)

        def fill() -> None:
            self.numbers.append(number)
            visit.fill()

        return Visit(visit.copies, fill)


@pytest.mark.usefixtures("no_gpu")
def test_each_block_gets_its_own_weights_in_any_order() -> None:
    modules = [Block(number) for number in range(6)]
    prefetcher = _Prefetcher(HostWeights(modules, torch.device("cpu")))
    for number in random.Random(0).choices(range(6), k=200):
        copies = prefetcher.acquire(number)
        assert torch.equal(copies["linear.weight"], modules[number].linear.weight)
        if random.Random(number).random() < 0.7:  # a block may end by an error
            prefetcher.prefetch_next()


@pytest.mark.usefixtures("no_gpu")
def test_weights_are_copied_once_a_pass_and_ahead() -> None:
    weights = Noted(4)
    prefetcher = _Prefetcher(weights)
    for order in ((0, 1, 2, 3), (3, 2, 1, 0)) * 2:  # two steps of training
        for number in order:
            prefetcher.acquire(number)
            prefetcher.prefetch_next()
    assert weights.numbers == [0, 1, 2, 3, 3, 2, 1, 0, 0, 1, 2, 3, 3, 2, 1, 0, 0]


@pytest.mark.usefixtures("no_gpu")
def test_without_gradients_the_first_block_comes_after_the_last() -> None:
    weights = Noted(3)
    prefetcher = _Prefetcher(weights)
    with torch.no_grad():
        for number in (0, 1, 2) * 2:
            prefetcher.acquire(number)
            prefetcher.prefetch_next()
    assert weights.numbers == [0, 1, 2, 0, 1, 2, 0]


def test_pinned_tensors_keep_their_values_and_free_their_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    locked: dict[int, int] = {}

    def lock(address: int, size: int, _flags: int) -> int:
        locked[address] = size
        return 0

    runtime = SimpleNamespace(cudaHostRegister=lock, cudaHostUnregister=locked.pop)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda _tensor: False)
    block = Block(3).to(torch.bfloat16)
    expected = {name: x.clone() for name, x in block.state_dict().items()}
    _pin([*block.parameters()], torch.device("cpu"))
    assert list(locked.values()) == [2 * offload.ALIGNMENT]
    for name, tensor in block.state_dict().items():
        assert torch.equal(tensor, expected[name])
    del block, tensor
    assert locked == {}


def test_memory_that_cannot_be_locked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = SimpleNamespace(cudaHostRegister=lambda *_: 2)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda _tensor: False)
    block = Block(3)
    addresses = [x.data_ptr() for x in block.parameters()]
    _pin([*block.parameters()], torch.device("cpu"))
    [warning] = caplog.messages
    assert "refuses to lock more main memory" in warning
    assert [x.data_ptr() for x in block.parameters()] == addresses


@pytest.mark.parametrize(("free", "said"), [(200, "copied into pinned"), (99, "stay in pageable")])
def test_swapped_blocks_are_pinned_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], free: int, said: str
) -> None:
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda _tensor: False)
    blocks = [Block(n) for n in range(2)]
    size = sum(x.nbytes for block in blocks for x in block.parameters())
    monkeypatch.setattr(offload, "free_main_memory", lambda: offload.SPARE + size * free // 100)
    assert offload._can_pin(blocks) == (free >= 100)
    assert said in capsys.readouterr().out
    assert not offload._can_pin([])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("pin", [False, True])
def test_streamed_blocks_of_a_gpu(pin: bool) -> None:
    """Forward and backward of a chain of blocks, several times, as if all were on the GPU."""
    device = torch.device("cuda", 0)
    blocks = [nn.Linear(1024, 1024) for _ in range(8)]
    plain = [nn.Linear(1024, 1024).to(device) for _ in blocks]
    for block, other in zip(blocks, plain, strict=True):
        other.load_state_dict(block.state_dict())
        block.requires_grad_(False)
    chain = nn.ModuleList(blocks)
    place(chain, blocks, device, pin=pin)
    forwards = streamed_forwards(blocks, device)
    for seed in range(20):
        x = torch.randn(512, 1024, generator=torch.Generator().manual_seed(seed)).to(device)
        results = []
        for run in (forwards, plain):
            given = x.clone().requires_grad_()
            out = given
            for step in run:
                out = torch.utils.checkpoint.checkpoint(step, out, use_reentrant=False)
            out.sum().backward()
            results.append((out.detach(), given.grad))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_all_blocks_can_be_streamed() -> None:
    dit = tiny_dit()
    blocks = blocks_of(dit)
    place(dit, blocks, torch.device("cpu"), pin=True)
    assert len(streamed_forwards(blocks, torch.device("cpu"))) == len(blocks)
    assert mmap.PAGESIZE % offload.ALIGNMENT == 0
