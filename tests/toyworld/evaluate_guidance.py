"""What steers a section, measured on the toy models as `evaluate` measures them.

`python tests/toyworld evaluate_guidance` prints a table of the same kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from framepack_core.sampling.masks import latent_mask, mask_latents
from framepack_core.sampling.one_frame import OneFrame, generate_one_frame, plan_one_frame
from framepack_core.sampling.plan import Mode, Plan
from framepack_core.sampling.sections import WINDOW, plan_f1, plan_framepack
from framepack_core.toyworld import render

from .evaluate import (
    END_ERROR,
    Cases,
    Measure,
    Toy,
    Video,
    encode_images,
    make_latents,
    make_planned,
    sampler,
)
from .evaluate import main as print_table
from .tracker import Track, motion, track

BATCH = 8  # cases made at once: their videos fit into 4 GB
SECTIONS = 4
DECODED_OVER_A_CUT = 4
"""Frames at the beginning of a section that show both sides of a cut: those of one latent."""
STRENGTHS = (0.0, 0.5, 1.0)
TARGETS = (5, 9, 18)
AHEAD = 1.0  # pixels: the least displacement that counts as one
ASIDE = 0.5  # of the displacement: the most that it may point to the side
HIDDEN = 6  # pixels around a shape that its mask hides too


def evaluate_guidance(
    toy: Toy, cases: int, modes: Sequence[Mode] = get_args(Mode), steps: int = 25
) -> Iterator[Measure]:
    """All measures of guidance, each over `cases` cases."""
    if "framepack" in modes:
        plan = plan_framepack(SECTIONS, paddings=[0] * SECTIONS)
        yield from _section_measures(toy, plan, cases, steps)
        placed = _over(cases, section_images, toy, steps)
        yield _share("framepack: the image of a section at padding 0 places the shape", placed)
        yield from _end_measures(toy, cases, steps)
        yield from _one_frame_measures(toy, cases, steps)
    if "f1" in modes:
        yield from _section_measures(toy, plan_f1(SECTIONS), cases, steps)


def _section_measures(toy: Toy, plan: Plan, cases: int, steps: int) -> Iterator[Measure]:
    paddings = " at padding 0" if plan.mode == "framepack" else ""
    followed = _over(cases, sections_that_follow, toy, steps, plan)
    yield _share(f"{plan.mode}: {SECTIONS} sections{paddings} follow a prompt each", followed)
    kept = _over(cases, seeded, toy, steps, plan)
    yield _share(f"{plan.mode}: another seed leaves the sections made before bit-exact", kept, 1)


def _end_measures(toy: Toy, cases: int, steps: int) -> Iterator[Measure]:
    errors = _over(cases, end_errors, toy, steps, 2).mean(dim=0).tolist()
    for (weak, strong), (a, b) in zip(pairwise(STRENGTHS), pairwise(errors), strict=True):
        name = f"end image: error at strength {strong:g} ({b:.2f} px) over {weak:g} ({a:.2f} px)"
        yield Measure(name, b / max(a, 1e-6), 1, at_most=True, percent=False)


def _one_frame_measures(toy: Toy, cases: int, steps: int) -> Iterator[Measure]:
    ahead = _over(cases, displacements, toy, steps)
    for index, column in zip(TARGETS, ahead.unbind(dim=1), strict=True):
        name = f"one frame: displaced as prompted at index {index} ({column.mean():.1f} px)"
        yield _share(name, column >= AHEAD)
    grows = (ahead[:, 1:] > ahead[:, :-1]).all(dim=1)
    yield _share("one frame: displaced further at a higher index", grows)
    seen, hidden = _over(cases, masked_controls, toy, steps).mean(dim=0).tolist()
    yield Measure("one frame: a control image places the shape", seen, 0.9)
    yield Measure("one frame: a masked control image places it there", hidden, 0.1, at_most=True)


def _over(cases: int, measure: Callable[..., Tensor], *args: object) -> Tensor:
    """The results of a measure by case, a batch of cases at a time."""
    firsts = range(0, cases, BATCH)
    return torch.cat([measure(*args, first, min(BATCH, cases - first)) for first in firsts]).float()


def _share(name: str, flags: Tensor, bar: float = 0.9) -> Measure:
    return Measure(name, flags.float().mean().item(), bar)


def sections_that_follow(toy: Toy, steps: int, plan: Plan, first: int, cases: int) -> Tensor:
    """Whether each section [cases, sections] moves by its own prompt, another in each."""
    drawn = Cases.draw(cases, first + 200_000)
    orders = [_order(first + i, len(plan.sections)) for i in range(cases)]
    by_section = list(zip(*orders, strict=True))
    for index, names in enumerate(by_section):
        prompts = replace(drawn, motions=names).prompts
        plan = plan.with_overrides(str(index), prompt=prompts)
    video = make_planned(toy, plan, drawn.starts, drawn.prompts, drawn.seeds, steps=steps)
    seen = [motion(section_track(video, s, plan.mode)) for s in range(len(by_section))]
    asked = [list(names) for names in by_section]
    return torch.tensor([np.equal(*pair).tolist() for pair in zip(seen, asked, strict=True)]).T


def _order(case: int, count: int) -> list[str]:
    """Motions of a case's sections, no two alike."""
    step = 2 * (case // len(render.MOTIONS)) + 1
    return [render.MOTIONS[(case + step * s) % len(render.MOTIONS)] for s in range(count)]


def section_track(video: Video, section: int, mode: Mode) -> Track:
    """What one section shows, from the frame that it continues.

    At padding 0 that is the start image, and the decoder runs over the cut to it.
    """
    start = section * render.SECTION_FRAMES
    if mode == "f1":
        return video.track[start : start + render.SECTION_FRAMES + 1]
    own = video.track[start + 1 + DECODED_OVER_A_CUT : start + render.SECTION_FRAMES + 1]
    image = video.track[:1]
    parts = {f.name: (getattr(image, f.name), getattr(own, f.name)) for f in fields(Track)}
    return Track(**{name: torch.cat(pair, dim=1) for name, pair in parts.items()})


def section_images(toy: Toy, steps: int, first: int, cases: int) -> Tensor:
    """Whether section 1 at padding 0 keeps the shape where its own image has it [cases]."""
    clips = _central(first + 210_000, cases)
    moved = _elsewhere(clips, first + 220_000)
    starts, images = render.start_image(clips), render.start_image(moved)
    prompts = [_still(clips, i) for i in range(cases)]
    plan = plan_framepack(2, paddings=[0, 0])
    plan = plan.with_overrides("1", image=images, image_embeds=images)
    video = make_planned(toy, plan, starts, prompts, _noise_seeds(clips), steps=steps)
    place = video.track.position[:, render.SECTION_FRAMES + 1 + DECODED_OVER_A_CUT :].cpu()
    error = (place - moved.track[:, :1, :2].float()).norm(dim=-1)
    return error.amax(dim=1) <= END_ERROR


def end_errors(toy: Toy, steps: int, sections: int, first: int, cases: int) -> Tensor:
    """Pixels between the last frame's shape and the end image's [cases, strengths]."""
    clips = render.draw(_seeds(first + 230_000, cases), sections, "travel")
    prompts = [texts[0] for texts in render.captions(clips)]
    starts, ends = render.start_image(clips), render.end_image(clips)
    goal = clips.track[:, -1, :2].float()
    errors = []
    for strength in STRENGTHS:
        plan = plan_framepack(sections).with_end(ends, strength=strength)
        video = make_planned(toy, plan, starts, prompts, _noise_seeds(clips), steps=steps)
        errors.append((video.track.position[:, -1].cpu() - goal).norm(dim=-1))
    return torch.stack(errors, dim=1)


def displacements(toy: Toy, steps: int, first: int, cases: int) -> Tensor:
    """Pixels that one frame at each of TARGETS lies ahead of its control image [cases, targets].

    Ahead is the way of the prompt; 0 where it lies as much to the side, or there is no shape.
    """
    ways = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    drawn = Cases.draw(cases, first + 240_000, tuple(ways))
    way = torch.tensor([ways[name] for name in drawn.motions]).float()
    controls = encode_images(toy, drawn.starts)
    ahead = []
    for index in TARGETS:
        options = OneFrame(target_index=index)
        frame = edit_frames(toy, options, controls, drawn.starts, drawn.prompts, drawn.seeds, steps)
        moved = frame.position.cpu() - drawn.clips.track[:, 0, :2].float()
        along = (moved * way).sum(dim=-1)
        aside = (moved * way.flip(-1)).sum(dim=-1).abs()
        straight = frame.present.cpu() & (aside <= ASIDE * along)
        ahead.append(along * straight)
    return torch.stack(ahead, dim=1)


def masked_controls(toy: Toy, steps: int, first: int, cases: int) -> Tensor:
    """Whether one frame has the shape where its control image has it [cases, (seen, hidden)].

    The image encoder sees the shape elsewhere.
    """
    clips = _central(first + 250_000, cases)
    control = _elsewhere(clips, first + 260_000)
    prompts = [_still(clips, i) for i in range(cases)]
    latents = encode_images(toy, render.start_image(control))
    masks = torch.cat([latent_mask(m, render.SIZE, render.SIZE) for m in _masks(control)])
    place = control.track[:, 0, :2].float()
    found = []
    for controls in (latents, mask_latents(latents, [masks.to(latents)])):
        frame = edit_frames(
            toy,
            OneFrame(target_index=WINDOW),
            controls,
            render.start_image(clips),
            prompts,
            _noise_seeds(clips),
            steps,
        )
        near = (frame.position.cpu() - place).norm(dim=-1) <= END_ERROR
        found.append(near & frame.present.cpu())
    return torch.stack(found, dim=1)


def seeded(toy: Toy, steps: int, plan: Plan, first: int, cases: int) -> Tensor:
    """Whether a seed of its own changes a section and, bit-exact, none made before it [cases]."""
    drawn = Cases.draw(cases, first + 270_000)
    *earlier, changed, _ = (section.index for section in plan.sections)
    before, after = (
        make_latents(toy, p, drawn.starts, drawn.prompts, drawn.seeds, steps)
        for p in (plan, plan.with_overrides(str(changed), seed=7))
    )

    def same(section: int) -> Tensor:
        latents = slice(1 + section * WINDOW, 1 + (section + 1) * WINDOW)
        return (before[:, :, latents] == after[:, :, latents]).flatten(1).all(dim=1)

    return (torch.stack([same(s) for s in earlier]).all(dim=0) & ~same(changed)).cpu()


@torch.no_grad()
def edit_frames(
    toy: Toy,
    options: OneFrame,
    controls: Tensor,
    seen: Tensor,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
) -> Track:
    """What the tracker sees [B] in one frame beside a control latent [B, 16, 1, 8, 8] each.

    seen uint8 [B, 64, 64, 3] is what the image encoder sees.
    """
    sample = sampler(toy, "framepack", seen, prompts, steps)
    section = plan_one_frame(options, controls.shape[2])
    latents = generate_one_frame(section, sample, controls, list(seeds))
    return track(toy.vae.decode(latents.to(toy.dtype)).float().clamp(-1, 1))[0]


def _central(first: int, cases: int) -> render.Clips:
    """Held-out clips whose shape has room around it."""
    return render.draw(_seeds(first, cases), 1, central=True)


def _seeds(first: int, cases: int) -> range:
    """Seeds of clips that no training has used."""
    return range(render.HELD_OUT + first, render.HELD_OUT + first + cases)


def _elsewhere(clips: render.Clips, first: int) -> render.Clips:
    """The same shapes on the same backgrounds, at other places."""
    other = render.draw(_seeds(first, len(clips)), 1)
    margin = render.SIZE / 4
    place = other.track[..., :2].clamp(margin, render.SIZE - margin)
    return replace(clips, track=torch.cat((place, clips.track[..., 2:]), dim=-1))


def _masks(clips: render.Clips) -> list[np.ndarray]:
    """Black over the shape of each first frame, white elsewhere: uint8 [64, 64]."""
    axis = torch.arange(render.SIZE) + 0.5
    x, y, radius = clips.track[:, 0, :, None, None].unbind(1)
    distance = ((axis[None, :] - x).square() + (axis[:, None] - y).square()).sqrt()
    far = distance > 2 * radius + HIDDEN
    return [mask.to(torch.uint8).mul(255).numpy() for mask in far]


def _still(clips: render.Clips, case: int) -> str:
    form, colour = clips.form[case].item(), clips.colour[case].item()
    return render.caption(form, colour, render.MOTIONS.index("still"))


def _noise_seeds(clips: render.Clips) -> list[int]:
    return [seed % 2**31 for seed in clips.seeds]


def main() -> None:
    """Print the table."""
    print_table(evaluation=evaluate_guidance)
