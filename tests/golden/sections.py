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

from framepack_core.parsing.sample_prompts import SamplePrompt
from framepack_core.parsing.section_spec import SectionSpec, parse_spec
from framepack_core.runtime.errors import FramePackError
from framepack_core.sampling.decode import decode_frames, decode_slices
from framepack_core.sampling.generate import SectionTask, generate
from framepack_core.sampling.one_frame import (
    generate_one_frame,
    parse_one_frame,
    plan_one_frame,
)
from framepack_core.sampling.plan import Plan
from framepack_core.sampling.sections import (
    parse_paddings,
    plan_framepack,
    plan_video,
    sections_for_frames,
    sections_for_seconds,
)

from .result import Case, exact
from .section_spec import accident

END, CONTROL, IMAGE = -1.0, -1000.0, -100.0  # control i is -1000 - i, the image of key k -100 - k
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
    """The label of a latent frame: 0, E, S<key>, C<control>, or g<section>.<frame>."""
    if value <= CONTROL:
        return f"C{int(CONTROL - value)}"
    if value < END:
        return f"S{int(IMAGE - value)}"
    if value <= 0:
        return "E" if value == END else "0"
    return f"g{int(value) // 1000 - 1}.{int(value) % 1000}"


def one_frame(value: float) -> Tensor:
    return torch.full((1, 1, 1, 2, 2), value)


def image_of_key(key: int) -> Tensor:
    return one_frame(IMAGE - key)


def labels(latents: Tensor) -> list[str]:
    return [label(x) for x in latents[0, 0, :, 0, 0].tolist()]


@dataclass
class Trace:
    """What a run of a plan did, in the goldens' words."""

    sections: list[dict[str, Any]]
    result: list[str]


