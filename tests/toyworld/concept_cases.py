"""Whether a model has learned the word of `framepack_core.toyworld.concept`."""

from __future__ import annotations

from framepack_core.toyworld.concept import prompt

from .evaluate import Cases
from .tracker import MOVED, RESIZED, TURNED, Track

CASES_OFFSET = 600_000  # of the held-out cases that ask for the word


def prompts(cases: Cases) -> list[str]:
    """What asks held-out cases for the word."""
    looks = zip(cases.clips.form.tolist(), cases.clips.colour.tolist(), strict=True)
    return [prompt(form, colour, i) for i, (form, colour) in enumerate(looks)]


def hopped(tracked: Track) -> list[bool]:
    """Whether each clip of a batch [B, F] shows the word and nothing else.

    It rises by what a circling motion needs, ends where it began, and neither moves aside nor
    changes its size, by the tracker's own bounds.
    """
    path, radius = tracked.position, tracked.radius
    rise = path[:, 0, 1] - path[:, :, 1].amin(dim=1)
    aside = path[..., 0].amax(dim=1) - path[..., 0].amin(dim=1)
    missed = (path[:, -1] - path[:, 0]).norm(dim=-1)
    resized = (radius[:, -1] / radius[:, 0]).log().abs()
    right = (rise >= TURNED) & (aside < MOVED) & (missed < MOVED) & (resized < RESIZED)
    return (right & tracked.present.all(dim=1)).tolist()
