"""Whether loops of Toy World can be played over and over, measured by tracking the shape.

`python tests/toyworld evaluate_loop` prints a table as `evaluate` does. Growing and shrinking are
left out: Toy World has learned no end image that shows another size than the prompt asks for, so
a shape that grows stays larger than it began.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from framepack_core.sampling.decode import decode_video
from framepack_core.sampling.plan import Mode, Plan
from framepack_core.sampling.sections import WINDOW, plan_framepack
from framepack_core.toyworld import render

from .evaluate import NEAR_JOIN, Cases, Measure, Toy, make_latents
from .evaluate import main as print_table
from .tracker import track

LENGTHS = (1, 2, 4)  # sections
MOTIONS = tuple(motion for motion in render.MOTIONS if motion not in ("grow", "shrink"))
JUMP, REST = 1.5, 0.25  # times an ordinary step: more is a jump, less shows a frame twice
NOTHING = 0.1  # pixels: what stands still moves as much for the tracker


@dataclass(frozen=True)
class Outcome:
    """Of each case [cases]: `wrap` is the step from the last frame to the first.

    ordinary: the mean step on that side of it where more moves, of 9 frames; both in pixels.
    moves: whether the shape moves on both sides, so that a frame shown twice would be seen.
    kept: whether form and colour of the last frame are the start image's.
    """

    wrap: Tensor
    ordinary: Tensor
    moves: Tensor
    kept: Tensor

    @property
    def ratio(self) -> Tensor:
        return self.wrap / self.ordinary.clamp(min=NOTHING)

    @property
    def smooth(self) -> float:
        """Share of cases without a jump."""
        return (self.ratio <= JUMP).float().mean().item()

    @property
    def repeats(self) -> float:
        """Share of a frame that is shown twice, of the cases that move."""
        return (self.ratio[self.moves] < REST).float().mean().item()


def evaluate_loop(
    toy: Toy, cases: int, modes: Sequence[Mode] = get_args(Mode), steps: int = 25
) -> Iterator[Measure]:
    """All measures of loops, each over `cases` cases."""
    if "framepack" not in modes:
        return
    for sections in LENGTHS:
        plan = plan_framepack(sections)
        loop, free = (outcome(toy, made, cases, steps) for made in (plan.with_loop(), plan))
        place = f"framepack, loop of {sections} section(s):"
        middle = f"median {loop.ratio.median():.2f}; without a loop {free.smooth:.0%}"
        yield Measure(f"{place} no jump at the wrap ({middle})", loop.smooth, 0.9)
        moving = int(loop.moves.sum())
        yield Measure(
            f"{place} a frame shown twice, of {moving} cases", loop.repeats, 0.1, at_most=True
        )
        kept = loop.kept.float().mean().item()
        yield Measure(f"{place} colour and form kept", kept, 0.95)


@torch.no_grad()
def outcome(toy: Toy, plan: Plan, cases: int, steps: int) -> Outcome:
    """What becomes of `cases` held-out cases."""
    drawn = Cases.draw(cases, 90_000 + 1_000 * len(plan.sections), MOTIONS)
    latents = make_latents(toy, plan, drawn.starts, drawn.prompts, drawn.seeds, steps)

    def decode(chunk: Tensor) -> Tensor:
        return toy.vae.decode(chunk.to(toy.dtype)).float()

    clips = decode_video(decode, latents, WINDOW, loop=plan.closes)
    seen = track(torch.cat(list(clips), dim=2).clamp(-1, 1))
    state = torch.cat((seen.position, seen.radius[..., None]), dim=-1)
    steps_made = (state[:, 1:] - state[:, :-1]).norm(dim=-1)
    after, before = (
        some.mean(dim=1) for some in (steps_made[:, :NEAR_JOIN], steps_made[:, -NEAR_JOIN:])
    )
    last = seen[-1]
    device = last.form.device
    kept = last.present & (last.form == drawn.clips.form.to(device))
    kept &= last.colour_index == drawn.clips.colour.to(device)
    wrap = (state[:, 0] - state[:, -1]).norm(dim=-1)
    moves = torch.minimum(before, after) > NOTHING
    return Outcome(wrap.cpu(), torch.maximum(before, after).cpu(), moves.cpu(), kept.cpu())


def main() -> None:
    """Print the table."""
    print_table(evaluation=evaluate_loop)