class Recorder:
    """A sampler that notes what it is given and writes labels."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def __call__(self, task: SectionTask) -> Tensor:
        context, rates = task.context, {"": "clean", "_2x": "clean_2x", "_4x": "clean_4x"}
        note: dict[str, Any] = {
            "latent_indices": task.latent_indices[0].tolist(),
            "latent_frames": task.noise.shape[2],
            "latent_padding": task.section.padding,
            "prompt_index": task.section.prompt,
        }
        for suffix, name in rates.items():
            latents, positions = getattr(context, name), getattr(context, f"{name}_indices")
            note[f"clean_latents{suffix}"] = None if latents is None else labels(latents)
            note[f"clean_latent{suffix}_indices"] = (
                None if positions is None else positions[0].tolist()
            )
        self.seen.append(note)
        frames = 1000.0 * (task.order + 1) + torch.arange(task.noise.shape[2])
        # Labels are read at x = 0; one value everywhere would be refused as broken output.
        values = frames.view(1, 1, -1, 1, 1) + torch.arange(task.noise.shape[4])
        return values.expand_as(task.noise)


def trace(plan: Plan, start: Tensor | None = None) -> Trace:
    """Run the real loop with a sampler that only writes labels."""
    sample = Recorder()
    start = image_of_key(0) if start is None else start
    return Trace(sample.seen, labels(generate(plan, sample, start, seed=0)))


def trace_one_frame(options: str, controls: int, window: int) -> Trace:
    sample = Recorder()
    section = plan_one_frame(parse_one_frame(options), controls, window)
    images = [one_frame(CONTROL - i) for i in range(controls)]
    latents = torch.cat([torch.zeros(1, 1, 0, 2, 2), *images], dim=2)
    return Trace(sample.seen, labels(generate_one_frame(section, sample, latents, seed=0)))


def start_labels(expected: list[str]) -> list[str]:
    """Runs written out, and a start image always with the section that it is for."""
    return ["S0" if x == "S" else x for x in expand(expected)]


def as_given(section: dict[str, Any], expected: dict[str, Any]) -> tuple[dict, dict]:
    """Both sides reduced to what the golden states, runs written out."""
    keys = [key for key in section if key in expected]
    right: dict[str, Any] = {}
    for key in keys:
        if expected[key] is None:
            right[key] = None
        elif key in CONTEXT:
            right[key] = start_labels(expected[key])
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
    theirs = [start_labels(part) for part in slices]
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
    for i, case in enumerate(spec.get("musubi_one_frame", [])):
        yield from _check_one_frame(i, case)
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
    parser.add_argument("--one_frame_inference")
    return parser.parse_known_args(args)[0]


def _known_defect(args: argparse.Namespace, sections: int, end_image: bool) -> str:
    """The defect of the reference that shapes a case, as a tag of its name."""
    if args.f1 and args.latent_paddings:
        return "[f1-paddings]"
    if args.latent_paddings and len(args.latent_paddings.split(",")) != sections:
        return "[paddings-count]"
    if args.latent_paddings and "-" in args.latent_paddings:
        return "[paddings-negative]"
    if args.video_sections and args.fps != 30:
        return "[sections-by-fps]"
    if args.f1 and end_image:
        return "[f1-end-image]"
    specs = [text for text in (args.prompt, args.image_path) if text]
    return next(filter(None, map(accident, specs)), "") or _without_section(specs, sections)


def _without_section(specs: list[str], sections: int) -> str:
    keys = [key for text in specs for key in parse_spec(text).texts]
    return "" if all(-sections <= key < sections for key in keys) else "[spec-no-section]"


def _check_musubi(case: dict[str, Any]) -> Iterator[Case]:
    args = _parse(case["args"])
    words = case["args"][2:] if case["args"][:2] == ["--prompt", "p"] else case["args"]
    name = "musubi." + "_".join(words or ["default"]).replace(" ", "")
    window = args.latent_window_size
    sections = args.video_sections or sections_for_seconds(args.video_seconds, window)
    name += "_end_image" * case["end_image"] + _known_defect(args, sections, case["end_image"])
    prompts = parse_spec(args.prompt)
    try:
        trace_ = _trace_musubi(args, sections, prompts, case["end_image"])
    except FramePackError as error:
        refused = "error" in case
        yield Case(f"{name}.error", refused, str(error).split(";")[0].replace(" ", "_"), "exact")
        return
    if "error" in case:
        yield exact(f"{name}.error", "accepted", case["error"])
        return
    case = _with_known_images(case, parse_spec(args.image_path))
    texts = _with_default(prompts)
    for section in case["sections"]:
        index = section["prompt_index"]
        section["prompt_index"] = texts.get(index, f"the text of {index}")
    yield compare_sections(name, trace_, case["sections"])
    expected = start_labels(case["result_latents"])
    yield exact(f"{name}.result", trace_.result, expected)
    if args.bulk_decode:
        yield exact(f"{name}.decode", [trace_.result], [expected])
        return
    if args.video_sections and len(case["decode"]["slices"]) < sections:
        name += "[decode-by-seconds]"
    yield compare_decode(name, trace_, window, case["decode"]["slices"])


def _with_default(spec: SectionSpec) -> dict[int, str]:
    """The texts as the reference numbers them, with the default at 0."""
    default = {} if spec.default_key is None else {0: spec.texts[spec.default_key]}
    return {**default, **spec.texts}


def _image_keys(images: SectionSpec) -> dict[str, int]:
    """The one key that stands for each image, however many sections have it."""
    return {text: key for key, text in _with_default(images).items()}


def _with_known_images(case: dict[str, Any], images: SectionSpec) -> dict[str, Any]:
    """The case with every label S<key> of an image under the key that stands for it."""
    keys, texts = _image_keys(images), _with_default(images)

    def rename(match: re.Match[str]) -> str:
        key = int(match[1])
        return f'"S{keys[texts[key]] if key in texts else key}'

    return json.loads(re.sub(r'"S(-?\d+)', rename, json.dumps(case)))


def _trace_musubi(
    args: argparse.Namespace, sections: int, prompts: SectionSpec, end_image: bool
) -> Trace:
    """A run with prompts as they are and, for every image, a latent that tells its key."""
    images = parse_spec(args.image_path)
    key_of = _image_keys(images)
    paddings = parse_paddings(args.latent_paddings) if args.latent_paddings else None
    plan = plan_video("f1" if args.f1 else "framepack", sections, args.latent_window_size, paddings)
    plan = plan.scheduled(images, "image").scheduled(prompts, "prompt")
    if end_image:
        plan = plan.with_end(one_frame(END))
    plan = plan.encoded(image=lambda x: image_of_key(key_of[x]) if isinstance(x, str) else x)
    start = images.resolve(sections)[0]
    trace_ = trace(plan, image_of_key(key_of.get(start, 0)))
    for note in trace_.sections:
        note["prompt_index"] = note["prompt_index"] or prompts.resolve(sections)[0]
    return trace_


def _check_one_frame(i: int, case: dict[str, Any]) -> Iterator[Case]:
    args = _parse(case["args"])
    name = f"one_frame.{i}" + _one_frame_defect(args.one_frame_inference, case["controls"])
    try:
        trace_ = trace_one_frame(
            args.one_frame_inference, case["controls"], args.latent_window_size
        )
    except FramePackError as error:
        refused = "error" in case
        yield Case(f"{name}.error", refused, str(error).split(";")[0].replace(" ", "_"), "exact")
        return
    if "error" in case:
        yield exact(f"{name}.error", "accepted", case["error"])
        return
    for section in case["sections"]:
        section.pop("prompt_index")  # always the run's
    yield compare_sections(name, trace_, case["sections"])
    yield exact(f"{name}.result", trace_.result, start_labels(case["result_latents"]))
    yield _compare_one_frame_decode(name, trace_, case["decode"]["slices"])


def _compare_one_frame_decode(name: str, trace_: Trace, slices: list[list[str]]) -> Case:
    numbers = torch.arange(len(trace_.result)).view(1, 1, -1)
    decoded = [trace_.result[int(x)] for x in decode_frames(lambda x: x, numbers)]
    return exact(f"{name}.decode", decoded, [x for part in slices for x in expand(part)])


def _one_frame_defect(options: str, controls: int) -> str:
    given = dict(part.strip().partition("=")[::2] for part in options.split(",") if part.strip())
    known = {"default", "no_2x", "no_4x", "no_post", "target_index", "control_index"}
    if given.keys() - known or "=-" in options or ";-" in options:
        return "[one-frame-option]"
    count, images = len(given.get("control_index", "").split(";")), max(controls, 1)
    if "control_index" in given and not images <= count <= images + ("no_post" not in given):
        return "[control-count]"
    return ""


def _check_training_sample(i: int, case: dict[str, Any]) -> Iterator[Case]:
    name = f"training.{i}.{case['frame_count']}.{case['latent_window_size']}"
    window = case["latent_window_size"]
    if case["one_frame"]:
        trace_ = trace_one_frame(case["one_frame"], case["controls"], window)
        yield compare_sections(name, trace_, case["sections"])
        yield _compare_one_frame_decode(name, trace_, case["decode"]["slices"])
        return
    try:
        SamplePrompt("p", image_path="S" if case["image_given"] else None).check()
        sections = sections_for_frames(case["frame_count"], window)
    except FramePackError as error:
        name += "" if "error" in case else "[too-few-frames]"
        yield Case(f"{name}.error", "error" in case, str(error).replace(" ", "_"), "exact")
        return
    trace_ = trace(plan_video("f1" if case["f1"] else "framepack", sections, window))
    yield compare_sections(name, trace_, case["sections"])
    if case["bulk_decode"]:
        slices = [start_labels(part) for part in case["decode"]["slices"]]
        yield exact(f"{name}.decode", [trace_.result], slices)
    else:
        yield compare_decode(name, trace_, window, case["decode"]["slices"])
