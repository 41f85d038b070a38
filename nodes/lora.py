"""LoRAs beside the layers of a MODEL, and models saved with everything merged in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io, ui
from torch import nn

from ..framepack_core.lora.apply import LoraUse, apply_loras, open_loras
from ..framepack_core.lora.files import Lora
from ..framepack_core.models.build import dit_shapes, dit_state_of
from ..framepack_core.models.merge import merged_from, write_dit
from ..framepack_core.runtime.display import warn
from ..framepack_core.runtime.errors import FramePackError
from ..framepack_core.runtime.files import split_lines
from ..framepack_core.sampling.plan import Plan
from ..framepack_core.toyworld import OPPOSITE_LORA
from .comfyui.fp8 import layer_weight
from .comfyui.host import NodeBar, is_inside, output_names, show_text
from .comfyui.merged import PatchedWeights
from .comfyui.model import LORA_STRENGTH, managed
from .comfyui.section_run import check_model
from .types import CATEGORY, advanced, schema

LORA = f"{CATEGORY}/lora"
KEY = "framepack_lora"
OPPOSITE = "Toy World: opposite (built in)"
DIFFUSION_MODEL = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
MODELS, OUTPUT = "models/diffusion_models", "output"
SAVED_AS = {
    "bf16": (torch.bfloat16, "full"),
    "fp16": (torch.float16, "full"),
    "fp8_scaled": (torch.bfloat16, "fp8_scaled"),
}


class LoraFactors(nn.Module):
    """The tensors of a LoRA as a model of their own, so that ComfyUI counts and moves them."""

    def __init__(self, lora: Lora, dtype: torch.dtype) -> None:
        super().__init__()
        self._lora = lora
        self.factors = nn.ModuleDict()
        for name, delta in lora.deltas.items():
            tensors = delta.to("cpu", dtype).tensors
            parameters = {key: nn.Parameter(x, False) for key, x in tensors.items()}
            self.factors[name.replace(".", "/")] = nn.ParameterDict(parameters)

    def lora(self) -> Lora:
        """The LoRA with its tensors where ComfyUI has brought them."""
        deltas = {
            name: delta.with_tensors(dict(self.factors[name.replace(".", "/")].items()))
            for name, delta in self._lora.deltas.items()
        }
        return replace(self._lora, deltas=deltas)


@dataclass(frozen=True)
class AppliedLora:
    """What ComfyUI calls around the DiT: its layers have the LoRA beside them meanwhile.

    So nothing is ever patched into weights, which clones of the MODEL share. A section's own
    strength comes with each call, in the options of the section's clone.
    """

    factors: LoraFactors
    strength: float

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        *_, options = args  # as FramePackTransformer gives them
        strength = self.strength * options.get(LORA_STRENGTH, 1.0)
        if not strength:
            return executor(*args, **kwargs)
        use = LoraUse(self.factors.lora(), strength)
        applied = apply_loras(executor.class_obj, [use], layer_weight)
        try:
            return executor(*args, **kwargs)
        finally:
            applied.remove()


@torch.inference_mode(False)  # or a model with a LoRA beside it could not be trained on
def load_factors(
    lora: Lora,
    dtype: torch.dtype,
    device: torch.device,
    offload: torch.device,
    disable_dynamic: bool = False,
) -> comfy.model_patcher.ModelPatcher:
    """The factors of a LoRA in ComfyUI's memory management."""
    patcher = managed(LoraFactors(lora, dtype), device, offload, disable_dynamic)
    patcher.cached_patcher_init = (load_factors, (lora, dtype, device, offload))
    return patcher


def add_loras(model: Any, uses: Sequence[LoraUse]) -> Any:
    """A clone of a MODEL with LoRAs beside its layers.

    Those of strength 0 take no memory, but the MODEL knows of them all the same.
    """
    model = model.clone()
    model.set_attachments(KEY, True)
    dtype = model.model.manual_cast_dtype or model.model.get_dtype()
    for use in uses:
        if use.strength:
            patcher = load_factors(use.lora, dtype, model.load_device, model.offload_device)
            others = model.get_additional_models_with_key(KEY)
            model.set_additional_models(KEY, [*others, patcher])
            applied = AppliedLora(patcher.model, use.strength)
            model.add_wrapper_with_key(DIFFUSION_MODEL, KEY, applied)
    return model


def applied_loras(model: Any) -> list[LoraUse]:
    """The LoRAs that `add_loras` has given to a MODEL."""
    found = model.wrappers.get(DIFFUSION_MODEL, {}).get(KEY, [])
    return [LoraUse(applied.factors.lora(), applied.strength) for applied in found]


