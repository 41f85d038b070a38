"""Prompt lines and files of both kinds, what they override, and the command line's defaults."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from framepack_core.cli import read_command
from framepack_core.cli.commands import Generate
from framepack_core.headless.job import LINE_OPTIONS, AnyJob, parse_prompt_line
from framepack_core.headless.output import Output
from framepack_core.headless.request import read_plan
from framepack_core.lora.apply import open_loras
from framepack_core.parsing.json_toml import parse_toml
from framepack_core.parsing.prompt_lines import read_prompt_file
from framepack_core.parsing.sample_prompts import OPTIONS as SAMPLE_OPTIONS
from framepack_core.parsing.sample_prompts import (
    SamplePrompt,
    load_sample_prompts,
    parse_sample_line,
)
from framepack_core.runtime.errors import FramePackError
from framepack_core.runtime.options import leaves
from framepack_core.sampling.sections import WINDOW, check_size, plan_video, sections_for_seconds

from .result import Case, exact, exact_ours, refusal, refused, todo

RENAMED = {"width": "video_size_width", "height": "video_size_height"}
PATHS = {"i", "ei", "ci", "cim", "cn", "of"}
TEXTS = {*PATHS, "im", "n"}
NUMBER = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*")
REFUSED = "refused"

# What our lines mean, as documented: the key that an option sets, and the values that it takes.
COUNT = (int, lambda x: x >= 1)
SEED = (int, lambda x: 0 <= x < 2**64)
SCALE = (float, lambda x: 0 <= x < math.inf)
ABOVE_ZERO = (float, lambda x: 0 < x < math.inf)
RATIO = (float, lambda x: 0 <= x <= 1)
PATH = (str, bool)
TEXT = (str, lambda x: True)
SHARED = {
    "d": ("seed", SEED),
    "vs": ("video_sections", COUNT),
    "n": ("negative_prompt", TEXT),
    "i": ("image_path", PATH),
    "ei": ("end_image_path", PATH),
    "ci": ("control_image_path", PATH),
    "cim": ("control_image_mask_path", PATH),
}
LINE = {
    **SHARED,
    "w": ("video_size_width", COUNT),
    "h": ("video_size_height", COUNT),
    "of": ("one_frame_inference", PATH),
    "f": ("video_seconds", ABOVE_ZERO),
    "s": ("infer_steps", COUNT),
    "g": ("guidance_scale", SCALE),
    "l": ("guidance_scale", SCALE),
    "fs": ("flow_shift", ABOVE_ZERO),
    "im": ("image_mask_path", PATH),
    "mcrr": ("magcache_retention_ratio", RATIO),
    "mct": ("magcache_threshold", SCALE),
    "mck": ("magcache_k", COUNT),
}
SAMPLE = {
    **SHARED,
    "w": ("width", COUNT),
    "h": ("height", COUNT),
    "of": ("one_frame", PATH),
    "f": ("frame_count", COUNT),
    "s": ("sample_steps", COUNT),
    "g": ("guidance_scale", SCALE),
    "l": ("cfg_scale", SCALE),
    "fs": ("discrete_flow_shift", ABOVE_ZERO),
}
REPEATED = {"ci", "cim"}


class Refused(Exception):
    """What our rules make of a line that is wrong: an error that names these."""


def documented(line: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What our rules make of a line, read by this file's own means."""
    words = [m for m in re.finditer(r"\S+", line) if re.match(r"--[A-Za-z]", m[0])]
    ends = [*(word.start() for word in words), len(line)]
    found: dict[str, Any] = {"prompt": _text(line[: ends[0]])}
    for word, end in zip(words, ends[1:], strict=True):
        name = word[0].removeprefix("--").lower()
        if name not in options:
            raise Refused(word[0])
        key, (kind, accepts) = options[name]
        text = _text(line[word.end() : end])
        try:
            value = kind(text)
        except ValueError:
            raise Refused(word[0], repr(text)[1:-1]) from None
        if not accepts(value):
            raise Refused(word[0], repr(text)[1:-1])
        found[key] = [*found.get(key, []), value] if name in REPEATED else value
    return found


def documented_file(case: dict[str, Any]) -> list[dict[str, Any]]:
    """What our rules make of a file of sample prompts that has a tag."""
    if case["extension"] != "toml":
        lines = (line.strip() for line in case["text"].split("\n"))
        samples = [documented(x, SAMPLE) for x in lines if x and not x.startswith("#")]
    else:
        shared = parse_toml(case["text"], "case")["prompt"]
        samples = [{**shared, **subset} for subset in shared.pop("subset")]
    return [{**sample, "enum": i} for i, sample in enumerate(samples)]


def _text(text: str) -> str:
    return re.sub(r"(?<!\S)\\--", "--", text.strip())


