"""Blocks in training: checkpointing with kept attention, compiled, streamed, with dropout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from framepack_core.models.compiling import prepare_compiling
from framepack_core.models.dit import DiTConfig, DiTInputs, FramePackDiT
from framepack_core.models.prompt import TextCondition
from framepack_core.runtime.errors import FramePackError
from framepack_core.training import blocks
from framepack_core.training.adapters import Adapters
from framepack_core.training.blocks import wrapped_blocks
from framepack_core.training.config import AdapterConfig

CPU = torch.device("cpu")
SMALL = DiTConfig(
    num_attention_heads=2,
    attention_head_dim=12,
    num_layers=2,
    num_single_layers=2,
    num_refiner_layers=1,
    text_embed_dim=8,
    pooled_projection_dim=8,
    rope_axes_dim=(4, 4, 4),
    image_proj_dim=8,
)


class Training:
    """A small model with adapters; `gradients` are those of one step with the given blocks."""

    def __init__(self, dropout: float = 0.0) -> None:
        torch.manual_seed(0)
        self.dit = FramePackDiT(SMALL).requires_grad_(False)
        self.adapters = Adapters.create(self.dit, AdapterConfig(rank=2, dropout=dropout))
        with torch.no_grad():
            for parameter in (*self.dit.parameters(), *self.adapters.parameters()):
                parameter.normal_(0, 0.2)

    def gradients(self, frames: int = 3, seed: int = 5, **wrapped: object) -> list[Tensor]:
        draws = torch.Generator().manual_seed(1)

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draws)

        text = TextCondition(noise(1, 7, 8), noise(1, 8))
        inputs = DiTInputs(
            noise(1, 16, frames, 6, 4),
            torch.tensor([500.0]),
            text,
            torch.tensor([1000.0]),
            noise(1, 5, 8),
        )
        options = {"checkpointing": True, "swapped": 0} | wrapped
        with wrapped_blocks(self.dit, CPU, **options), self.adapters.attached(self.dit):
            self.adapters.zero_grad()
            with self.adapters.training_step(seed):
                self.dit(inputs).square().mean().backward()
        return [parameter.grad.clone() for parameter in self.adapters.parameters()]


@pytest.fixture
def attentions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whether each attention was told to be kept, in the order of the calls."""
    asked, policy = [], blocks._keep_attention

    def noted(context, operation, *args, **kwargs):
        found = policy(context, operation, *args, **kwargs)
        if operation in blocks._ATTENTIONS:
            asked.append("again" if context.is_recompute else "first")
            assert found == blocks.CheckpointPolicy.MUST_SAVE
        return found

    monkeypatch.setattr(blocks, "_keep_attention", noted)
    return asked


@pytest.mark.parametrize("dropout", [pytest.param(0.0, marks=pytest.mark.slow), 0.3])
@pytest.mark.parametrize("swapped", [0, 3])
def test_kept_attention_changes_no_gradient(attentions, dropout: float, swapped: int) -> None:
    training = Training(dropout)
    expected = training.gradients()
    assert not attentions
    found = training.gradients(keep_attention=True, swapped=swapped)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert attentions.count("first") == SMALL.num_layers + SMALL.num_single_layers


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_compiled_blocks_give_the_same_gradients_at_every_length(dropout) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    prepare_compiling()
    compilation = {"backend": counter, "dynamic": True}
    training, counts = Training(dropout), []
    for seed, frames in enumerate((3, 5, 7)):
        expected = training.gradients(frames, seed)
        found = training.gradients(
            frames, seed, compilation=compilation, keep_attention=frames == 7
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        counts.append(counter.frame_count)
    assert counts[0] == counts[1] == counts[2]
    assert counts[0] > 0 or dropout  # beside dropout PyTorch 2.6 compiles nothing
    again = training.gradients(7, 2, compilation=compilation)
    assert all(torch.equal(a, b) for a, b in zip(again, found, strict=True))


@pytest.mark.parametrize("swapped", [0, 1])
def test_blocks_that_keep_everything_are_not_computed_again(monkeypatch, swapped: int) -> None:
    training, calls = Training(), []
    expected = training.gradients()
    blocks = (*training.dit.transformer_blocks, *training.dit.single_transformer_blocks)
    for number, block in enumerate(blocks):
        norm = block.norm1 if number < SMALL.num_layers else block.norm
        norm.linear.register_forward_hook(lambda *_, number=number: calls.append(number))
    found = training.gradients(keep_blocks=2, swapped=swapped)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    kept = (0, 1) if swapped else (2, 3)  # the single blocks, where they are not swapped
    assert [calls.count(n) for n in range(4)] == [1 if n in kept else 2 for n in range(4)]


def test_more_blocks_than_there_are_cannot_be_kept() -> None:
    with (
        pytest.raises(FramePackError, match="keep_blocks: 3, but only 2"),
        wrapped_blocks(Training().dit, CPU, checkpointing=True, swapped=1, keep_blocks=3),
    ):
        pass


def test_the_blocks_are_as_before_afterwards() -> None:
    training = Training()
    with wrapped_blocks(training.dit, CPU, checkpointing=False, swapped=0, compilation={}):
        assert "forward" in vars(training.dit.transformer_blocks[0])
    assert "forward" not in vars(training.dit.transformer_blocks[0])


def test_without_checkpointing_there_is_nothing_to_keep() -> None:
    with (
        pytest.raises(FramePackError, match="needs checkpointing"),
        wrapped_blocks(Training().dit, CPU, checkpointing=False, swapped=0, keep_attention=True),
    ):
        pass