def check_section_loras(plan: Plan, model: Any) -> None:
    """Refuse strengths of sections that no LoRA follows; warn of what does not follow them."""
    own = sorted(section.index for section in plan.sections if section.lora_strength is not None)
    if own and KEY not in model.attachments:
        raise FramePackError(
            f"lora_strength: section {own[0]} has one of its own, but the model has no LoRA of "
            "FramePack Apply LoRA; use that node, or take the strength out. Other loaders, such as "
            "LoraLoaderModelOnly, patch LoRAs into the weights, which all sections share"
        )
    if own and model.patches:
        warn(
            "model: its weights are patched, by LoraLoaderModelOnly or another node, and that is "
            "the same in all sections; only FramePack Apply LoRA follows their lora_strength"
        )


def lora_choices() -> list[str]:
    """Files of models/loras, named alike on all systems."""
    return [name.replace("\\", "/") for name in folder_paths.get_filename_list("loras")]


def lora_path(name: str) -> Path:
    """The file that a choice, or a line of more_loras, stands for."""
    if name == OPPOSITE:
        return OPPOSITE_LORA
    wanted = PurePath(name)
    outside = wanted.anchor or ".." in wanted.parts
    path = None if outside else folder_paths.get_full_path("loras", name)
    if path is None:
        raise FramePackError(f"{name} is not in models/loras; choose another file")
    return Path(path)


def trained_path(path: str) -> Path:
    """The file of a training run, which lies where FramePack Train LoRA writes."""
    folders = [*folder_paths.get_folder_paths("loras"), folder_paths.get_output_directory()]
    if not any(is_inside(Path(path), folder) for folder in folders):
        raise FramePackError(
            f"trained: {path} is neither in models/loras nor in ComfyUI's output folder; connect "
            "the path of FramePack Train LoRA"
        )
    return Path(path)


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
                    options=[*lora_choices(), OPPOSITE],
                    tooltip="A file in models/loras. The built-in one turns the motions of Toy "
                    "World around.",
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


@torch.inference_mode(False)  # as above: their tensors may become the factors as they are
def read_loras(
    model: Any, files: Sequence[tuple[Path, float]], include: str, exclude: str
) -> list[LoraUse]:
    """The LoRAs of (file, strength) for a MODEL, the patterns for each."""
    paths, strengths = zip(*files, strict=True)
    shapes = dit_shapes(model.model.diffusion_model.config)
    patterns = ([pattern] * len(files) for pattern in (include, exclude))
    return open_loras(paths, shapes, strengths, *patterns)


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
            "Apply LoRA and of ComfyUI's loaders. One tensor at a time is in memory.",
            search_aliases=["merge lora", "save model", "ModelSave", "convert fp8", "checkpoint"],
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
                    tooltip="LoRAs are merged in fp32 and rounded to this once. fp8_scaled takes "
                    "two thirds of the space of bf16.",
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
            outputs=[io.String.Output(display_name="path")],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model: Any, filename: str, folder: str, precision: str, shard_gb: float = 0.0
    ) -> io.NodeOutput:
        check_model(model)
        first, *_ = save_merged(
            model, _destination(filename, folder, shard_gb), precision, shard_gb
        )
        show_text(cls.hidden.unique_id, str(first))
        return io.NodeOutput(str(first), ui=ui.PreviewText(str(first)))


def save_merged(model: Any, destination: Path, precision: str, shard_gb: float) -> list[Path]:
    """Write a MODEL with all that was applied to it; returns its files."""
    dtype, kept = SAVED_AS[precision]
    uses = applied_loras(model)
    weights = PatchedWeights(model, uses)
    config = model.model.diffusion_model.config
    state = dit_state_of(config, weights, dtype=dtype, precision=kept)
    base, *_ = model.model.origin
    merged = merged_from(base.name, uses) | {"host_patches": weights.patched}
    limit = int(shard_gb * 1e9) or None
    return write_dit(config, state, destination, merged, limit, NodeBar().move_to)


def _destination(filename: str, folder: str, shard_gb: float) -> Path:
    """A new path in one of the folders; a folder itself if there will be several files."""
    roots = {
        MODELS: os.path.join(folder_paths.models_dir, "diffusion_models"),
        OUTPUT: folder_paths.get_output_directory(),
    }
    os.makedirs(roots[folder], exist_ok=True)
    parent, name, number, _ = output_names(filename, root=roots[folder])
    return parent / f"{name}_{number:05}_{'' if shard_gb else '.safetensors'}"