def check(folder: Path) -> Iterator[Case]:
    spec = json.loads((folder / "prompt_lines.json").read_text(encoding="utf-8"))
    for i, case in enumerate(spec["generate"]["cases"]):
        line = case["input"]
        tag, rule = accident(line, LINE_OPTIONS), lambda line=line: documented(line, LINE)
        yield judge(f"generate.{i}", tag, case, line, lambda line=line: of_line(line), rule)
    for i, case in enumerate(spec["from_file"]["cases"]):
        yield exact(f"from_file.{i}", list(of_file(case["file_lines"])), case["result"])
    base = {**spec["generate_defaults"], **spec["apply_overrides"]["base"]}
    for i, case in enumerate(spec["apply_overrides"]["cases"]):
        yield exact(f"apply_overrides.{i}", overridden(base, case["input"]), case["result"])
    for i, case in enumerate(spec["check_inputs"]["cases"]):
        yield check_inputs(i, case)
    for i, case in enumerate(spec["training_sample_prompts"]["cases"]):
        line = case["input"]
        tag = accident(line, SAMPLE_OPTIONS, of_sample=True)
        rule = lambda line=line: documented(line, SAMPLE)  # noqa: E731
        yield judge(f"sample.{i}", tag, case, line, lambda line=line: of_sample(line), rule)
    for i, case in enumerate(spec["training_prompt_files"]["cases"]):
        read, rule = (lambda f=f, case=case: f(case) for f in (of_sample_file, documented_file))
        name = f"sample_file.{i}.{case['extension']}"
        yield judge(name, accident_of_file(case), case, case["text"], read, rule)
    yield from check_defaults(spec["generate_defaults"])


def judge(
    name: str,
    tag: str,
    case: dict[str, Any],
    inputs: Any,
    read: Callable[[], Any],
    rule: Callable[[], Any],
) -> Case:
    """Both sides refuse the case, or both read the same; with a tag, as our rule does."""
    reference = case.get("result", REFUSED)
    names: tuple[str, ...] = ()
    expected = reference
    if tag:
        try:
            expected = rule()
        except Refused as error:
            names, expected = error.args, refused(*error.args)
    try:
        actual = read()
    except FramePackError as error:
        as_reference = reference == REFUSED and not names
        actual = REFUSED if as_reference else refusal(error, *names)
    if not tag:
        return exact(name, actual, reference)
    kind = name.partition(".")[0]
    inputs = [kind, inputs]
    return exact_ours(name, tag, actual, rule=expected, reference=reference, inputs=inputs)


def as_json(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(x) if isinstance(x, tuple) else x for key, x in fields.items()}


def of_line(line: str) -> dict[str, Any]:
    fields = parse_prompt_line(line)
    return as_json({RENAMED.get(name, name): value for name, value in fields.items()})


def given(sample: SamplePrompt) -> dict[str, Any]:
    return as_json(sample.model_dump(exclude_unset=True))


def of_sample(line: str) -> dict[str, Any]:
    return given(parse_sample_line(line))


def of_file(lines: list[str]) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.txt"
        path.write_text("".join(lines), encoding="utf-8")
        for _, line in read_prompt_file(path):
            yield of_line(line)


