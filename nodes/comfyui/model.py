"""The DiT as a native MODEL.

It is built from ComfyUI's layers and owned by its ModelPatcher, so ComfyUI loads, streams, patches
and saves it like any model of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import comfy.conds
import comfy.latent_formats
import comfy.ldm.modules.attention
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.supported_models_base
import torch
from torch import Tensor, nn

from ...framepack_core.models import build
from ...framepack_core.models.attention_kernels import (
    AUTO,
    AttentionKernel,
    AutoAttention,
    NamedAttention,
    Traceable,
    find_kernel,
)
from ...framepack_core.models.compiled_blocks import compile_blocks
from ...framepack_core.models.compiling import COMPILING
from ...framepack_core.models.dit import DiTConfig, DiTInputs, FramePackDiT, Tokens
from ...framepack_core.models.offload import blocks_of
from ...framepack_core.models.packing import Context
from ...framepack_core.models.prompt import TextCondition
from ...framepack_core.runtime.display import say
from ...framepack_core.runtime.errors import FramePackError
from ...framepack_core.sampling.estimate import MEMORY_FACTOR
from ...framepack_core.sampling.flow import GUIDANCE, TIME_SCALE
from ...framepack_core.sampling.probe import IMAGE_TOKENS
from ...framepack_core.sampling.sections import Mode
from ...framepack_core.sampling.step_cache import transform_with
from ...framepack_core.weights.precisions import Precision
from .quantised import EmulatingOps, operations_for

mm = comfy.model_management
_AHEAD = "comfy.model_prefetch"  # of ComfyUI where it streams weights by itself
PREFETCH: Any = import_module(_AHEAD) if find_spec(_AHEAD) else None

LATENT_SCALE = comfy.latent_formats.HunyuanVideo().scale_factor
SECTION_PREFIX = "framepack_"
CONTEXT_FIELDS = tuple(field.name for field in fields(Context))
STEP_CACHE = "framepack_step_cache"
ROPE_SCALING = "framepack_rope_scaling"
LORA_STRENGTH = "framepack_lora_strength"


@dataclass(frozen=True)
class TrainedFor:
    """The mode that a model was trained for; uncertain where only a file's name says so.

    size: width and height in pixels, of a model that can make no others. latent_rgb: red, green and
    blue of each latent channel, of a model whose latents are not HunyuanVideo's.
    """

    mode: Mode
    certain: bool
    size: tuple[int, int] | None = None
    latent_rgb: tuple[tuple[float, float, float], ...] | None = None


def section_conditions(
    context: Context, latent_indices: Tensor, image_embeds: Tensor | None
) -> dict[str, Tensor]:
    """What a section adds to a conditioning, for `conditioning_set_values`; latents model-ready."""
    values = vars(context) | {"latent_indices": latent_indices, "image_embeds": image_embeds}
    return {SECTION_PREFIX + name: value for name, value in values.items() if value is not None}


AUTO_ATTENTION = AUTO
COMFYUI = "comfyui"
OWN_ATTENTIONS = ("flash3", "cudnn")
OVERRIDE = "optimized_attention_override"  # by which other nodes replace attention
ATTENTIONS = (
    AUTO_ATTENTION,
    "pytorch",
    "sage",
    "flash",
    "xformers",
    "sub_quad",
    "split",
    COMFYUI,
    "comfy_kitchen_int8",
    *OWN_ATTENTIONS,
)
HOST_ERROR = 0.1  # of what ComfyUI was started with, which may be a lossy one


def find_attention(name: str) -> Callable[..., Tensor]:
    """One of ComfyUI's attention functions; comfyui is the one that it was started with."""
    module = comfy.ldm.modules.attention
    found = module.get_attention_function("optimized" if name == COMFYUI else name, None)
    if found is None:
        raise FramePackError(
            f"attention: {name} is not available in this ComfyUI; install its package in "
            "ComfyUI's Python and start it anew, or choose auto"
        )
    return found


