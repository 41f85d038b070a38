"""What the LoRA for end images makes of Toy World F1, and what it leaves as it was.

`python tests/toyworld evaluate_f1_end` prints a table as `evaluate` does: last frames with and
without the LoRA, and the measures of F1 with the LoRA and no end image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import get_args

from framepack_core.lora.apply import LoraUse, apply_loras
from framepack_core.lora.files import load_lora
from framepack_core.models.build import dit_shapes
from framepack_core.sampling.plan import Mode
from framepack_core.toyworld import F1_END_LORA

from .evaluate import Measure, Toy, end_measure, long_measures, motion_measures
from .evaluate import main as print_table

SECTIONS = (1, 2, 4)


def evaluate_f1_end(
    toy: Toy, cases: int, modes: Sequence[Mode] = get_args(Mode), steps: int = 25
) -> Iterator[Measure]:
    """All measures, each over at least `cases` cases."""
    if "f1" not in modes:
        return
    measure = partial(end_measure, toy, "f1", cases, steps)
    without = {n: (measure(n).value, measure(n, shown=False).value) for n in SECTIONS}
    with applied(toy):
        for sections, (seen, unseen) in without.items():
            reached = measure(sections)
            others = f"{seen:.1%} without the LoRA, {unseen:.1%} without the image too"
            yield replace(reached, name=f"{reached.name} ({others})")
        yield from motion_measures(toy, "f1", cases, steps)
        yield from long_measures(toy, "f1", cases, steps)


@contextmanager
def applied(toy: Toy) -> Iterator[None]:
    """Meanwhile Toy World F1 has the LoRA."""
    dit = toy.dits["f1"]
    loras = apply_loras(dit, [LoraUse(load_lora(F1_END_LORA, dit_shapes(dit.config)))])
    try:
        yield
    finally:
        loras.remove()


def main() -> None:
    """Print the table."""
    print_table(evaluation=evaluate_f1_end)
