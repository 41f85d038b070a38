"""One-frame editing: a single new latent, placed among the latents of control images.

The target and the controls stand at frame indices of the user's choice, so that the model reads
the edit as the passing of time (FramePack one-frame inference, musubi-tuner's documentation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models.packing import Context
from ..runtime.errors import FramePackError
from .generate import SampleSection, SectionTask, section_noise
from .history import index_tensor
from .plan import HISTORY, Section, index_run
from .sanity_checks import check_output
from .sections import MAX_DIGITS, WINDOW

USAGE = "default, no_2x, no_4x, no_post, target_index=N, control_index=N;N"


@dataclass(frozen=True)
class OneFrame:
    """Where target and controls stand, and which blank parts of the context are left out.

    target_index: None is the window; control_index: one a control, and perhaps one more for the
    blank latent after them; none at all puts every control at 0 and the blank one after the window.
    """

    target_index: int | None = None
    control_index: tuple[int, ...] = ()
    no_2x: bool = False
    no_4x: bool = False
    no_post: bool = False


def parse_one_frame(text: str, name: str = "one_frame_inference") -> OneFrame:
    """Read options such as "target_index=1,control_index=0;10,no_post"; "default" is none."""
    given: dict[str, Any] = {}
    for option in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (piece.strip() for piece in option.partition("="))
        if key not in _OPTIONS or bool(equals) != (key in _VALUES):
            raise FramePackError(f"{name}: {option!r} is unknown; use {USAGE}")
        if key in given:
            raise FramePackError(f"{name}: {key} is given twice")
        given[key] = _VALUES[key](value, f"{name}: {key}") if equals else True
    given.pop("default", None)
    return OneFrame(**given)


def plan_one_frame(options: OneFrame, controls: int, window: int = WINDOW) -> Section:
    """The section of one latent that sees `controls` images (none counts as a blank one)."""
    after = window + 1
    one, two, four = HISTORY
    target = window if options.target_index is None else options.target_index
    return Section(
        index=0,
        latent_indices=(target,),
        clean_indices=_clean_indices(options, max(controls, 1), after),
        clean_2x_indices=() if options.no_2x else index_run(after + one, two),
        clean_4x_indices=() if options.no_4x else index_run(after + one + two, four),
    )


def describe_one_frame(section: Section, controls: int) -> str:
    """What a one-frame section sees, as text."""
    indices = [str(index) for index in section.clean_indices]
    images = max(controls, 1)
    title = "control images" if controls else "a blank control image"
    parts = [f"{title} at {', '.join(indices[:images])}"]
    parts += [f"a blank latent at {index}" for index in indices[images:]]
    for rate, run in (("2x", section.clean_2x_indices), ("4x", section.clean_4x_indices)):
        parts += [f"blank {rate} context at {run[0]}-{run[-1]}"] if run else []
    return f"one frame at index {section.latent_indices[0]}; it sees {'; '.join(parts)}"


def generate_one_frame(
    section: Section,
    sample_section: SampleSection,
    controls: Tensor,
    seed: int | Sequence[int],
) -> Tensor:
    """Make one latent [B, C, 1, h, w] beside the latents of control images [B, C, N, h, w].

    N may be 0. Masks are applied before, by mask_latents(). seed: as in generate().
    """
    context = one_frame_context(section, controls)
    batch, channels, _, height, width = controls.shape
    noise = next(section_noise((batch, channels, 1, height, width), seed))
    indices = index_tensor(section.latent_indices, controls)
    task = SectionTask(section, 0, noise.to(controls.device), indices, context)
    latents = sample_section(task).to(controls)
    check_output(latents, "one frame")
    return latents


def one_frame_context(section: Section, controls: Tensor) -> Context:
    """Control latents [B, C, N, h, w] and, around them, blanks: the model was trained with those.

    Raises where the plan is for another number of controls.
    """
    indices, images = len(section.clean_indices), controls.shape[2]
    if indices - max(images, 1) not in (0, 1):
        raise FramePackError(
            f"control images: {images} given to a plan of {indices} indices; plan for the number "
            "that is given"
        )

    def blank(frames: int) -> Tensor:
        return controls.new_zeros(*controls.shape[:2], frames, *controls.shape[3:])

    def coarse(indices: tuple[int, ...]) -> tuple[Tensor | None, Tensor | None]:
        return (blank(len(indices)), index_tensor(indices, controls)) if indices else (None, None)

    clean = torch.cat([controls, blank(indices - images)], dim=2)
    return Context(
        clean,
        index_tensor(section.clean_indices, controls),
        *coarse(section.clean_2x_indices),
        *coarse(section.clean_4x_indices),
    )


def _clean_indices(options: OneFrame, images: int, after: int) -> tuple[int, ...]:
    given = options.control_index or (0,) * images
    posts = 0 if options.no_post else 1
    if not images <= len(given) <= images + posts:
        raise FramePackError(
            f"control_index: {len(given)} values for {images} control "
            f"image{'s' * (images > 1)}; give one each"
            + (", and perhaps one more for the blank latent after them" if posts else "")
        )
    return given if len(given) == images + posts else (*given, after)


def _read_index(text: str, name: str) -> int:
    if not text.isdecimal() or len(text) > MAX_DIGITS:
        raise FramePackError(f"{name}: {text!r} is not a whole number of 0 or more")
    return int(text)


def _read_indices(text: str, name: str) -> tuple[int, ...]:
    return tuple(_read_index(value.strip(), name) for value in text.split(";"))


_VALUES: dict[str, Callable[[str, str], Any]] = {
    "target_index": _read_index,
    "control_index": _read_indices,
}
_OPTIONS = ("default", "no_2x", "no_4x", "no_post", *_VALUES)
