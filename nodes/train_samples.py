"""Samples while a LoRA is trained, encoded before and decoded by ComfyUI's own objects."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..framepack_core.parsing.sample_prompts import (
    SamplePrompt,
    load_sample_prompts,
    parse_sample_line,
)
from ..framepack_core.runtime.errors import FramePackError
from ..framepack_core.runtime.files import split_lines
from ..framepack_core.runtime.images import save_png
from ..framepack_core.sampling.sections import MAX_SIZE, SIZE_MULTIPLE
from ..framepack_core.training.config import TrainConfig
from .comfyui.paths import input_path, temporary_folder
from .comfyui.sockets import to_uint8
from .comfyui.train_samples import Samples
from .dataset import TRAINING
from .option_inputs import option_inputs
from .types import SamplePromptsSocket, advanced, schema


class SampleWhileTraining(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        size = {"min": SIZE_MULTIPLE, "max": MAX_SIZE, "step": SIZE_MULTIPLE}
        return schema(
            node_id="FPReelSamplePrompts",
            display_name="FramePack Sample Prompts",
            category=TRAINING,
            description="Videos or pictures made with the LoRA while it is trained, by the same "
            "sampler as FramePack Sampler, in loras/sample of ComfyUI's output folder.",
            search_aliases=["sample prompts", "preview training", "validation video"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoders."),
                io.Vae.Input("vae", tooltip="A HunyuanVideo VAE."),
                io.ClipVision.Input("clip_vision", tooltip="SigLIP."),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="",
                    tooltip="One sample a line, with options behind it: a cat runs --i start.png "
                    "--w 640 --h 480 --f 73 --d 42 --s 25. Also --ei end image, --ci control "
                    "image, --of one-frame options, --g guidance, --l cfg, --n negative.",
                ),
                *option_inputs(TrainConfig, ["every_steps", "at_first"], optional=False),
                io.Int.Input("width", default=640, **size, tooltip="Where a line has no --w."),
                io.Int.Input("height", default=640, **size, tooltip="Where a line has no --h."),
                io.Int.Input(
                    "sections",
                    default=1,
                    min=1,
                    max=100,
                    tooltip="Length where a line has neither --f nor --vs.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="Start image where a line has no --i, and for one-frame the control "
                    "image where it has no --ci.",
                ),
                advanced(
                    io.String.Input(
                        "file",
                        default="",
                        optional=True,
                        tooltip="A .txt, .toml or .json file in ComfyUI's input folder in place of "
                        "the lines, as musubi-tuner has them.",
                    )
                ),
            ],
            outputs=[SamplePromptsSocket.Output(display_name="samples")],
        )

    @classmethod
    def execute(
        cls,
        clip: Any,
        vae: Any,
        clip_vision: Any,
        prompts: str,
        every_steps: int,
        at_first: bool,
        width: int,
        height: int,
        sections: int,
        image: Tensor | None = None,
        file: str = "",
    ) -> io.NodeOutput:
        found = load_sample_prompts(input_path(file)) if file.strip() else list(_parsed(prompts))
        start = None if image is None else _picture(image)
        found = [_completed(_placed(p), width, height, sections, start) for p in found]
        return io.NodeOutput(Samples(found, clip, vae, clip_vision, every_steps, at_first))


def _parsed(text: str) -> Iterator[SamplePrompt]:
    lines = [(i, line.strip()) for i, line in enumerate(split_lines(text), 1)]
    lines = [(i, line) for i, line in lines if line and not line.startswith("#")]
    if not lines:
        raise FramePackError("prompts: empty; write one sample a line, or name a file")
    for number, line in lines:
        try:
            yield parse_sample_line(line)
        except FramePackError as error:
            raise FramePackError(f"prompts, line {number}: {error}") from None


def _placed(prompt: SamplePrompt) -> SamplePrompt:
    """Pictures are those of ComfyUI's input folder."""
    single = {name: getattr(prompt, name) for name in ("image_path", "end_image_path")}
    several = {
        name: getattr(prompt, name) for name in ("control_image_path", "control_image_mask_path")
    }
    placed = {name: str(input_path(path)) for name, path in single.items() if path}
    many = {name: tuple(str(input_path(p)) for p in paths) for name, paths in several.items()}
    return prompt.model_copy(update={**placed, **many})


def _completed(
    prompt: SamplePrompt, width: int, height: int, sections: int, start: str | None
) -> SamplePrompt:
    """A prompt with the node's values for what it does not say."""
    length = prompt.video_sections
    if length is None and prompt.frame_count is None:
        length = sections
    return prompt.model_copy(
        update={
            "width": prompt.width or width,
            "height": prompt.height or height,
            "video_sections": length,
            "image_path": prompt.image_path or start,
            "control_image_path": prompt.control_image_path or ((start,) if start else ()),
        }
    )


def _picture(image: Tensor) -> str:
    """The first image of a batch as a file, which is what prompts name."""
    path = temporary_folder() / f"fpreel_sample_{uuid.uuid4().hex}.png"
    save_png(path, to_uint8(image)[0])
    return str(path)
