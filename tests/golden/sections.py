"""Plans run with labelled latents: indices, what every context slot holds, results, decode slices.

Every latent frame is a single number that stands for its label, so the real planner, history, loop
and decoder show which frame went where.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framepack_core.runtime.errors import FramePackError
from framepack_core.sampling.decode import decode_slices
from framepack_core.sampling.generate import SectionTask, generate
from framepack_core.sampling.sections import (
    Plan,
    plan_framepack,
    plan_video,
    sections_for_seconds,
)

from .result import Case, exact, todo

START = -1.0
CONTEXT = ("clean_latents", "clean_latents_2x", "clean_latents_4x")


def expand(labels: list[str]) -> list[str]:
    """Runs written out: ["g0.1-2", "0*3"] -> ["g0.1", "g0.2", "0", "0", "0"]."""
    out: list[str] = []
    for label in labels:
        if match := re.fullmatch(r"(.+)\*(\d+)", label):
            out += [match[1]] * int(match[2])
        elif match := re.fullmatch(r"(g\d+)\.(\d+)-(\d+)", label):
            out += [f"{match[1]}.{i}" for i in range(int(match[2]), int(match[3]) + 1)]
        else:
            out.append(label)
    return out


def indices(value: str | list[int]) -> list[int]:
    if isinstance(value, str):
        first, last = map(int, value.split(".."))
        return list(range(first, last + 1))
    return value


def shorten(values: list[int | None], like: list[int | str]) -> list[int | str | None]:
    """Long lists are stored with "..." for their middle."""
    if "..." not in like:
        return values
    head = like.index("...")
    return [*values[:head], "...", *values[len(values) - (len(like) - head - 1) :]]


def label(value: float) -> str:
    """The label of a latent frame: 0, S, or g<section>.<frame>."""
    if value == START:
        return "S"
    return "0" if value == 0 else f"g{int(value) // 1000 - 1}.{int(value) % 1000}"


def labels(latents: Tensor) -> list[str]:
    return [label(x) for x in latents[0, 0, :, 0, 0].tolist()]


@dataclass
class Trace:
    """What a run of a plan did, in the goldens' words."""

    sections: list[dict[str, Any]]
    result: list[str]


def trace(plan: Plan) -> Trace:
    """Run the real loop with a sampler that only writes labels."""
    seen: list[dict[str, Any]] = []

    def sample(task: SectionTask) -> Tensor:
        context = task.context
        seen.append(
            {
                "latent_indices": task.latent_indices[0].tolist(),
                "clean_latent_indices": context.clean_indices[0].tolist(),
                "clean_latent_2x_indices": context.clean_2x_indices[0].tolist(),
                "clean_latent_4x_indices": context.clean_4x_indices[0].tolist(),
                "clean_latents": labels(context.clean),
                "clean_latents_2x": labels(context.clean_2x),
                "clean_latents_4x": labels(context.clean_4x),
                "latent_frames": task.noise.shape[2],
                "latent_padding": task.section.padding,
            }
        )
        frames = 1000.0 * (task.order + 1) + torch.arange(plan.window)
        return frames.view(1, 1, -1, 1, 1).expand_as(task.noise)

    start = torch.full((1, 1, 1, 2, 2), START)
    return Trace(seen, labels(generate(plan, sample, start, seed=0)))


def as_given(section: dict[str, Any], expected: dict[str, Any]) -> tuple[dict, dict]:
    """Both sides reduced to what the golden states, runs written out, S<i> read as S."""
    keys = [key for key in section if key in expected]
    right: dict[str, Any] = {}
    for key in keys:
        if key in CONTEXT:
            right[key] = [re.sub(r"^S\d+$", "S", x) for x in expand(expected[key])]
        elif key.endswith("indices"):
            right[key] = indices(expected[key])
        else:
            right[key] = expected[key]
    return {key: section[key] for key in keys}, right


def compare_sections(name: str, actual: Trace, expected: list[dict[str, Any]]) -> Case:
    pairs = [as_given(a, e) for a, e in zip(actual.sections, expected, strict=False)]
    left, right = [a for a, _ in pairs], [e for _, e in pairs]
    left += actual.sections[len(pairs) :]
    right += expected[len(pairs) :]
    return exact(f"{name}.sections", left, right)


def compare_decode(name: str, actual: Trace, window: int, slices: list[list[str]]) -> Case:
    ours = [actual.result[a:b] for a, b in decode_slices(len(actual.result), window)]
    theirs = [[re.sub(r"^S\d+$", "S", x) for x in expand(part)] for part in slices]
    return exact(f"{name}.decode", ours[::-1], theirs)