def of_sample_file(case: dict[str, Any]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"prompts.{case['extension']}"
        path.write_text(case["text"], encoding="utf-8")
        samples = load_sample_prompts(path)
    return [{**given(sample), "enum": i} for i, sample in enumerate(samples)]


def overridden(base: dict[str, Any], line: str) -> dict[str, Any]:
    """The prompt, the size and what a line changes; base: the command line's settings."""
    fields = parse_prompt_line(line)
    width, height = AnyJob(prompt={"video_size": base["video_size"]}).with_line(fields).prompt.size
    others = {key: value for key, value in fields.items() if key not in RENAMED}
    given = {"video_size": [height, width], **as_json(others)}
    kept = {"prompt", "video_size"}
    return {k: x for k, x in given.items() if k in kept or x != base.get(k)}


def check_inputs(i: int, case: dict[str, Any]) -> Case:
    """Sizes accepted alike and the same number of sections: seconds are only a way to say it."""
    changes = {"video_size": [256, 320], "latent_window_size": WINDOW, **case["changes"]}
    height, width = changes["video_size"]
    window, sections = changes["latent_window_size"], changes.get("video_sections")
    tag = "sections-by-fps" if sections and changes.get("fps", 30) != 30 else ""
    if "result" in case and (height % 16 or width % 16):
        tag = "size-16"

    def read() -> list[int]:
        check_size(width, height)
        count = sections or sections_for_seconds(changes.get("video_seconds", 5.0), window)
        return [height, width, len(plan_video("framepack", count, window).sections)]

    def rule() -> list[int]:
        if tag == "size-16":
            raise Refused(f"{width}x{height}")
        return [height, width, sections]

    if "result" in case:
        seconds = case["result"][2]
        case = {**case, "result": [*case["result"][:2], sections_for_seconds(seconds, window)]}
    return judge(f"check_inputs.{i}", tag, case, case["changes"], read, rule)


def check_defaults(expected: dict[str, Any]) -> Iterator[Case]:
    """Every option that there is has the reference's default, or has it where it is used."""
    defaults = {x.flag: None if x.default == () else x.default for x in leaves(Generate)}
    for option, value in expected.items():
        if option not in defaults:
            yield todo(f"default.{option}")
        elif option in LATE:
            actual = [defaults[option], LATE[option](), LATE[option](value)]
            # Left out and given as the reference has it, it comes to the same.
            rule = [None, LATE[option](value), LATE[option](value)]
            yield exact_ours(
                f"default.{option}",
                "default-later",
                actual,
                rule=rule,
                reference=value,
                inputs=["default", option],
            )
        elif option == "attn_mode":
            yield exact_ours(
                f"default.{option}",
                "attention-measured",
                defaults[option],
                rule="auto",
                reference=value,
                inputs=["default", option],
            )
        else:
            yield exact(f"default.{option}", defaults[option], value)


def parsed(*options: str) -> Generate:
    return read_command(["generate", *options])[1]


def _given(option: str, value: Any) -> list[str]:
    return [] if value is None else [f"--{option}", str(value)]


def _plan_of(option: str) -> Callable[..., list[Any]]:
    """The window and the sections that the command line plans for a value of this option."""

    def plan(value: Any = None) -> list[Any]:
        made = read_plan(parsed("--prompt", "p", *_given(option, value)))
        return [made.window, len(made.sections)]

    return plan


def _fps(value: float | None = None) -> float:
    return float(Output(parsed(*_given("fps", value)).output, "name").fps)


def _multiplier(value: float | None = None) -> float:
    """The strength that a LoRA file without one gets."""
    return value if value is not None else _strength_of_a_lora()


def _strength_of_a_lora() -> float:
    import torch
    from safetensors.torch import save_file

    module = "transformer_blocks.0.attn.to_q"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lora.safetensors"
        names = (f"{module}.lora_A.weight", f"{module}.lora_B.weight")
        save_file({name: torch.ones(2, 2) for name in names}, path)
        return open_loras([path], {f"{module}.weight": (2, 2)})[0].strength


# What an option that is None until it is used comes to, left out or with a value.
LATE: dict[str, Callable[..., Any]] = {
    "fps": _fps,
    "latent_window_size": _plan_of("latent_window_size"),
    "video_seconds": _plan_of("video_seconds"),
    "lora_multiplier": _multiplier,
}


def accident(line: str, known: Mapping[str, Any], of_sample: bool = False) -> str:
    """The tag of a line that the reference misreads; it cuts at " --", at any case of samples."""
    first, *parts = line.split(" --")
    if first.startswith("--"):
        return "prompt-first-option"
    if of_sample and first != first.strip():
        return "sample-blanks"
    prose = of_sample and re.match(r"(w|h|f|d|s|g|fs|l|n|i|ei|cn|ci|of) ", first, re.IGNORECASE)
    return (
        "sample-prose"
        if prose
        else next(filter(None, (_accident_of_option(part, known, of_sample) for part in parts)), "")
    )


def _accident_of_option(part: str, known: Mapping[str, Any], of_sample: bool) -> str:
    name, _, value = part.partition(" ")
    if not name[:1].isalpha():
        return "prompt-dashes"
    if "\t" in name:
        return "prompt-tab"
    if name == "cn" and of_sample:
        return "sample-control-video"
    if name.lower() not in known:
        return "prompt-unknown"
    if of_sample and name.lower() in ("cim", "vs"):
        return "sample-more"
    if name != name.lower() and not of_sample:
        return "prompt-case"
    if name == "im":
        return "prompt-image-mask"
    return _accident_of_value(name.lower(), value, of_sample)


def _accident_of_value(name: str, value: str, of_sample: bool) -> str:
    if not value.strip() and (name in PATHS or of_sample):
        return "prompt-no-value"
    if name not in TEXTS and re.fullmatch(r"\s*-.*|\s*[0.]+\s*", value) and not of_sample:
        return "prompt-range"
    if of_sample and name not in PATHS and value != value.strip():
        return "sample-blanks"
    if of_sample and name not in PATHS and name != "n":
        whole = name in ("w", "h", "f", "d", "s")
        good = NUMBER.fullmatch(value) and not (whole and "." in value)
        clamped = name == "s" and good and not 1 <= int(value) <= 1000
        return "" if good and not clamped else "sample-number"
    return ""


def accident_of_file(case: dict[str, Any]) -> str:
    if case["extension"] not in ("txt", "toml", "json"):
        return "sample-ending"
    if case["extension"] == "txt" and re.search(r"^\s+#", case["text"], re.MULTILINE):
        return "sample-comment"
    if case["extension"] == "toml" and "multiple values" in case.get("error", ""):
        return "sample-subset"
    return ""
