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

from framepack_core.headless.job import VideoJob
from framepack_core.parsing.sample_prompts import SamplePrompt
from framepack_core.parsing.section_spec import SectionSpec, parse_spec
from framepack_core.runtime.errors import FramePackError
from framepack_core.sampling.decode import decode_frames, decode_sections, decode_slices
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
    sections_for_seconds,
    sections_to_hold,
)

from .result import Case, exact, exact_ours, refusal, refused
from .section_spec import Refused, accident, documented, named_fault

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


def compare_sections(
    name: str, actual: Trace, expected: list[dict[str, Any]], *, tag: str = "", rule: Any = None
) -> Case:
    """Every section as the reference has it; with a tag, as the trace `rule` of ours has it."""
    pairs = [as_given(a, e) for a, e in zip(actual.sections, expected, strict=False)]
    left, right = [a for a, _ in pairs], [e for _, e in pairs]
    left += actual.sections[len(pairs) :]
    right += expected[len(pairs) :]
    if not tag:
        return exact(f"{name}.sections", left, right)
    kept = [{key: r[key] for key in x} for x, r in zip(left, rule.sections, strict=False)]
    inputs = [name, "sections"]
    return exact_ours(f"{name}.sections", tag, left, rule=kept, reference=right, inputs=inputs)


def compare_decode(name: str, actual: Trace, window: int, case: dict[str, Any]) -> Iterator[Case]:
    """The slices in the order that the reference decodes them in, and the frames of the clip."""
    ours = [actual.result[a:b] for a, b in decode_slices(len(actual.result), window)][::-1]
    theirs = [start_labels(part) for part in case["slices"]]
    sections = (len(actual.result) - 1) // window
    if len(theirs) >= sections:
        yield exact(f"{name}.decode", ours, theirs)
        if "pixel_frames" in case:
            frames = count_frames(len(actual.result), window)
            yield exact(f"{name}.pixel_frames", frames, case["pixel_frames"])
        return
    every = whole_slices(actual.result, window)
    yield exact(f"{name}.decode.of-the-end", every[-len(theirs) :], theirs)
    tag, inputs = "decode-by-seconds", [name, actual.result]
    yield exact_ours(f"{name}.decode", tag, ours, rule=every, reference=theirs, inputs=inputs)


def whole_slices(result: list[str], window: int) -> list[list[str]]:
    """All slices of a clip, last first: a section and the one after it, the start with the first.

    Nothing comes after the last section.
    """
    parts = [result[i : i + window] for i in range(1, len(result), window)]
    slices = [part + after for part, after in zip(parts, [*parts[1:], []], strict=True)]
    return [*reversed(slices[1:]), result[:1] + slices[0]]


def count_frames(latents: int, window: int) -> int:
    """The frames of a clip decoded section by section."""
    clip = torch.zeros(1, 1, latents, 1, 1)
    decode = lambda x: torch.zeros(1, 3, 4 * x.shape[2] - 3, 1, 1)  # noqa: E731
    return sum(part.shape[2] for part in decode_sections(decode, clip, window))


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
    for name, check_case in (
        ("musubi", _check_musubi),
        ("musubi_one_frame", _check_one_frame),
        ("musubi_training_samples", _check_training_sample),
    ):
        for i, case in enumerate(spec.get(name, [])):
            try:
                yield from check_case(i, case)
            except NotCoveredError as error:
                yield Case(f"{name}.{i}", False, str(error).replace(" ", "_"), "exact")


class NotCoveredError(Exception):
    """A case has a setting that nothing here reads."""


def _check_gradio(case: dict[str, Any]) -> Iterator[Case]:
    seconds, window = case["total_second_length"], case["latent_window_size"]
    mode = {"iad": "framepack", "f1": "f1"}[case["mode"]]
    plan = plan_video(mode, sections_for_seconds(seconds, window), window)
    name = f"gradio.{mode}.{seconds}.{window}"
    trace_ = trace(plan)
    yield compare_sections(name, trace_, case["sections"])
    frames = count_frames(len(trace_.result), window)
    yield exact(f"{name}.pixel_frames", frames, case["sections"][-1]["pixel_frames"])


