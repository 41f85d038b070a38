"""What the example LoRA does, measured by tracking the shape in videos made with it.

`python tests/toyworld evaluate_lora` prints how often held-out shapes go the opposite
way, at each strength.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from framepack_core.lora.apply import LoraUse, apply_loras
from framepack_core.lora.files import Lora, load_lora
from framepack_core.models.build import dit_shapes
from framepack_core.runtime.device import default_device, parse_device
from framepack_core.toyworld import OPPOSITE_LORA, SNAPSHOT

from .evaluate import Cases, Toy
from .tracker import motion
from .train_lora import WAYS

OFFSET = 900_000  # of the seeds, from render.HELD_OUT
STRENGTHS = (1.0, 0.5, 0.0)


@dataclass(frozen=True)
class Outcome:
    """Shares of cases: gone against the prompt, and as it says."""

    opposite: float
    as_prompted: float

    def __str__(self) -> str:
        return f"{self.opposite:6.1%} the opposite way, {self.as_prompted:6.1%} as prompted"


def measure(
    toy: Toy, lora: Lora, strength: float, cases: int, *, steps: int = 25, sections: int = 1
) -> Outcome:
    """How held-out shapes go that the prompt sends left, right, up or down."""
    drawn = Cases.draw(cases, OFFSET, WAYS)
    applied = apply_loras(toy.dits["framepack"], [LoraUse(lora, strength)])
    try:
        video = toy.make_videos(
            "framepack", drawn.starts, drawn.prompts, sections, drawn.seeds, steps=steps
        )
    finally:
        applied.remove()
    seen = motion(video.track)
    opposite = drawn.opposites().motions
    return Outcome(_share(seen, opposite), _share(seen, drawn.motions))


def read(toy: Toy, path: Path) -> Lora:
    """A LoRA file for the original model of Toy World."""
    return load_lora(path, dit_shapes(toy.dits["framepack"].config))


def _share(seen: Sequence[str], wanted: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(seen, wanted, strict=True)) / len(wanted)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lora", type=Path, default=OPPOSITE_LORA)
    parser.add_argument("--cases", type=int, default=64)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--sections", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--device", type=str)
    args = parser.parse_args(argv)
    device = parse_device(args.device) if args.device else default_device()
    toy = Toy.load(SNAPSHOT, device)
    lora = read(toy, args.lora)
    print(f"{args.lora.name}, {args.cases} held-out cases each, {args.steps} steps, {device}")
    for sections in args.sections:
        for strength in STRENGTHS:
            found = measure(toy, lora, strength, args.cases, steps=args.steps, sections=sections)
            print(f"{found}  at strength {strength:g}, {sections} section(s)", flush=True)
