"""LoRAs beside the layers of a MODEL, and models saved with everything merged in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from comfy_api.latest import io, ui

from ..framepack_core.lora.apply import LoraUse
from ..framepack_core.runtime.errors import FramePackError
from ..framepack_core.runtime.files import split_lines
from ..framepack_core.weights.files import GGUF, SAFETENSORS
from .comfyui.lora import (
    SAVED_AS,
    add_loras,
    read_loras,
    save_merged,
)
from .comfyui.paths import (
    BUILT_IN_LORAS,
    diffusion_models_folder,
    lora_choices,
    lora_path,
    output_folder,
    output_names,
    trained_path,
)
from .comfyui.progress import show_text
from .comfyui.section_run import check_model
from .types import CATEGORY, advanced, schema

LORA = f"{CATEGORY}/lora"
MODELS, OUTPUT = "models/diffusion_models", "output"


def parse_more(text: str) -> list[tuple[str, float]]:
    """(file, strength) of each line such as `style.safetensors: 0.8`; without a number it is 1."""
    found = []
    for line in filter(None, map(str.strip, split_lines(text))):
        name, separator, number = line.rpartition(":")
        try:
            found.append((name.strip(), float(number)) if separator else (line, 1.0))
        except ValueError:
            raise FramePackError(
                f"more_loras: {number.strip()!r} in {line!r} is not a number; write a line such "
                "as style.safetensors: 0.8"
            ) from None
    return found


class ApplyLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelApplyLora",
            display_name="FramePack Apply LoRA",
            category=LORA,
            description="Applies a LoRA of any trainer (musubi-tuner, diffusion-pipe, diffusers, "
            "PEFT, OneTrainer, LyCORIS, ComfyUI), for FramePack or HunyuanVideo, and reports what "
            "of it fits. Chain several of these for several LoRAs. The weights stay as they are, "
            "also in fp8.",
            search_aliases=[
                "lora",
                "framepack lora",
                "lora loader",
                "LoraLoaderModelOnly",
                "lycoris",
            ],
            inputs=[
                io.Model.Input("model", tooltip="A FramePack or F1 model."),
                io.Combo.Input(
                    "lora",
                    options=[*lora_choices(), *BUILT_IN_LORAS],
                    tooltip="A file in models/loras. The built-in ones are for Toy World: one "
                    "turns its motions around, one shows F1 an end image, one draws what a prompt "
                    "says without a picture.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-20.0,
                    max=20.0,
                    step=0.01,
                    tooltip="0 is the model without it, 1 as it was trained. A new strength needs "
                    "no loading.",
                ),
                advanced(
                    io.String.Input(
                        "include",
                        default="",
                        optional=True,
                        tooltip="Only the modules in whose name this regular expression is found, "
                        "such as single_transformer_blocks. Empty takes all.",
                    )
                ),
                advanced(
                    io.String.Input(
                        "exclude",
                        default="",
                        optional=True,
                        tooltip="Not the modules in whose name this is found, such as ff|proj_mlp.",
                    )
                ),
                advanced(
                    io.String.Input(
                        "more_loras",
                        default="",
                        multiline=True,
                        optional=True,
                        tooltip="More files of models/loras, one a line, each with a strength "
                        "behind a colon: style.safetensors: 0.8. The patterns are for them too.",
                    )
                ),
                io.String.Input(
                    "trained",
                    optional=True,
                    force_input=True,
                    tooltip="The path of FramePack Train LoRA in the same graph, in place of the "
                    "file chosen here.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.String.Output(display_name="report"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(
        cls, lora: str | None = None, more_loras: str | None = None, **_: Any
    ) -> list[int]:
        """A file that was trained anew under its old name is read again; links are None here."""
        names = [lora, *(name for name, _ in parse_more(more_loras or ""))]
        return [os.stat(lora_path(name)).st_mtime_ns for name in names if name is not None]

    @classmethod
    def execute(
        cls,
        model: Any,
        lora: str,
        strength: float,
        include: str = "",
        exclude: str = "",
        more_loras: str = "",
        trained: str | None = None,
    ) -> io.NodeOutput:
        check_model(model)
        first = lora_path(lora) if trained is None else trained_path(trained)
        more = [(lora_path(name), number) for name, number in parse_more(more_loras)]
        files = [(first, strength), *more]
        uses = read_loras(model, files, include, exclude)
        report = "\n".join(f"{use.lora.report.describe()}\n  {_applied(use)}" for use in uses)
        show_text(cls.hidden.unique_id, report)
        return io.NodeOutput(add_loras(model, uses), report, ui=ui.PreviewText(report))


def _applied(use: LoraUse) -> str:
    return f"applied to {len(use.lora.modules)} modules at strength {use.strength:g}"


class SaveMerged(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FPReelSaveMerged",
            display_name="FramePack Save Merged Model",
            category=LORA,
            description="Saves a FramePack model with its LoRAs merged in, those of FramePack "
            "Apply LoRA and of ComfyUI's loaders, also quantised: fp8, int8, int4, nvfp4, mxfp8. "
            "One tensor at a time is in memory.",
            search_aliases=[
                "merge lora",
                "save model",
                "ModelSave",
                "convert fp8",
                "checkpoint",
                "quantize",
                "int8 convrot",
                "nvfp4",
            ],
            inputs=[
                io.Model.Input("model", tooltip="A FramePack or F1 model, with LoRAs if you like."),
                io.String.Input(
                    "filename", default="framepack_merged", tooltip="A number follows."
                ),
                io.Combo.Input(
                    "folder",
                    options=[MODELS, OUTPUT],
                    tooltip="From models/diffusion_models it can be loaded at once.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(SAVED_AS),
                    tooltip="Number type of the file; LoRAs are merged in fp32 and rounded to it "
                    "once. The quantised types are ComfyUI's: float8_e4m3fn for RTX 40 and later, "
                    "int8_convrot for RTX 20 and later, nvfp4 and mxfp8 for RTX 50, convrot_w4a4 "
                    "the smallest. fp8_scaled saves memory only; the gguf types make one GGUF "
                    "file.",
                ),
                advanced(
                    io.Float.Input(
                        "shard_gb",
                        default=0.0,
                        min=0.0,
                        max=100.0,
                        step=0.5,
                        optional=True,
                        tooltip="Splits the model into files of this size in a folder; 0 writes "
                        "a single file.",
                    )
                ),
            ],
            outputs=[
                io.String.Output(display_name="path"),
                io.String.Output(display_name="errors"),
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model: Any, filename: str, folder: str, precision: str, shard_gb: float = 0.0
    ) -> io.NodeOutput:
        check_model(model)
        destination = _destination(filename, folder, precision, shard_gb)
        (first, *_), errors = save_merged(model, destination, precision, shard_gb)
        show_text(cls.hidden.unique_id, f"{first}\n{errors}")
        return io.NodeOutput(str(first), errors, ui=ui.PreviewText(f"{first}\n{errors}"))


def _destination(filename: str, folder: str, precision: str, shard_gb: float) -> Path:
    """A new path in one of the folders; a folder itself if there will be several files."""
    suffix = GGUF if precision.startswith("gguf") else SAFETENSORS
    if shard_gb and suffix is GGUF:
        raise FramePackError(f"shard_gb: {precision} is written as one file; set it to 0")
    roots = {
        MODELS: diffusion_models_folder(),
        OUTPUT: output_folder(),
    }
    os.makedirs(roots[folder], exist_ok=True)
    parent, name, number, _ = output_names(filename, root=roots[folder])
    return parent / f"{name}_{number:05}_{'' if shard_gb else suffix[0]}"
