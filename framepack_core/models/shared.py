"""Sequence parallelism: one pass of a DiT by several processes, each with some of the tokens.

Norms, projections and MLPs of a block work on one token at a time, so that each process does its
own. For attention the processes exchange tokens for heads: each gets some of the heads of all
tokens (DeepSpeed-Ulysses, arXiv 2309.14509).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ..runtime.distributed import Team, shares
from .attention import Attention
from .attention_kernels import AttentionKernel, AutoAttention, Traceable
from .dit import FramePackDiT, Tokens
from .offload import blocks_of
from .rope import Rope


def share_blocks(dit: FramePackDiT, team: Team) -> None:
    """Let the processes of a team compute the blocks together; a team of one, each for itself.

    All of them then have to run the same passes, on the same tokens. Without gradients.
    """
    blocks: list[Any] = blocks_of(dit)
    attention = blocks[0].attn.attention
    attention = attention.inner if isinstance(attention, SharedAttention) else attention
    vars(dit).pop("transform", None)
    if team.count > 1:
        attention = SharedAttention(attention, team)
        cast(Any, dit).transform = partial(_transform, dit, attention)
    for block in blocks:
        block.attn.attention = attention


@torch.no_grad()
def _transform(dit: FramePackDiT, attention: SharedAttention, tokens: Tokens) -> Tensor:
    """`FramePackDiT.transform` of all tokens by this process's share of them."""
    team, length = attention.team, tokens.latent.shape[1]
    latent, text = shares(length, team.count), shares(tokens.text.shape[1], team.count)
    places = [
        (slice(a.start, a.stop), slice(length + b.start, length + b.stop))
        for a, b in zip(latent, text, strict=True)
    ]  # in a tensor of all tokens
    attention.lengths = [len(a) + len(b) for a, b in zip(latent, text, strict=True)]
    of_latent, of_text = latent[team.rank], text[team.rank]
    own = places[team.rank]
    mask = tokens.key_mask
    share = Tokens(
        tokens.latent[:, own[0]],
        tokens.text[:, of_text.start : of_text.stop],
        tokens.condition,
        Rope(*(torch.cat([table[:, place] for place in own], dim=1) for table in tokens.rope)),
        # attention sees the tokens process by process
        mask if mask is None else torch.cat([mask[:, x] for pair in places for x in pair], dim=1),
    )
    made = FramePackDiT.transform(dit, share)
    assert made.shape[1] == len(of_latent)
    return team.gather(made, [len(part) for part in latent])


class SharedAttention(Traceable):
    """Attention over the tokens of all processes of a team, here for this process's share of them.

    lengths: how many tokens each process has in the pass under way.
    """

    def __init__(self, inner: Attention, team: Team) -> None:
        super().__init__()
        self.inner, self.team = inner, team
        self.lengths: list[int] = []
        self._agreed: dict[int, Attention] = {}

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        return self._begin(q, k, v, key_mask)()

    def trained(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        raise NotImplementedError("attention over several processes has no gradients")

    def begin(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None
    ) -> Callable[[], Tensor]:
        """Send what others need; the attention follows when what is returned is called."""
        if is_compiling():
            return partial(self, q, k, v, key_mask)
        return self._begin(q, k, v, key_mask)

    def _begin(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None
    ) -> Callable[[], Tensor]:
        batch, heads, length, size = q.shape
        of_heads, tokens = shares(heads, self.team.count), sum(self.lengths)
        own = len(of_heads[self.team.rank])
        # Tokens come first, so that what all processes send is one tensor as it arrives.
        sent = q.new_empty(3 * q.numel())
        pieces = [3 * batch * length * size * len(some) for some in of_heads]
        for piece, some in zip(sent.split(pieces), of_heads, strict=True):
            target = _wide(piece.view(length, 3, batch, len(some), size))
            for place, x in enumerate((q, k, v)):
                target[:, place] = _wide(x[:, some.start : some.stop].permute(2, 0, 1, 3))
        width = batch * size * own
        arriving = self.team.exchange(sent, pieces, [3 * width * n for n in self.lengths])

        def finish() -> Tensor:
            joint = arriving().view(tokens, 3, batch, own, size).permute(1, 2, 3, 0, 4)
            q, k, v = joint.unbind()
            back = self._attended(q, k, v, key_mask).transpose(0, 1).reshape(-1)
            pieces = [batch * length * size * len(some) for some in of_heads]
            found = self.team.exchange(back, [width * n for n in self.lengths], pieces)()
            parts = [part.view(length, batch, -1) for part in found.split(pieces) if part.numel()]
            return torch.cat(parts, dim=-1).transpose(0, 1)

        return finish

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        """The attention of this process's heads, by the kernel that the first process chose."""
        batch, heads, tokens, _ = q.shape
        attention = self.inner
        if isinstance(attention, AutoAttention) and attention.measures(q, key_mask):
            kernels = attention.kernels
            if tokens not in self._agreed:
                number = kernels.index(attention.kernel(q, k, v)) if heads else 0
                self._agreed[tokens] = _unmasked(kernels[self.team.agree(number)])
            attention = self._agreed[tokens]
        # with more processes than heads some have none
        return attention(q, k, v, key_mask) if heads else q.new_empty(batch, tokens, 0)


def _wide(x: Tensor) -> Tensor:
    """The same bytes as larger numbers, which a GPU copies faster."""
    return x.view(torch.int64) if x.shape[-1] * x.element_size() % 8 == 0 else x


def _unmasked(kernel: AttentionKernel) -> Attention:
    return lambda q, k, v, _mask: kernel.run(q, k, v)
