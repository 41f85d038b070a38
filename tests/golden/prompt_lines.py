"""Prompt lines and files of both kinds, what they override, and the command line's defaults."""

from __future__ import annotations

import json
import re
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from framepack_core.cli import build_parser
from framepack_core.parsing.prompt_lines import (
    LINE_OPTIONS,
    given_fields,
    parse_prompt_line,
    read_prompt_file,
)
from framepack_core.parsing.sample_prompts import OPTIONS as SAMPLE_OPTIONS
from framepack_core.parsing.sample_prompts import load_sample_prompts, parse_sample_line
from framepack_core.runtime.errors import FramePackError
from framepack_core.sampling.sections import WINDOW, check_size, plan_video, sections_for_seconds

from .result import Case, exact, todo

RENAMED = {"width": "video_size_width", "height": "video_size_height"}
PATHS = {"i", "ei", "ci", "cim", "cn", "of"}
TEXTS = {*PATHS, "im", "n"}
NUMBER = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*")


def check(folder: Path) -> Iterator[Case]:
    spec = json.loads((folder / "prompt_lines.json").read_text())
    for i, case in enumerate(spec["generate"]["cases"]):
        name = f"generate.{i}{accident(case['input'], LINE_OPTIONS)}"
        yield refused_or_equal(name, case, lambda case: of_line(case["input"]))
    for i, case in enumerate(spec["from_file"]["cases"]):
        yield exact(f"from_file.{i}", list(of_file(case["file_lines"])), case["result"])
    base = spec["apply_overrides"]["base"]
    for i, case in enumerate(spec["apply_overrides"]["cases"]):
        yield exact(f"apply_overrides.{i}", overridden(base, case["input"]), case["result"])
    for i, case in enumerate(spec["check_inputs"]["cases"]):
        yield check_inputs(i, case)
    for i, case in enumerate(spec["training_sample_prompts"]["cases"]):
        name = f"sample.{i}{accident(case['input'], SAMPLE_OPTIONS, of_sample=True)}"
        yield refused_or_equal(name, case, lambda case: of_sample(case["input"]))
    for i, case in enumerate(spec["training_prompt_files"]["cases"]):
        name = f"sample_file.{i}.{case['extension']}{accident_of_file(case)}"
        yield refused_or_equal(name, case, of_sample_file)
    yield from check_defaults(spec["generate_defaults"])


def refused_or_equal(name: str, case: dict[str, Any], read: Callable[[dict], Any]) -> Case:
    """Both sides refuse the case, or both read the same."""
    expected = case.get("result", "refused")
    try:
        return exact(name, read(case), expected)
    except FramePackError as error:
        return exact(name, "refused" if expected == "refused" else f"refused: {error}", expected)


def as_json(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(x) if isinstance(x, tuple) else x for key, x in fields.items()}


def of_line(line: str) -> dict[str, Any]:
    fields = given_fields(parse_prompt_line(line))
    return as_json({RENAMED.get(name, name): value for name, value in fields.items()})


def of_sample(line: str) -> dict[str, Any]:
    return as_json(given_fields(parse_sample_line(line)))


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
    return [{**as_json(given_fields(sample)), "enum": i} for i, sample in enumerate(samples)]


def overridden(base: dict[str, Any], line: str) -> dict[str, Any]:
    """The prompt, the size and what a line changes."""
    settings = parse_prompt_line(line).settings(tuple(base["video_size"]))
    given = {key: value for key, value in settings.items() if value is not None}
    return as_json({"video_size": base["video_size"], **given})


def check_inputs(i: int, case: dict[str, Any]) -> Case:
    """Sizes accepted alike and the same number of sections: seconds are only a way to say it."""
    changes = {"video_size": [256, 320], "latent_window_size": WINDOW, **case["changes"]}
    height, width = changes["video_size"]
    window, sections = changes["latent_window_size"], changes.get("video_sections")
    name = f"check_inputs.{i}"
    if sections and changes.get("fps", 30) != 30:
        name += "[sections-by-fps]"
    if "result" in case and (height % 16 or width % 16):
        name += "[size-16]"

    def read(_case: dict[str, Any]) -> list[int]:
        check_size(width, height)
        count = sections or sections_for_seconds(changes.get("video_seconds", 5.0), window)
        return [height, width, len(plan_video("framepack", count, window).sections)]

    if "result" in case:
        seconds = case["result"][2]
        case = {**case, "result": [*case["result"][:2], sections_for_seconds(seconds, window)]}
    return refused_or_equal(name, case, read)


def check_defaults(expected: dict[str, Any]) -> Iterator[Case]:
    """Every option that there is has the reference's default."""
    defaults = vars(parsed_without_options())
    for option, value in expected.items():
        if option not in defaults:
            yield todo(f"default.{option}")
            continue
        late = defaults[option] is None and value is not None
        yield exact(f"default.{option}{'[default-later]' * late}", defaults[option], value)


def parsed_without_options() -> Namespace:
    return build_parser().parse_args(["generate"])


def accident(line: str, known: Mapping[str, Any], of_sample: bool = False) -> str:
    """The tag of a line that the reference misreads; it cuts at " --", at any case of samples."""
    first, *parts = line.split(" --")
    if first.startswith("--"):
        return "[prompt-first-option]"
    if not of_sample and {"f", "vs"} <= {part.partition(" ")[0] for part in parts}:
        return "[prompt-length-twice]"
    prose = of_sample and re.match(r"(w|h|f|d|s|g|fs|l|n|i|ei|cn|ci|of) ", first, re.IGNORECASE)
    return (
        "[sample-prose]"
        if prose
        else next(filter(None, (_accident_of_option(part, known, of_sample) for part in parts)), "")
    )


def _accident_of_option(part: str, known: Mapping[str, Any], of_sample: bool) -> str:
    name, _, value = part.partition(" ")
    if not name[:1].isalpha():
        return "[prompt-dashes]"
    if "\t" in name:
        return "[prompt-tab]"
    if name == "cn" and of_sample:
        return "[sample-control-video]"
    if name.lower() not in known:
        return "[prompt-unknown]"
    if name != name.lower() and not of_sample:
        return "[prompt-case]"
    if name == "im":
        return "[prompt-image-mask]"
    return _accident_of_value(name.lower(), value, of_sample)


def _accident_of_value(name: str, value: str, of_sample: bool) -> str:
    if not value.strip() and (name in PATHS or of_sample):
        return "[prompt-no-value]"
    if name not in TEXTS and re.fullmatch(r"\s*-.*|\s*[0.]+\s*", value) and not of_sample:
        return "[prompt-range]"
    if of_sample and name not in PATHS and value != value.strip():
        return "[sample-blanks]"
    if of_sample and name not in PATHS and name != "n":
        whole = name in ("w", "h", "f", "d", "s")
        good = NUMBER.fullmatch(value) and not (whole and "." in value)
        clamped = name == "s" and good and not 1 <= int(value) <= 1000
        return "" if good and not clamped else "[sample-number]"
    return ""


def accident_of_file(case: dict[str, Any]) -> str:
    if case["extension"] == "txt" and re.search(r"^\s+#", case["text"], re.MULTILINE):
        return "[sample-comment]"
    if case["extension"] == "toml" and "multiple values" in case.get("error", ""):
        return "[sample-subset]"
    return ""
