"""What the goldens cannot show of the DiT: batches, masks, dtype, gradients, config errors."""

from __future__ import annotations

import pytest
import torch
from tiny import CONFIG, context, guided, randn, tiny_dit

from framepack_core.models.dit import DiTConfig, DiTInputs
from framepack_core.models.packing import Context
from framepack_core.models.prompt import TextCondition
from framepack_core.models.rope import apply_rope, pack_rope, rope_table
from framepack_core.runtime.errors import FramePackError


def run(dit, x, g, ctx=None, **kwargs):
    timestep = torch.full((x.shape[0],), 500.0)
    guidance = torch.full((x.shape[0],), 1000.0)
    return dit(DiTInputs(x, timestep, g.text, guidance, g.image_embeds, None, ctx, **kwargs))


def test_a_batch_with_texts_of_two_lengths_equals_its_rows_alone() -> None:
    dit, x, ctx = tiny_dit(), randn(2, 16, 3, 4, 4), context(2)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    g = guided(2, mask=mask)
    both = run(dit, x, g, ctx)
    for row, words in ((0, 5), (1, 3)):
        one = slice(row, row + 1)
        text = TextCondition(g.text.text[one, :words], g.text.pooled[one])
        alone_context = Context(
            **{k: v[one] if v.shape[0] == 2 else v for k, v in vars(ctx).items()}
        )
        alone = run(
            dit, x[one], g._replace(text=text, image_embeds=g.image_embeds[one]), alone_context
        )
        torch.testing.assert_close(both[one], alone, rtol=1e-4, atol=1e-5)


def test_padding_of_one_prompt_does_not_matter() -> None:
    dit, x = tiny_dit(), randn(1, 16, 3, 4, 4)
    g = guided()
    padded = TextCondition(
        torch.cat([g.text.text, randn(1, 4, CONFIG.text_embed_dim, seed=9)], dim=1),
        g.text.pooled,
        torch.tensor([[True] * 5 + [False] * 4]),
    )
    torch.testing.assert_close(run(dit, x, g), run(dit, x, g._replace(text=padded)))


@pytest.mark.parametrize("changed", ["clean", "clean_2x", "clean_4x", "clean_indices"])
def test_every_part_of_the_context_reaches_the_output(changed: str) -> None:
    dit, x, ctx = tiny_dit(), randn(1, 16, 3, 4, 4), context()
    other = Context(**{**vars(ctx), changed: vars(ctx)[changed] + 1})
    assert (run(dit, x, guided(), ctx) - run(dit, x, guided(), other)).abs().max() > 1e-3


def test_bf16_model_gives_fp32_velocity_close_to_fp32() -> None:
    x, g, ctx = randn(1, 16, 3, 4, 4), guided(), context()
    exact = run(tiny_dit(), x, g, ctx)
    half = tiny_dit().to(torch.bfloat16)
    half.proj_out.float()
    rounded = run(half, x.bfloat16(), g, ctx)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() / exact.norm() < 0.05


def test_gradients_reach_every_parameter() -> None:
    dit = tiny_dit().requires_grad_(True)
    run(dit, randn(1, 16, 3, 4, 4), guided(), context()).square().mean().backward()
    missing = [n for n, p in dit.named_parameters() if p.grad is None or not p.grad.any()]
    # a softmax over one key too many ignores a constant: key biases get no gradient but rounding
    assert not [n for n in missing if not n.endswith("to_k.bias")]


def test_rope_makes_attention_depend_on_distance_only() -> None:
    q, k = randn(1, 1, 1, 16), randn(1, 1, 1, 16, seed=1)

    def score(a: int, b: int) -> float:
        tables = [
            pack_rope([rope_table(torch.tensor([[t]]), 1, 1, (4, 6, 6), 256.0)], 0) for t in (a, b)
        ]
        return (apply_rope(q, tables[0]) * apply_rope(k, tables[1])).sum().item()

    assert score(3, 7) == pytest.approx(score(10, 14), abs=1e-5)
    assert score(3, 7) != pytest.approx(score(3, 9), abs=1e-3)


def test_config_round_trip_and_errors() -> None:
    assert DiTConfig.from_dict(CONFIG.to_dict()) == CONFIG
    with pytest.raises(FramePackError, match="must add up to attention_head_dim"):
        DiTConfig.from_dict({**CONFIG.to_dict(), "rope_axes_dim": [4, 6, 8]})
    with pytest.raises(FramePackError, match="patch_size"):
        DiTConfig.from_dict({**CONFIG.to_dict(), "patch_size": 4})


def test_missing_image_embedding_is_named() -> None:
    g = guided()._replace(image_embeds=None)
    with pytest.raises(FramePackError, match="image_embeds: this model needs"):
        run(tiny_dit(), randn(1, 16, 3, 4, 4), g)