class HostAttention(Traceable):
    """Attention by the name of a loader; it also is where a run can be stopped.

    auto measures ComfyUI's own function beside the core's kernels. Where another node replaces the
    attention, it is called.
    """

    def __init__(self, name: str = AUTO_ATTENTION) -> None:
        super().__init__()
        self.name = name
        self.transformer_options: Mapping[str, Any] = {}
        self._core = self._core_attention()
        if self._core is None:
            find_attention(name)  # refuses one that is not there before anything is loaded

    def _core_attention(self) -> AutoAttention | NamedAttention | None:
        if self.name in OWN_ATTENTIONS:
            return NamedAttention(find_kernel(self.name))
        if self.name != AUTO_ATTENTION:
            return None
        run = partial(_host_attention, COMFYUI, {})
        return AutoAttention([AttentionKernel("ComfyUI's", run, error=HOST_ERROR)])

    @property
    def label(self) -> str:
        """What is computed, as far as it is known before a run."""
        return self.name if self._core is not None else find_attention(self.name).__name__

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        mm.throw_exception_if_processing_interrupted()
        if self._core is not None and OVERRIDE not in self.transformer_options:
            return self._core.attend(q, k, v, key_mask)
        name = COMFYUI if self._core is not None else self.name
        return _host_attention(name, self.transformer_options, q, k, v, key_mask)

    def trained(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        mm.throw_exception_if_processing_interrupted()
        if self._core is not None:
            return self._core.trained(q, k, v, key_mask)
        return _host_attention(self.name, self.transformer_options, q, k, v, key_mask)


def _host_attention(
    name: str,
    transformer_options: Mapping[str, Any],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None = None,
) -> Tensor:
    """ComfyUI's function of this name behind the core's signature."""
    mask = None
    if key_mask is not None:  # additive: not every kernel takes booleans
        mask = torch.zeros_like(key_mask, dtype=q.dtype)
        mask = mask.masked_fill(~key_mask, torch.finfo(q.dtype).min)[:, None, None, :]
    return find_attention(name)(
        q,
        k,
        v,
        heads=q.shape[1],
        mask=mask,
        skip_reshape=True,
        transformer_options=transformer_options,
    )


class FramePackTransformer(FramePackDiT):
    """The DiT with the constructor and the forward that ComfyUI expects of a diffusion model."""

    compiled = False

    def __init__(
        self,
        config: DiTConfig,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        operations: Any = None,
        attention: str = AUTO_ATTENTION,
    ) -> None:
        host = HostAttention(attention)
        super().__init__(config, ops=operations, attention=host, dtype=dtype, device=device)
        self.dtype, self.host_attention = dtype, host

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        guidance: float = GUIDANCE,
        attention_mask: Tensor | None = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] | None = None,
        **section: Any,
    ) -> Tensor:
        """Velocity of x [B, 16, T, h, w] at timestep [B] = 1000 sigma.

        context [B, L, C] is the encoded prompt, y [B, C] its pooled vector; `section` holds what
        `section_conditions` made, all of it optional.
        """
        transformer_options = transformer_options or {}
        wrappers = comfy.patcher_extension.get_all_wrappers(
            comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, transformer_options
        )
        run = comfy.patcher_extension.WrapperExecutor.new_class_executor(
            self._forward, self, wrappers
        )
        prompt = (context, y, guidance, attention_mask)
        return run.execute(x, timestep, *prompt, control, transformer_options, **section)

    def _forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        y: Tensor | None,
        guidance: float,
        attention_mask: Tensor | None,
        control: Any,
        transformer_options: Mapping[str, Any],
        **section: Any,
    ) -> Tensor:
        values = {name: section.get(SECTION_PREFIX + name) for name in CONTEXT_FIELDS}
        scaling = transformer_options.get(ROPE_SCALING)
        inputs = DiTInputs(
            x,
            timestep,
            self._text(x, context, y, attention_mask),
            torch.full_like(timestep, TIME_SCALE * guidance),
            self._image_embeds(x, section.get(SECTION_PREFIX + "image_embeds")),
            section.get(SECTION_PREFIX + "latent_indices"),
            Context(**values),
            scaling.at(timestep) if scaling else 1.0,
        )
        cache, name = transformer_options.get(STEP_CACHE), transformer_options.get("cond_or_uncond")
        self.host_attention.transformer_options = transformer_options
        try:
            return super().forward(
                inputs, transform_with(cache, self, timestep / TIME_SCALE, str(name))
            )
        finally:
            self.host_attention.transformer_options = {}

    def transform(self, tokens: Tokens) -> Tensor:
        options = self.host_attention.transformer_options
        with fetched_by_blocks(blocks_of(self), tokens.latent.device, options):
            return super().transform(tokens)

    def _text(
        self, x: Tensor, text: Tensor, pooled: Tensor | None, mask: Tensor | None
    ) -> TextCondition:
        if text.shape[-1] != self.config.text_embed_dim:
            raise FramePackError(
                f"positive or negative prompt: encoded {text.shape[-1]} wide, the model needs "
                f"{self.config.text_embed_dim}; encode it with FramePack's own text encoders"
            )
        if pooled is None:
            pooled = x.new_zeros(x.shape[0], self.config.pooled_projection_dim)
        return TextCondition(text, pooled, None if mask is None else mask > 0)

    def _image_embeds(self, x: Tensor, image_embeds: Tensor | None) -> Tensor | None:
        """Zeros stand in for a start image, as when a plain KSampler runs the model."""
        if image_embeds is not None or not self.config.has_image_proj:
            return image_embeds
        return x.new_zeros(x.shape[0], IMAGE_TOKENS, self.config.image_proj_dim)


