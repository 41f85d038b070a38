"""PyTorch's attention behind the core's signature."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import guided, tiny_dit

from framepack_core.models import attention
from framepack_core.models.attention import sdpa
from framepack_core.sampling.flow import FlowDenoiser

BATCH, HEADS, LENGTH, DIM = 1, 2, 6, 4


class Recorded(torch.autograd.Function):
    """Stands for a kernel; notes the layout of the gradients that its backward gets."""

    strides: list[tuple[int, ...]]

    @staticmethod
    def forward(_ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return q + k + v

    @staticmethod
    def backward(_ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        Recorded.strides.append(grad.stride())
        return grad, grad, grad


def test_gradients_reach_the_kernel_in_one_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of single blocks are a part of a wider one, those of double blocks stand alone."""
    monkeypatch.setattr(attention, "scaled_dot_product_attention", Recorded.apply)
    Recorded.strides = []
    q = torch.randn(BATCH, HEADS, LENGTH, DIM, requires_grad=True)
    width = HEADS * DIM
    weight = torch.randn(BATCH, LENGTH, 5 * width)
    (
        torch.cat([sdpa(q, q, q), torch.zeros(BATCH, LENGTH, 4 * width)], -1) * weight
    ).sum().backward()
    (sdpa(q, q, q) * weight[..., :width]).sum().backward()
    sdpa(q, q, q).sum().backward()
    assert set(Recorded.strides) == {(LENGTH * width, DIM, width, 1)} and len(Recorded.strides) == 3


def test_it_can_be_compiled_whole() -> None:
    q, k, v = (torch.randn(BATCH, HEADS, LENGTH, DIM, requires_grad=True) for _ in range(3))
    compiled = torch.compile(sdpa, fullgraph=True, backend="aot_eager")
    grads = [torch.autograd.grad(f(q, k, v).square().sum(), (q, k, v)) for f in (sdpa, compiled)]
    for plain, other in zip(*grads, strict=True):
        torch.testing.assert_close(other, plain)


def test_a_model_attends_by_another_function_for_a_while() -> None:
    dit, seen = tiny_dit(), []

    def counted(*tensors: torch.Tensor) -> torch.Tensor:
        seen.append(1)
        return sdpa(*tensors)

    def velocity() -> torch.Tensor:
        x, sigma = torch.ones(1, 16, 1, 4, 4), torch.tensor([0.5])
        return FlowDenoiser(dit).velocity(x, sigma, guided())

    plain = velocity()
    with attention.use_attention(dit, counted):
        assert torch.equal(velocity(), plain) and seen
    count = len(seen)
    assert torch.equal(velocity(), plain) and len(seen) == count
