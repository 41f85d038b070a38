"""Many videos in one run: a list of prompts with their settings, one a line."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..framepack_core.headless.job import LINE_OPTIONS, AnyJob, parse_prompt_line
from ..framepack_core.parsing.prompt_lines import number_prompts
from ..framepack_core.runtime.errors import FramePackError
from ..framepack_core.runtime.files import read_text
from ..framepack_core.runtime.images import load_image
from ..framepack_core.sampling.sections import check_size, sections_for_seconds
from .comfyui.paths import input_files, input_path
from .comfyui.sockets import blocked, to_image
from .option_inputs import option_inputs
from .types import CATEGORY, schema

TEXT = "the lines below"
DEFAULTS = {"negative_prompt": "", "guidance_scale": 1.0, "flow_shift": 0.0}
SETTINGS = ("width", "height", "video_sections", "seed", "infer_steps")
PICTURES = ("image_path", "end_image_path")
FIELDS = {"prompt", "video_seconds", *DEFAULTS, *SETTINGS, *PICTURES}
Line = dict[str, Any]


class PromptFile(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelPromptFile",
            display_name="FramePack Prompt File",
            category=CATEGORY,
            description="Reads prompts with their settings, one video a line, and runs all that "
            "follows once for each line with the models loaded once. What a line does not say "
            "comes from the widgets.",
            search_aliases=["framepack batch", "prompt list", "from file", "queue", "batch"],
            inputs=[
                io.Combo.Input(
                    "source",
                    options=[TEXT, *input_files(".txt")],
                    default=TEXT,
                    tooltip="A .txt file in ComfyUI's input folder, or the box below.",
                ),
                io.String.Input(
                    "lines",
                    multiline=True,
                    tooltip="One video a line, such as: a cat runs --w 640 --h 480 --vs 3 --d 42. "
                    "Options: --n negative, --w, --h, --f seconds, --vs sections, --d seed, --s "
                    "steps, --l cfg, --fs shift, --i image, --ei end image. Lines that begin with "
                    "# are left out.",
                ),
                *option_inputs(
                    AnyJob,
                    ("width", "height", "sections", "seed", "steps"),
                    optional=False,
                    control=("seed",),
                ),
                io.Image.Input("image", optional=True, tooltip="Where a line has no --i."),
                io.Image.Input("end_image", optional=True, tooltip="Where a line has no --ei."),
            ],
            outputs=[
                io.String.Output(display_name="prompt", is_output_list=True),
                io.String.Output(display_name="negative", is_output_list=True),
                io.Image.Output(display_name="image", is_output_list=True),
                io.Image.Output(display_name="end_image", is_output_list=True),
                io.Int.Output(display_name="width", is_output_list=True),
                io.Int.Output(display_name="height", is_output_list=True),
                io.Int.Output(display_name="sections", is_output_list=True),
                io.Int.Output(display_name="seed", is_output_list=True),
                io.Int.Output(display_name="steps", is_output_list=True),
                io.Float.Output(
                    display_name="cfg", is_output_list=True, tooltip="1 where a line has no --l."
                ),
                io.Float.Output(
                    display_name="shift", is_output_list=True, tooltip="0 where it has no --fs."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        source: str,
        lines: str,
        width: int,
        height: int,
        sections: int,
        seed: int,
        steps: int,
        image: Tensor | None = None,
        end_image: Tensor | None = None,
    ) -> io.NodeOutput:
        widgets = dict(zip(SETTINGS, (width, height, sections, seed, steps), strict=True))
        parsed = {number: _of_line(number, _read, text) for number, text in _lines(source, lines)}
        rows = [_of_line(number, _settings, line, widgets) for number, line in parsed.items()]
        prompt, negative, *numbers = (list(column) for column in zip(*rows, strict=True))
        images = _pictures({n: line.get("image_path") for n, line in parsed.items()}, "i", image)
        names = {n: line.get("end_image_path") for n, line in parsed.items()}
        ends = _pictures(names, "ei", end_image)
        return io.NodeOutput(prompt, negative, images, ends, *numbers)

    @classmethod
    def fingerprint_inputs(cls, source: str | None, lines: str | None, **inputs: Any) -> list[Any]:
        """The text, and when its pictures were last changed."""
        if source is None or lines is None:  # linked: ComfyUI compares where they come from
            return []
        found = _lines(source, lines)
        parsed = [_of_line(number, _read, text) for number, text in found]
        names = [line[option] for line in parsed for option in PICTURES if option in line]
        return [found, [os.path.getmtime(input_path(name)) for name in names]]


def _lines(source: str, lines: str) -> list[tuple[int, str]]:
    """(line number, prompt line) of all that are neither blank nor a comment."""
    text = lines if source == TEXT else read_text(input_path(source))
    return number_prompts(text, source)


def _of_line(number: int, read: Callable[..., Any], *args: Any) -> Any:
    try:
        return read(*args)
    except FramePackError as error:
        raise FramePackError(f"line {number}: {error}") from None


def _read(text: str) -> Line:
    line = parse_prompt_line(text)
    if {"video_seconds", "video_sections"} <= line.keys():
        raise FramePackError("--f and --vs both say how long the video is; give one of them")
    for name, leaf in LINE_OPTIONS.items():
        if leaf.flag in line.keys() - FIELDS:
            raise FramePackError(
                f"--{name}: this node has no output for it; take it out, or use framepack batch"
            )
    return line


def _settings(line: Line, widgets: Line) -> tuple[Any, ...]:
    """The node's outputs for one line but for its pictures."""
    given = {**DEFAULTS, **widgets, **line}
    check_size(given["width"], given["height"])
    return (
        given["prompt"],
        given["negative_prompt"],
        given["width"],
        given["height"],
        _sections(given),
        given["seed"],
        given["infer_steps"],
        given["guidance_scale"],
        given["flow_shift"],
    )


def _sections(line: Line) -> int:
    """Seconds are only there if the line said them, so they win over the node's sections."""
    if "video_seconds" in line:
        return sections_for_seconds(line["video_seconds"])
    return line["video_sections"]


def _pictures(names: dict[int, str | None], option: str, default: Tensor | None) -> list[Any]:
    """The image of each line: its own, of ComfyUI's input folder, or the default.

    Where there is no image at all, only what uses this output is stopped.
    """
    missing = [number for number, name in names.items() if name is None and default is None]
    if len(missing) == len(names):
        problem = f"no line has --{option} and no image is connected to FramePack Prompt File"
        return [blocked(problem)] * len(names)
    if missing:
        raise FramePackError(
            f"line {missing[0]}: no --{option}, which other lines have; give one to every line, or "
            "connect an image for those without"
        )
    return [
        default if name is None else _of_line(number, _load, name) for number, name in names.items()
    ]


def _load(name: str) -> Tensor:
    return to_image(load_image(input_path(name))[None])