class FramePackModelConfig(comfy.supported_models_base.BASE):
    """What ComfyUI needs to know of the model besides its layers."""

    unet_config: ClassVar[dict[str, Any]] = {}
    unet_extra_config: ClassVar[dict[str, Any]] = {}
    sampling_settings: ClassVar[dict[str, float]] = {"shift": 7.0}
    latent_format = comfy.latent_formats.HunyuanVideo
    memory_usage_factor = MEMORY_FACTOR
    supported_inference_dtypes: ClassVar[list[torch.dtype]] = [torch.bfloat16, torch.float32]
    vae_key_prefix: ClassVar[list[str]] = ["vae."]
    text_encoder_key_prefix: ClassVar[list[str]] = ["text_encoders."]

    def __init__(self, config: DiTConfig, attention: str = AUTO_ATTENTION) -> None:
        super().__init__({"config": config, "attention": attention})

    def get_model(
        self, state_dict: Any, prefix: str = "", device: torch.device | None = None
    ) -> FramePackModel:
        return FramePackModel(self, device)


class FramePackModel(comfy.model_base.HunyuanVideo):
    """Flow matching over the DiT; by its base class ComfyUI knows every LoRA naming that fits."""

    trained_for: TrainedFor | None = None
    origin: tuple[Any, ...] = ()  # the arguments of `load_model`

    def __init__(self, config: FramePackModelConfig, device: torch.device | None = None) -> None:
        comfy.model_base.BaseModel.__init__(
            self,
            config,
            comfy.model_base.ModelType.FLOW,
            device=device,
            unet_model=FramePackTransformer,
        )
        self.memory_usage_factor_conds = tuple(SECTION_PREFIX + name for name in _RATES)
        self.memory_usage_shape_process = {
            SECTION_PREFIX + name: _compressed(rate) for name, rate in _RATES.items()
        }

    def encode_adm(self, **conds: Any) -> Tensor | None:
        return conds.get("pooled_output")

    def extra_conds(self, **conds: Any) -> dict[str, Any]:
        out = super().extra_conds(**conds)
        # A number, because tensors are rounded to the model's dtype on the way.
        out["guidance"] = comfy.conds.CONDConstant(float(conds.get("guidance", GUIDANCE)))
        for name, value in conds.items():
            if name.startswith(SECTION_PREFIX):
                out[name] = comfy.conds.CONDRegular(value)
        return out

    def extra_conds_shapes(self, **conds: Any) -> dict[str, list[int]]:
        out = super().extra_conds_shapes(**conds)
        for name in self.memory_usage_factor_conds:
            if conds.get(name) is not None:
                out[name] = list(conds[name].shape)
        return out


_RATES = {"clean": 1, "clean_2x": 2, "clean_4x": 4}


def _compressed(rate: int) -> Any:
    """Latent shape to one with as many elements as the tokens that it becomes."""

    def shape(latents: list[int]) -> list[float]:
        batch, channels, frames, height, width = latents
        return [batch, channels, frames / rate, height / rate, width / rate]

    return shape