def check(folder: Path) -> Iterator[Case]:
    spec = json.loads((folder / "sections.json").read_text())
    for case in spec.get("gradio", []):
        yield from _check_gradio(case)
    for case in spec.get("gradio_counts", []):
        seconds, window = case["total_second_length"], case["latent_window_size"]
        plan = plan_framepack(sections_for_seconds(seconds, window), window)
        paddings = shorten([s.padding for s in plan.sections], case["paddings"])
        expected = (case["sections"], case["paddings"])
        yield exact(f"counts.{seconds}.{window}", (len(plan.sections), paddings), expected)
    for case in spec.get("musubi", []):
        yield from _check_musubi(case)
    for i, _case in enumerate(spec.get("musubi_one_frame", [])):
        yield todo(f"one_frame.{i}")
    for i, case in enumerate(spec.get("musubi_training_samples", [])):
        yield from _check_training_sample(i, case)


def _check_gradio(case: dict[str, Any]) -> Iterator[Case]:
    seconds, window = case["total_second_length"], case["latent_window_size"]
    mode = {"iad": "framepack", "f1": "f1"}[case["mode"]]
    plan = plan_video(mode, sections_for_seconds(seconds, window), window)
    name = f"gradio.{mode}.{seconds}.{window}"
    yield compare_sections(name, trace(plan), case["sections"])


def _parse(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompt")
    parser.add_argument("--image_path")
    parser.add_argument("--video_seconds", type=float, default=5.0)
    parser.add_argument("--video_sections", type=int)
    parser.add_argument("--fps", type=int, default=30)
    parser.add_argument("--latent_window_size", type=int, default=9)
    parser.add_argument("--latent_paddings")
    parser.add_argument("--f1", action="store_true")
    parser.add_argument("--bulk_decode", action="store_true")
    return parser.parse_args(args)


def _known_defect(args: argparse.Namespace, sections: int) -> str:
    """The defect of the reference that shapes a case, as a tag of its name."""
    if args.latent_paddings and len(args.latent_paddings.split(",")) != sections:
        return "[paddings-count]"
    if args.video_sections and args.fps != 30:
        return "[sections-by-fps]"
    return ""


def _check_musubi(case: dict[str, Any]) -> Iterator[Case]:
    args = _parse(case["args"])
    name = "musubi." + "_".join(case["args"][2:] or ["default"]).replace(" ", "")
    if case["end_image"] or args.image_path or args.prompt != "p":
        yield todo(name)  # end images and section specs
        return
    window = args.latent_window_size
    sections = args.video_sections or sections_for_seconds(args.video_seconds, window)
    name += _known_defect(args, sections)
    try:
        trace_ = trace(_musubi_plan(args, sections, window))
    except (FramePackError, ValueError) as error:
        refused = "error" in case
        yield Case(f"{name}.error", refused, str(error).split(";")[0].replace(" ", "_"), "exact")
        return
    if "error" in case:
        yield exact(f"{name}.error", "accepted", case["error"])
        return
    yield compare_sections(name, trace_, case["sections"])
    expected = [re.sub(r"^S\d+$", "S", x) for x in expand(case["result_latents"])]
    yield exact(f"{name}.result", trace_.result, expected)
    if args.bulk_decode:
        yield exact(f"{name}.decode", [trace_.result], [expected])
        return
    if args.video_sections and len(case["decode"]["slices"]) < sections:
        name += "[decode-by-seconds]"
    yield compare_decode(name, trace_, window, case["decode"]["slices"])


def _musubi_plan(args: argparse.Namespace, sections: int, window: int) -> Plan:
    if args.f1:
        return plan_video("f1", sections, window)
    paddings = args.latent_paddings and [int(p) for p in args.latent_paddings.split(",")]
    return plan_framepack(sections, window, paddings or None)


def _check_training_sample(i: int, case: dict[str, Any]) -> Iterator[Case]:
    name = f"training.{i}.{case['frame_count']}.{case['latent_window_size']}"
    if case["one_frame"] or not case["image_given"] or not case["sections"]:
        yield todo(name)  # one-frame samples and what training does without an image or section
        return
    window = case["latent_window_size"]
    sections = (case["frame_count"] - 1) // (4 * window)
    trace_ = trace(plan_video("f1" if case["f1"] else "framepack", sections, window))
    yield compare_sections(name, trace_, case["sections"])
    if case["bulk_decode"]:
        yield exact(f"{name}.decode", [trace_.result], [expand(case["decode"]["slices"][0])])
    else:
        yield compare_decode(name, trace_, window, case["decode"]["slices"])
