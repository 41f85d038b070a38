"""What sections of a video can have instead of the run's, each declared once.

Section specs of the command line, inputs of nodes, timelines, plans and their ledger derive from
it; a new one is a field here and the place that uses it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..runtime.options import MAX_SEED, Leaf, Settings, leaves, option


class Overrides(Settings):
    """What a section has instead of the run's; None is the run's.

    Prompt and images are the host's handles, such as a text and a path, until they are encoded.
    """

    padding: int | None = option(
        None,
        "Padding: how many windows lie between these sections and the image they start from. Only "
        "for the framepack mode.",
        cli=False,  # there --latent_paddings says it of all sections
        none=-1,
        absent="the plan's",
        ge=0,
        high=1000,
        advanced=False,
    )
    prompt: Any = None
    image: Any = None
    image_embeds: Any = None  # SigLIP's view of an image
    seed: int | None = option(
        None,
        "Seed of these sections. Sections made before them stay bit-exact.",
        "section_seeds",
        none=-1,
        absent="the run's",
        ge=0,
        le=MAX_SEED,
        advanced=False,
    )
    guidance: float | None = option(
        None,
        "Distilled guidance scale of these sections: how strongly they follow their prompt; 10 is "
        "usual.",
        "section_guidance",
        none=-1.0,
        absent="the run's",
        ge=0.0,
        high=100.0,
        step=0.1,
        advanced=False,
    )
    lora_strength: float | None = option(
        None,
        "LoRA strength of these sections, times the strengths of all LoRAs that are applied: 0 is "
        "without them, 0.5 half.",
        "section_lora_strengths",
        none=-1.0,
        absent="as they are applied",
        ge=0.0,
        le=10.0,
        step=0.05,
        advanced=False,
    )

    def given(self) -> dict[str, Any]:
        """What differs from the run's, by name."""
        own = {name: getattr(self, name) for name in Overrides.model_fields}
        return {name: value for name, value in own.items() if value is not None}


def by_section() -> Iterator[Leaf]:
    """Those that the command line sets by a section spec."""
    return (leaf for leaf in leaves(Overrides) if leaf.option.cli)