@contextmanager
def fetched_by_blocks(
    blocks: Sequence[nn.Module], device: torch.device, transformer_options: Mapping[str, Any]
) -> Iterator[None]:
    """Let ComfyUI stream the weights of a block at once, not of one layer after the other.

    blocks: all that run meanwhile, in this order. Nothing changes where it does not stream.
    """
    make = getattr(PREFETCH, "make_prefetch_queue", None)
    queue = make and make(list(blocks), device, transformer_options)
    if not queue:
        yield
        return

    def fetch(block: nn.Module | None, *_inputs: Any) -> None:
        PREFETCH.prefetch_queue_pop(queue, device, block)

    hooks = [block.register_forward_pre_hook(fetch) for block in blocks]
    try:
        yield
        fetch(None)  # the last block's are free again
    finally:
        for hook in hooks:
            hook.remove()


def load_model(
    path: Path,
    dtype: torch.dtype | None = None,
    trained_for: TrainedFor | None = None,
    precision: Precision = "auto",
    attention: str = AUTO_ATTENTION,
    compiled: bool = False,
    *,
    disable_dynamic: bool = False,
) -> comfy.model_patcher.ModelPatcher:
    """A MODEL from a file, shard, folder or snapshot; dtype None follows ComfyUI's settings.

    The weights stay views of their files until ComfyUI moves them; precision is as for `load_dit`.
    compiled: the blocks by torch.compile, which cannot follow how ComfyUI streams weights by
    itself; they are moved by its older memory management.
    """
    device, offload = mm.get_torch_device(), mm.unet_offload_device()
    if compiled and device.type == "cuda" and find_spec("triton") is None:
        raise FramePackError(
            "compile: needs the package triton (on Windows triton-windows) in ComfyUI's Python; "
            "install it, or turn compile off"
        )
    supported = FramePackModelConfig.supported_inference_dtypes if dtype is None else [dtype]
    stored = dtype or mm.unet_dtype(device, -1, supported)
    config, state = build.open_dit(path, dtype=stored, precision=precision)
    model_config = FramePackModelConfig(config, attention)
    computed = mm.unet_manual_cast(stored, device, supported)
    model_config.set_inference_dtype(stored, computed)
    operations = operations_for(state.encodings(), device, computed or stored)
    model_config.custom_operations = operations
    tensors = dict(state)
    # ComfyUI's own quantised layers go where they are made; they take no memory before that.
    own = operations in (None, EmulatingOps)
    model = model_config.get_model(tensors, device=torch.device("meta" if own else "cpu"))
    model.diffusion_model.load_state_dict(tensors, strict=True, assign=True)
    model.device, model.trained_for = offload, trained_for
    if trained_for is not None and trained_for.latent_rgb is not None:
        model.latent_format.latent_rgb_factors = [list(rgb) for rgb in trained_for.latent_rgb]
        model.latent_format.latent_rgb_factors_bias = None
    # Where ComfyUI streams weights by itself, it would patch ours as if they were not quantised.
    still = compiled or operations is EmulatingOps
    patcher = managed(model, device, offload, disable_dynamic or still)
    if compiled:
        compile_blocks(blocks_of(model.diffusion_model))
        model.diffusion_model.compiled = True
        say(COMPILING)
    # Without compile as before, so that a ledger knows the MODEL again.
    arguments = (path, dtype, trained_for, precision, attention, *([True] if compiled else []))
    patcher.cached_patcher_init = (load_model, arguments)  # how ComfyUI makes a second one
    model.origin = arguments
    return patcher


def managed(
    model: nn.Module, device: torch.device, offload: torch.device, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """Hand a loaded model to ComfyUI's memory management."""
    if hasattr(mm, "archive_model_dtypes"):  # where ComfyUI stages weights in the dtype noted here
        mm.archive_model_dtypes(model)
    plain = comfy.model_patcher.ModelPatcher
    # looked up late: ComfyUI swaps it at startup where it streams weights by itself
    managed = plain if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", plain)
    return managed(model, load_device=device, offload_device=offload)
