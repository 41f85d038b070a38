"""What drafts of Toy World show, and how far that is from the video.

`python tests/toyworld evaluate_draft` prints a table as `evaluate` does, of drafts of few steps and
TeaCache. Half the size is another world for the model, which was made for one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import get_args

from framepack_core.sampling.options import DRAFT_STEPS
from framepack_core.sampling.plan import Mode
from framepack_core.sampling.sections import plan_video
from framepack_core.sampling.step_cache import StepCacheFactory, TeaCacheOptions

from .evaluate import Cases, Measure, Toy, Video, kept, make_planned, share
from .evaluate import main as print_table
from .tracker import motion

SECTIONS = 2
TEACACHE = TeaCacheOptions().factory()
NEAR = 1.0  # pixels between a shape in the draft and in the video


def evaluate_draft(
    toy: Toy, cases: int, modes: Sequence[Mode] = get_args(Mode), steps: int = 25
) -> Iterator[Measure]:
    """All measures of drafts, each over `cases` cases."""
    for mode in modes:
        chosen = Cases.draw(cases, 140_000)
        made(toy, mode, chosen, 1)  # what only the first run does is not timed
        whole, time_of_whole = made(toy, mode, chosen, steps)
        draft, time_of_draft = made(toy, mode, chosen, min(steps, DRAFT_STEPS), TEACACHE)
        apart = (draft.track.position - whole.track.position).norm(dim=-1).amax(dim=1)
        name = f"{mode}, a draft in {time_of_draft / time_of_whole:.2f} of the time:"
        follows = zip(motion(draft.track), chosen.motions, strict=True)
        yield Measure(f"{name} motion follows the prompt", share(a == b for a, b in follows), 0.95)
        yield Measure(f"{name} colour and form kept", kept(draft, chosen), 0.95)
        title = f"{name} never {NEAR:g} pixel from the video's place (at most {apart.max():.2f})"
        yield Measure(title, share((apart < NEAR).tolist()), 0.95)


def made(
    toy: Toy, mode: Mode, chosen: Cases, steps: int, step_cache: StepCacheFactory | None = None
) -> tuple[Video, float]:
    """The videos of all cases, and the seconds that they took."""
    began = time.perf_counter()
    plan = plan_video(mode, SECTIONS)
    given = chosen.starts, chosen.prompts, chosen.seeds
    video = make_planned(toy, plan, *given, steps=steps, step_cache=step_cache)
    return video, time.perf_counter() - began


def main() -> None:
    """Print the table."""
    print_table(evaluation=evaluate_draft)