def _parse(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
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
    known, rest = parser.parse_known_args(args)
    if rest:
        raise NotCoveredError(f"arguments that nothing here reads: {rest}")
    return known


def _known_defect(args: argparse.Namespace, sections: int) -> tuple[str, tuple[str, ...]]:
    """The tag of the defect that shapes a case, and what our error has to name if it is one."""
    paddings = args.latent_paddings.split(",") if args.latent_paddings else []
    if negative := [x.strip() for x in paddings if x.strip().startswith("-")]:
        return "paddings-negative", (negative[0], "paddings")
    if paddings and all(x.strip().isdecimal() for x in paddings) and len(paddings) != sections:
        return "paddings-count", (f"{len(paddings)} given", f"{sections} sections")
    if args.video_sections and args.fps != 30:
        return "sections-by-fps", ()
    texts = [text for text in (args.prompt, args.image_path) if text]
    if tags := [tag for tag in map(accident, texts) if tag]:
        meant = map(documented, texts)
        return tags[0], sum((x.faults for x in meant if isinstance(x, Refused)), ())
    for text in texts:
        if outside := [x for x in parse_spec(text).texts if not -sections <= x < sections]:
            return "spec-no-section", (f"section {outside[0]}", f"of {sections}")
    return "", ()


def _without_ignored(args: argparse.Namespace, end_image: bool) -> bool:
    """Take out of args what the command line ignores; whether the end image is left."""
    guidance = {
        "latent_paddings": args.latent_paddings,
        "end_image_path": "E" if end_image else None,
    }
    left = VideoJob(prompt={"f1": args.f1}, guidance=guidance).without_ignored().guidance
    args.latent_paddings = left.latent_paddings
    return left.end_image_path is not None


def _check_musubi(_: int, case: dict[str, Any]) -> Iterator[Case]:
    args = _parse(case["args"])
    words = case["args"][2:] if case["args"][:2] == ["--prompt", "p"] else case["args"]
    name = "musubi." + "_".join(words or ["default"]).replace(" ", "")
    name += "_end_image" * case["end_image"]
    if case["controls"] or args.one_frame_inference:
        raise NotCoveredError("a video with control images")
    window = args.latent_window_size
    sections = args.video_sections or sections_for_seconds(args.video_seconds, window)
    end_image = _without_ignored(args, case["end_image"])
    tag, names = _known_defect(args, sections)
    try:
        trace_ = _trace_musubi(args, sections, end_image)
    except FramePackError as error:
        yield _refusal(name, tag, names, error, case)
        if "error" not in case:
            yield from _check_the_rest(name, tag, args, case)
        return
    if "error" in case or names:
        yield exact(f"{name}.error", "accepted", refused(*names))
        return
    if tag == "sections-by-fps":
        yield _check_count(name, trace_, args, case)
        sections, tag = len(case["sections"]), ""
        trace_ = _trace_musubi(args, sections, end_image)
    meant = None
    if tag:
        written = {key: _canonical(getattr(args, key)) for key in ("prompt", "image_path")}
        args_of_rule = argparse.Namespace(**{**vars(args), **written})
        meant = _trace_musubi(args_of_rule, sections, end_image)
    yield from _compare_musubi(name, trace_, args, case, tag, meant)


def _compare_musubi(
    name: str,
    trace_: Trace,
    args: argparse.Namespace,
    case: dict[str, Any],
    tag: str = "",
    rule: Trace | None = None,
) -> Iterator[Case]:
    case = _with_known_images(case, parse_spec(args.image_path))
    texts = _with_default(parse_spec(args.prompt))
    for section in case["sections"]:
        index = section["prompt_index"]
        section["prompt_index"] = texts.get(index, f"the text of {index}")
    yield compare_sections(name, trace_, case["sections"], tag=tag, rule=rule)
    expected = start_labels(case["result_latents"])
    yield exact(f"{name}.result", trace_.result, expected)
    if args.bulk_decode:
        yield exact(f"{name}.decode", [trace_.result], [expected])
        return
    yield from compare_decode(name, trace_, args.latent_window_size, case["decode"])


def _refusal(
    name: str, tag: str, names: tuple[str, ...], error: Exception, case: dict[str, Any]
) -> Case:
    """A case that we refuse: as the reference does, or by the rule of its tag."""
    if not names:
        reference = "refused" if "error" in case else "accepted"
        return exact(f"{name}.error", "refused", reference)
    if tag.startswith("spec-") and tag != "spec-no-section":
        names = named_fault(error, names)
    rule = refused(*names)
    reference = rule if "error" in case else "accepted"
    actual = refusal(error, *names)
    inputs = [name, "error"]
    return exact_ours(f"{name}.error", tag, actual, rule=rule, reference=reference, inputs=inputs)


def _check_the_rest(
    name: str, tag: str, args: argparse.Namespace, case: dict[str, Any]
) -> Iterator[Case]:
    """What we refuse, with what the reference leaves out or fills in written as it took it."""
    changed = dict(vars(args))
    if tag != "paddings-count":
        return
    window = args.latent_window_size
    starts = [indices(section["latent_indices"])[0] for section in case["sections"]]
    changed["latent_paddings"] = ",".join(str((start - 1) // window) for start in starts)
    args = argparse.Namespace(**changed)
    trace_ = _trace_musubi(args, len(case["sections"]), case["end_image"])
    yield from _compare_musubi(f"{name}.as-it-took-it", trace_, args, case)


def _check_count(name: str, trace_: Trace, args: argparse.Namespace, case: dict[str, Any]) -> Case:
    """The number of sections is the one that was given, whatever --fps is."""
    sections, window = args.video_sections, args.latent_window_size
    rule: dict[str, Any] = {"sections": sections, "latents": 1 + sections * window}
    actual = {"sections": len(trace_.sections), "latents": len(trace_.result)}
    if not args.f1:
        short = [*range(sections - 1, -1, -1)]
        rule["paddings"] = short if sections <= 4 else [3, *[2] * (sections - 3), 1, 0]
        if args.latent_paddings:
            rule["paddings"] = [int(x) for x in args.latent_paddings.split(",")]
        actual["paddings"] = [section["latent_padding"] for section in trace_.sections]
    reference = {"sections": len(case["sections"]), "latents": case["result_latent_frames"]}
    tag = "sections-by-fps"
    return exact_ours(f"{name}.count", tag, actual, rule=rule, reference=reference, inputs=name)


def _canonical(text: str | None) -> str | None:
    """A spec that says in full, a part for each section, what our grammar makes of this one."""
    if text is None:
        return None
    texts = documented(text)
    assert not isinstance(texts, Refused)
    parts = (f"{key}:{part.replace(';;;', chr(92) + ';;;')}" for key, part in texts.items())
    return ";;;".join(parts)


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


def _trace_musubi(args: argparse.Namespace, sections: int, end_image: bool) -> Trace:
    """A run with prompts as they are and, for every image, a latent that tells its key."""
    images, prompts = parse_spec(args.image_path), parse_spec(args.prompt)
    key_of = _image_keys(images)
    paddings = parse_paddings(args.latent_paddings) if args.latent_paddings else None
    plan = plan_video("f1" if args.f1 else "framepack", sections, args.latent_window_size, paddings)
    plan = plan.scheduled(images.resolve(sections), "image")
    plan = plan.scheduled(prompts.resolve(sections), "prompt")
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
    if case["end_image"]:
        raise NotCoveredError("an edit with an end image")
    options, controls = args.one_frame_inference, case["controls"]
    window = args.latent_window_size
    tag, names = _one_frame_defect(options, controls)
    name = f"one_frame.{i}"
    try:
        trace_ = trace_one_frame(options, controls, window)
    except FramePackError as error:
        yield _refusal(f"{name}.{options}.{controls}", tag, names, error, case)
        if tag == "control-count" and "error" not in case:
            taken = case["sections"][0]["clean_latent_indices"]
            trace_ = trace_one_frame(_with_indices(options, taken), controls, window)
            yield from _compare_one_frame(f"{name}.as-it-took-it", trace_, case)
        return
    if "error" in case or names:
        yield exact(f"{name}.error", "accepted", refused(*names))
        return
    yield from _compare_one_frame(name, trace_, case)


def _compare_one_frame(name: str, trace_: Trace, case: dict[str, Any]) -> Iterator[Case]:
    for section in case["sections"]:
        section.pop("prompt_index")  # always the run's
    yield compare_sections(name, trace_, case["sections"])
    yield exact(f"{name}.result", trace_.result, start_labels(case["result_latents"]))
    yield _compare_one_frame_decode(name, trace_, case["decode"]["slices"])


def _with_indices(options: str, taken: str | list[int]) -> str:
    """The options with these control indices."""
    rest = [x for x in options.split(",") if x.strip() and "control_index" not in x]
    return ",".join([*rest, f"control_index={';'.join(map(str, indices(taken)))}"])


def _compare_one_frame_decode(name: str, trace_: Trace, slices: list[list[str]]) -> Case:
    numbers = torch.arange(len(trace_.result)).view(1, 1, -1)
    decoded = [trace_.result[int(x)] for x in decode_frames(lambda x: x, numbers)]
    return exact(f"{name}.decode", decoded, [x for part in slices for x in expand(part)])


def _one_frame_defect(options: str, controls: int) -> tuple[str, tuple[str, ...]]:
    """The tag of what the reference lets pass, and what our error has to name."""
    given = dict(part.strip().partition("=")[::2] for part in options.split(",") if part.strip())
    known = {"default", "no_2x", "no_4x", "no_post", "target_index", "control_index"}
    if unknown := sorted(given.keys() - known):
        return "one-frame-option", (unknown[0], "unknown")
    if negative := re.search(r"[=;]\s*(-\d+)", options):
        return "one-frame-option", (negative[1], "index")
    count, images = len(given.get("control_index", "").split(";")), max(controls, 1)
    if "control_index" in given and not images <= count <= images + ("no_post" not in given):
        return "control-count", (f"{count} values", f"{images} control image")
    return "", ()


def _check_training_sample(i: int, case: dict[str, Any]) -> Iterator[Case]:
    name = f"training.{i}.{case['frame_count']}.{case['latent_window_size']}"
    frames, window = case["frame_count"], case["latent_window_size"]
    if case["one_frame"]:
        trace_ = trace_one_frame(case["one_frame"], case["controls"], window)
        yield compare_sections(name, trace_, case["sections"])
        yield _compare_one_frame_decode(name, trace_, case["decode"]["slices"])
        return
    if case["controls"]:
        raise NotCoveredError("a video with control images")
    try:
        SamplePrompt(prompt="p", image_path="S" if case["image_given"] else None).check()
    except FramePackError as error:
        yield _refusal(name, "", (), error, case)
        return
    sections, there = sections_to_hold(frames, window), (frames - 1) // (4 * window)
    if sections != there:
        tag, rule = "frames-filled", there + 1
        yield exact_ours(name, tag, sections, rule=rule, reference=there, inputs=name)
        return
    trace_ = trace(plan_video("f1" if case["f1"] else "framepack", sections, window))
    yield compare_sections(name, trace_, case["sections"])
    yield exact(f"{name}.frames", 4 * len(trace_.result) - 3, case["video_shape"][2])
    if case["bulk_decode"]:
        slices = [start_labels(part) for part in case["decode"]["slices"]]
        yield exact(f"{name}.decode", [trace_.result], slices)
    else:
        yield from compare_decode(name, trace_, window, case["decode"])
