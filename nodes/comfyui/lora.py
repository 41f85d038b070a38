"""LoRAs on a MODEL, whose weights stay as they are, and models saved with LoRAs merged in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.utils
import torch
from torch import nn

from ...framepack_core.lora.apply import LoraUse, apply_loras, open_loras
from ...framepack_core.lora.files import Lora
from ...framepack_core.models.build import dit_shapes, dit_state_of
from ...framepack_core.models.compiled_blocks import uncompiled
from ...framepack_core.models.merge import merged_from, write_dit
from ...framepack_core.models.offload import blocks_of
from ...framepack_core.models.quantise import LayerErrors
from ...framepack_core.runtime.display import warn
from ...framepack_core.runtime.errors import FramePackError
from ...framepack_core.sampling.plan import Plan
from ...framepack_core.weights.precisions import STATED, Precision
from .merged import PatchedWeights
from .model import LORA_STRENGTH, managed
from .progress import NodeBar
from .quantised import layer_weight

LORA_KEY = "framepack_lora"
DIFFUSION_MODEL = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
SAVED_AS: dict[str, tuple[torch.dtype, Precision]] = {
    "bf16": (torch.bfloat16, "full"),
    "fp16": (torch.float16, "full"),
    "fp8_scaled": (torch.bfloat16, "fp8_scaled"),
    **{name: (torch.bfloat16, name) for name in STATED},
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
        factors = {name: cast(nn.ParameterDict, kept) for name, kept in self.factors.items()}
        deltas = {
            name: delta.with_tensors(dict(factors[name.replace(".", "/")].items()))
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
            # What comes beside the layers is new in each pass, and code would be made for each.
            with uncompiled(blocks_of(executor.class_obj)):
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
    if model.model.diffusion_model.compiled and any(use.strength for use in uses):
        warn("compile: with a LoRA of FramePack Apply LoRA the blocks run uncompiled")
    model = model.clone()
    model.set_attachments(LORA_KEY, True)
    dtype = model.model.manual_cast_dtype or model.model.get_dtype()
    for use in uses:
        if use.strength:
            patcher = load_factors(use.lora, dtype, model.load_device, model.offload_device)
            others = model.get_additional_models_with_key(LORA_KEY)
            model.set_additional_models(LORA_KEY, [*others, patcher])
            applied = AppliedLora(patcher.model, use.strength)
            model.add_wrapper_with_key(DIFFUSION_MODEL, LORA_KEY, applied)
    return model


def applied_loras(model: Any) -> list[LoraUse]:
    """The LoRAs that `add_loras` has given to a MODEL."""
    found = model.wrappers.get(DIFFUSION_MODEL, {}).get(LORA_KEY, [])
    return [LoraUse(applied.factors.lora(), applied.strength) for applied in found]


def check_end(plan: Plan, model: Any) -> None:
    """Refuse an end image for an F1 that no LoRA of FramePack Apply LoRA taught to see one."""
    plan.check_end(any(use.lora.report.sees_end for use in applied_loras(model)))


def check_section_loras(plan: Plan, model: Any) -> None:
    """Refuse strengths of sections that no LoRA follows; warn of what does not follow them."""
    own = sorted(section.index for section in plan.sections if section.lora_strength is not None)
    if own and LORA_KEY not in model.attachments:
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


@torch.inference_mode(False)  # as above: their tensors may become the factors as they are
def read_loras(
    model: Any, files: Sequence[tuple[Path, float]], include: str, exclude: str
) -> list[LoraUse]:
    """The LoRAs of (file, strength) for a MODEL, the patterns for each."""
    paths, strengths = zip(*files, strict=True)
    shapes = dit_shapes(model.model.diffusion_model.config)
    patterns = ([pattern] * len(files) for pattern in (include, exclude))
    return open_loras(paths, shapes, strengths, *patterns)


def save_merged(
    model: Any, destination: Path, precision: str, shard_gb: float
) -> tuple[list[Path], str]:
    """Write a MODEL with all that was applied to it; its files, and the errors of its layers."""
    dtype, kept = SAVED_AS[precision]
    uses = applied_loras(model)
    weights = PatchedWeights(model, uses)
    config = model.model.diffusion_model.config
    errors = LayerErrors()
    state = dit_state_of(config, weights, dtype=dtype, precision=kept)
    state = replace(state, on_encoded=errors)
    base, *_ = model.model.origin
    merged = merged_from(base.name, uses) | {"host_patches": weights.patched}
    limit = int(shard_gb * 1e9) or None
    paths = write_dit(config, state, destination, merged, limit, NodeBar().move_to)
    return paths, errors.describe()
