"""What the drift anchor does to Toy World F1, measured on the colours that should not change.

`python tests/toyworld evaluate_anchor` prints a table as `evaluate` does. Toy World F1 drifts
little, so each measure is taken once more of the same model with drift added to every section.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import get_args

import torch
from torch import Tensor

from framepack_core.runtime.device import cpu_generator
from framepack_core.sampling.generate import SampleSection, SectionTask, generate
from framepack_core.sampling.plan import Mode
from framepack_core.sampling.sections import plan_f1
from framepack_core.toyworld import render

from .evaluate import Cases, Measure, Toy, Video, encode_images, sampler
from .evaluate import main as print_table
from .tracker import Track, motion, track

BATCH = 8  # cases made at once: their videos fit into 4 GB
LENGTHS = (6, 12)  # sections
ANCHORS = (0.0, 0.5, 1.0)
CONTRAST, COLOUR = 0.05, 0.03  # drift added to a section: a share, and units of the latents
AROUND = 2  # pixels around a shape that it may touch


@dataclass(frozen=True)
class Outcome:
    """Of each case [cases], at the end of a number of sections.

    background, shape: distance in RGB, 0..1, from the colour in the first frame. share: of the
    picture that is shape. follows, kept: whether the motion is the prompt's so far, and the form
    and the colour's name the start image's.
    """

    background: Tensor
    shape: Tensor
    share: Tensor
    follows: Tensor
    kept: Tensor

    @property
    def colour(self) -> float:
        """Mean distance of all pixels: each has the colour of the background or of the shape."""
        return ((1 - self.share) * self.background + self.share * self.shape).mean().item()


Outcomes = Mapping[int, Outcome]
"""By the number of sections."""


def evaluate_anchor(
    toy: Toy, cases: int, modes: Sequence[Mode] = get_args(Mode), steps: int = 25
) -> Iterator[Measure]:
    """All measures of the anchor, each over `cases` cases."""
    if "f1" not in modes:
        return
    for drifting in (False, True):
        name = "f1 with drift added" if drifting else "f1"
        without: Outcomes = {}
        for anchor in ANCHORS:
            made = outcomes(toy, cases, steps, anchor, LENGTHS, drifting=drifting)
            without = without or made
            for length, outcome in made.items():
                place = f"{name}, anchor {anchor:g}, {length} sections:"
                if anchor:
                    yield _colour(f"{place} colour drift", outcome, without[length], anchor)
                yield Measure(f"{place} motion follows", _share(outcome.follows), 0.95)
                yield Measure(f"{place} colour and form kept", _share(outcome.kept), 0.9)


def _colour(name: str, outcome: Outcome, without: Outcome, anchor: float) -> Measure:
    """The drift over that without an anchor; background and shape in hundredths."""
    parts = ", ".join(
        f"{part} {100 * getattr(outcome, part).mean():.2f} over "
        f"{100 * getattr(without, part).mean():.2f}"
        for part in ("background", "shape")
    )
    ratio = outcome.colour / max(without.colour, 1e-6)
    name = f"{name} {outcome.colour:.4f} over {without.colour:.4f} ({parts} hundredths)"
    return Measure(name, ratio, 0.5 if anchor == 1 else 0.9, at_most=True, percent=False)


def _share(flags: Tensor) -> float:
    return flags.float().mean().item()


def outcomes(
    toy: Toy,
    cases: int,
    steps: int,
    anchor: float,
    lengths: Sequence[int] = LENGTHS,
    *,
    drifting: bool = False,
) -> Outcomes:
    """What becomes of `cases` held-out cases, a batch of them at a time."""
    drawn = Cases.draw(cases, 80_000)
    batches = [
        _outcomes(toy, _some(drawn, rows), steps, anchor, lengths, drifting)
        for rows in torch.arange(cases).split(BATCH)
    ]
    joined = {}
    for length in lengths:
        parts = [batch[length] for batch in batches]
        values = {f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Outcome)}
        joined[length] = Outcome(**values)
    return joined


def _some(cases: Cases, rows: Tensor) -> Cases:
    return Cases(cases.clips[rows], tuple(cases.motions[i] for i in rows.tolist()))


@torch.no_grad()
def _outcomes(
    toy: Toy, cases: Cases, steps: int, anchor: float, lengths: Sequence[int], drifting: bool
) -> Outcomes:
    sample = sampler(toy, "f1", cases.starts, cases.prompts, steps)
    sample = add_drift(sample) if drifting else sample
    start = encode_images(toy, cases.starts)
    latents = generate(plan_f1(max(lengths)), sample, start, cases.seeds, anchor=anchor)
    # All in one call: a colour decodes a little differently in another slice of a video.
    decoded = [toy.vae.decode(each.to(toy.dtype)).float().clamp(-1, 1) for each in latents.split(1)]
    pixels = torch.cat(decoded)
    video = Video(pixels, track(pixels))
    return {length: _outcome(video, cases, length * render.SECTION_FRAMES) for length in lengths}


def _outcome(video: Video, cases: Cases, frame: int) -> Outcome:
    seen, device = video.track, video.pixels.device
    apart = _outside(seen[0]) & _outside(seen[frame])
    change = (video.pixels[:, :, frame] - video.pixels[:, :, 0]) / 2
    count = apart.sum(dim=(1, 2)).clamp(min=1)
    background = (change * apart[:, None]).sum(dim=(2, 3)) / count[:, None]
    last = seen[frame]
    kept = last.present & (last.form == cases.clips.form.to(device))
    follows = motion(seen[: frame + 1])
    return Outcome(
        background.norm(dim=-1).cpu(),
        (last.colour - seen.colour[:, 0]).norm(dim=-1).cpu(),
        (torch.pi * last.radius.square() / render.SIZE**2).cpu(),
        torch.tensor([a == b for a, b in zip(follows, cases.motions, strict=True)]),
        (kept & (last.colour_index == cases.clips.colour.to(device))).cpu(),
    )


def _outside(seen: Track) -> Tensor:
    """Pixels [B, 64, 64] that a shape does not reach."""
    axis = torch.arange(render.SIZE, device=seen.radius.device) + 0.5
    x, y = (seen.position[:, i, None, None] for i in (0, 1))
    distance = ((axis - x).square() + (axis[:, None] - y).square()).sqrt()
    return distance > 2 * seen.radius[:, None, None] + AROUND


def add_drift(sample: SampleSection) -> SampleSection:
    """Sections whose contrast and channels go astray little by little from their first frame on."""
    sides: list[Tensor] = []

    def sample_and_drift(task: SectionTask) -> Tensor:
        latents = sample(task)
        frames, channels = latents.shape[2], latents.shape[1]
        if not sides:
            drawn = torch.randn(channels, generator=cpu_generator(0)).sign()
            sides.append(drawn.view(1, -1, 1, 1, 1).to(latents))
        grown = torch.arange(1, frames + 1, device=latents.device).view(1, 1, -1, 1, 1) / frames
        centre = latents.mean(dim=(2, 3, 4), keepdim=True)
        return (latents - centre) * (1 + CONTRAST * grown) + centre + COLOUR * sides[0] * grown

    return sample_and_drift


def main() -> None:
    """Print the table."""
    print_table(evaluation=evaluate_anchor)
