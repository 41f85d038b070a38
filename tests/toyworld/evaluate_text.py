"""How well Toy World draws a prompt without a picture, with its LoRA for that and without.

`python tests/toyworld evaluate_text` prints a table as `evaluate` does: of videos that begin with a
picture that shows nothing, which is left out with the first latent behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

import torch
from torch import Tensor

from framepack_core.lora.apply import LoraUse, apply_loras
from framepack_core.lora.files import load_lora
from framepack_core.models.build import dit_shapes
from framepack_core.runtime.images import GRADIENT, NOISE, made_picture
from framepack_core.sampling.plan import Mode
from framepack_core.toyworld import TEXT_LORA, render

from .evaluate import Cases, Measure, Toy
from .evaluate import main as print_table
from .tracker import TURNED, motion

KINDS = ("grey", GRADIENT, NOISE)
LENGTHS = (1, 2)  # sections
DROPPED = 5  # frames
STRIDE = 4  # frames, of which the tracker's noise makes no path
BENT = 1.5  # how much longer than its extent a path around is; a straight one is as long


def evaluate_text(
    toy: Toy, cases: int, modes: Sequence[Mode] = get_args(Mode), steps: int = 25
) -> Iterator[Measure]:
    """All measures of text to video, each over `cases` cases."""
    if "framepack" not in modes:
        return
    for kind in KINDS:
        for sections in LENGTHS:
            without = drawn(toy, cases, steps, kind, sections, lora=False)
            value = drawn(toy, cases, steps, kind, sections)
            name = f"framepack from {kind}, {sections} section(s): form, colour and motion as asked"
            yield Measure(f"{name} ({without:.0%} without the LoRA)", value, 0.9)


def drawn(
    toy: Toy, cases: int, steps: int, kind: str, sections: int, *, lora: bool = True
) -> float:
    """Share of held-out prompts whose form, colour and motion a video shows."""
    chosen = Cases.draw(cases, 120_000)
    size = render.SIZE, render.SIZE
    pictures = [made_picture(kind, size, seed, "start") for seed in chosen.seeds]
    starts = torch.stack([torch.from_numpy(picture) for picture in pictures])
    dit = toy.dits["framepack"]
    uses = [LoraUse(load_lora(TEXT_LORA, dit_shapes(dit.config)))] if lora else []
    applied = apply_loras(dit, uses)
    try:
        video = toy.make_videos(
            "framepack", starts, chosen.prompts, sections, chosen.seeds, steps=steps
        )
    finally:
        applied.remove()
    last = video.track[-1]
    right = last.present.cpu() & (last.form.cpu() == chosen.clips.form)
    right &= last.colour_index.cpu() == chosen.clips.colour
    shown = video.track[DROPPED:]
    seen = zip(motion(shown), turned(shown.position), chosen.motions, strict=True)
    moved = torch.tensor([turns if asked == "circle" else asked == m for m, turns, asked in seen])
    return (right & moved).float().mean().item()


def turned(path: Tensor) -> list[bool]:
    """Which paths [B, F, 2] go around: a circle that lacks its first frames does not close."""
    coarse = path[:, ::STRIDE]
    extent = coarse.amax(dim=1) - coarse.amin(dim=1)
    length = coarse.diff(dim=1).norm(dim=-1).sum(dim=1)
    return ((extent.amin(dim=1) >= TURNED) & (length >= BENT * extent.norm(dim=1))).tolist()


def main() -> None:
    """Print the table."""
    print_table(evaluation=evaluate_text)
