"""From files to working models: construction on the meta device, then the files' own tensors.

At no time are there two copies of a component in memory. A tensor that already has the wanted type
is a view of its file; any other is converted by itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.errors import FramePackError
from ..weights.files import open_weights
from ..weights.formats import is_block_linear
from ..weights.layouts import (
    TITLES,
    Component,
    ComponentFiles,
    find_component,
    find_snapshot,
)
from ..weights.names import explain_mismatch, to_internal
from ..weights.precisions import Precision
from ..weights.quantised_files import QuantisedFiles
from ..weights.quantised_linear import QuantisedOps, QuantisedWeight
from ..weights.state import ModelState, Source, Storage, Transform
from ..weights.tokenizers import find_tokenizer
from .attention import Attention, sdpa
from .dit import DiTConfig, FramePackDiT
from .image import SIGLIP_CONFIG, ImageEncoder, siglip_model
from .text import CLIP_CONFIG, LLAMA_CONFIG, TextEncoders, Tokenizer, clip_model, llama_model
from .vae import AutoencoderKL, VAEConfig

HEAD_DIM = 128  # of the released DiT; no shape in a file tells it apart from the number of heads


@dataclass(frozen=True)
class Snapshot:
    """All models of a snapshot directory."""

    dit: FramePackDiT
    vae: AutoencoderKL
    text_encoders: TextEncoders
    image_encoder: ImageEncoder


def load_snapshot(
    path: Path | str,
    *,
    f1: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    ops: Any = nn,
    attention: Attention = sdpa,
) -> Snapshot:
    """Everything in a snapshot directory, with `transformer_f1/` for `f1`, else `transformer/`."""
    folders = find_snapshot(path, f1=f1)
    placed: dict[str, Any] = {"dtype": dtype, "device": device, "ops": ops}
    return Snapshot(
        dit=load_dit(folders["dit"], attention=attention, **placed),
        vae=load_vae(folders["vae"], **placed),
        text_encoders=load_text_encoders(folders["llama"], folders["clip"], **placed),
        image_encoder=load_image_encoder(folders["image_encoder"], **placed),
    )


def load_dit(
    path: Path | str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    ops: Any = nn,
    attention: Attention = sdpa,
    precision: Precision = "auto",
    transform: Transform | None = None,
) -> FramePackDiT:
    """The DiT of a file, shard, folder or snapshot; its output projection stays in fp32.

    precision: "auto" keeps weights that the file has quantised, "full" makes them `dtype`, the
    others also quantise the linear layers of the blocks. transform changes
    parameters as they are read, before they are quantised (`MergeLoras`). Raises FramePackError for
    files that are not a FramePack DiT, saying what they are.
    """
    options = {"precision": precision_for(precision, ops), "transform": transform}
    config, state = open_dit(path, dtype=dtype, device=device, **options)
    ops = QuantisedOps if ops is nn and state.encodings() else ops
    model = FramePackDiT(config, ops=ops, attention=attention, dtype=dtype, device="meta")
    return _fill(model, dict(state), device)


def dit_state(
    path: Path | str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    precision: Precision = "full",
    transform: Transform | None = None,
) -> tuple[DiTConfig, dict[str, Tensor]]:
    """Config and tensors of a DiT under the names of `FramePackDiT`, for a host that builds it.

    A quantised weight `x.weight` comes with its other parts, such as `x.weight_scale`.
    """
    config, state = open_dit(
        path, dtype=dtype, device=device, precision=precision, transform=transform
    )
    return config, dict(state)


def open_dit(
    path: Path | str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    precision: Precision = "full",
    transform: Transform | None = None,
    fp32: tuple[str, ...] = FramePackDiT.FP32_PARAMETERS,
    copy: bool = False,
) -> tuple[DiTConfig, ModelState]:
    """Config of a DiT and its tensors, to be taken one at a time; `fp32` is not cast to `dtype`."""
    found, files = _open("dit", path)
    config = DiTConfig.from_dict(_config(found, files) or _dit_config_from_shapes(files))
    skeleton = _skeleton(FramePackDiT, config)
    storage = _dit_storage(skeleton, dtype, precision, fp32)
    return config, _state("dit", files, skeleton, storage, device, transform, copy)


def dit_state_of(
    config: DiTConfig, source: Source, *, dtype: torch.dtype, precision: Precision = "full"
) -> ModelState:
    """The tensors of a DiT that a host holds under our names, for `write_dit`."""
    skeleton = _skeleton(FramePackDiT, config)
    shapes = dit_shapes(config)
    storage = _dit_storage(skeleton, dtype, precision, fp32=())
    return ModelState(source, {name: name for name in shapes}, shapes, storage)


def _dit_storage(
    skeleton: nn.Module, dtype: torch.dtype, precision: Precision, fp32: tuple[str, ...]
) -> Storage:
    linears = _linear_weights(skeleton)
    return Storage(dtype, precision, linears, frozenset(filter(is_block_linear, linears)), fp32)


def dit_shapes(config: DiTConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter of a DiT with this config, and its shape: what a LoRA is read for."""
    parameters = _skeleton(FramePackDiT, config).state_dict()
    return {name: tuple(parameter.shape) for name, parameter in parameters.items()}


@lru_cache(maxsize=8)
def _skeleton(kind: Callable[..., nn.Module], config: DiTConfig | VAEConfig) -> nn.Module:
    """A model that only tells names, kinds and shapes; nobody changes it."""
    return kind(config, device="meta")


def dit_config(path: Path | str) -> DiTConfig:
    """The config of the DiT that a path leads to; no weights are read."""
    return open_dit(path)[0]


def precision_for(precision: Precision, ops: Any) -> Precision:
    """What "auto" means with these layers: few layers know how to hold a quantised weight."""
    holds = ops is nn or issubclass(ops.Linear, QuantisedWeight)
    return precision if holds or precision != "auto" else "full"


def load_vae(
    path: Path | str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    ops: Any = nn,
) -> AutoencoderKL:
    """The VAE of a safetensors or .pt file, folder or snapshot, in any of its naming schemes."""
    found, files = _open("vae", path)
    config = VAEConfig.from_dict(_config(found, files) or {})
    skeleton = _skeleton(AutoencoderKL, config)
    state = _state("vae", files, skeleton, Storage(dtype), device)
    return _fill(AutoencoderKL(config, ops=ops, dtype=dtype, device="meta"), dict(state), device)


def load_text_encoders(
    llama_path: Path | str,
    clip_path: Path | str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    ops: Any = nn,
    tokenizers: Mapping[Component, Path] | None = None,
    fetch: Callable[[str], None] | None = None,
    llama_precision: Precision = "auto",
) -> TextEncoders:
    """LLaMA and CLIP-L with their tokenizers.

    Tokenizers are found by `find_tokenizer`, `tokenizers` being its spare folders; with `fetch` it
    may download them. Raises FramePackError that says how to get them. llama_precision "fp8" casts
    LLaMA's linear layers, which then still compute in `dtype`; the others are as for the DiT.
    """
    # Tokenizers first: they are what is most often not there, and cost nothing to look for.
    tokenizers = tokenizers or {}
    llama_tokenizer = _tokenizer("llama", llama_path, tokenizers.get("llama"), fetch)
    clip_tokenizer = _tokenizer("clip", clip_path, tokenizers.get("clip"), fetch)
    return TextEncoders(
        llama=_load_hugging_face("llama", llama_path, dtype, device, ops, llama_precision),
        clip=_load_hugging_face("clip", clip_path, dtype, device, ops),
        llama_tokenizer=llama_tokenizer,
        clip_tokenizer=clip_tokenizer,
    )


def load_image_encoder(
    path: Path | str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    ops: Any = nn,
) -> ImageEncoder:
    """The SigLIP image encoder of a file, folder or snapshot."""
    model = _load_hugging_face("image_encoder", path, dtype, device, ops)
    return ImageEncoder(model, model.vision_model.config.image_size)


def replace_layers(module: nn.Module, ops: Any) -> nn.Module:
    """Swap the layers of a meta-device transformers model for those of `ops`, in place.

    Covers every kind of layer that owns weights in LLaMA, CLIP and SigLIP.
    """
    if ops is nn:
        return module
    for name, child in module.named_children():
        replacement = _replacement(child, ops)
        if replacement is None:
            replace_layers(child, ops)
        else:
            setattr(module, name, replacement)
    return module


def _replacement(layer: nn.Module, ops: Any) -> nn.Module | None:
    if isinstance(layer, nn.Linear):
        args = (layer.in_features, layer.out_features)
        options = {"bias": layer.bias is not None}
        return ops.Linear(*args, **options, **_placement(layer))
    if isinstance(layer, nn.Embedding):
        return ops.Embedding(layer.num_embeddings, layer.embedding_dim, **_placement(layer))
    if isinstance(layer, nn.LayerNorm):
        return ops.LayerNorm(layer.normalized_shape, eps=layer.eps, **_placement(layer))
    if isinstance(layer, nn.Conv2d):
        args = (layer.in_channels, layer.out_channels, layer.kernel_size)
        options = {"stride": layer.stride, "bias": layer.bias is not None}
        return ops.Conv2d(*args, **options, padding=layer.padding, **_placement(layer))
    if type(layer).__name__.endswith("RMSNorm"):  # each transformers model has a class of its own
        return ops.RMSNorm(layer.weight.shape, eps=layer.variance_epsilon, **_placement(layer))
    return None


def _placement(layer: nn.Module) -> dict[str, Any]:
    return {"dtype": layer.weight.dtype, "device": layer.weight.device}


# How each transformers model is made, and the config of a file that comes without one.
_HUGGING_FACE = {
    "llama": (llama_model, LLAMA_CONFIG),
    "clip": (clip_model, CLIP_CONFIG),
    "image_encoder": (siglip_model, SIGLIP_CONFIG),
}


def _load_hugging_face(
    component: Component,
    path: Path | str,
    dtype: torch.dtype,
    device: torch.device | str,
    ops: Any,
    precision: Precision = "full",
) -> Any:
    found, files = _open(component, path)
    make, released = _HUGGING_FACE[component]
    model = make(_config(found, files) or released)
    linears = _linear_weights(model)
    storage = Storage(dtype, precision_for(precision, ops), linears, linears)
    state = _state(component, files, model, storage, device)
    ops = QuantisedOps if ops is nn and state.encodings() else ops
    return _fill(replace_layers(model, ops), dict(state), device)


def _linear_weights(model: nn.Module) -> frozenset[str]:
    """The weights of linear layers: what can be held quantised."""
    layers = (name for name, m in model.named_modules() if isinstance(m, nn.Linear))
    return frozenset(f"{name}.weight" for name in layers)


def _open(component: Component, path: Path | str) -> tuple[ComponentFiles, QuantisedFiles]:
    found = find_component(path, component)
    return found, QuantisedFiles(open_weights(found.weights))


def _config(found: ComponentFiles, files: QuantisedFiles) -> dict[str, Any] | None:
    """The config beside the file, else the one inside it (as our own saved models have)."""
    if found.config is not None or "config" not in files.metadata:
        return found.config
    try:
        return dict(json.loads(files.metadata["config"]))
    except ValueError as error:
        raise FramePackError(
            f"{files.paths[0]} has a damaged config in its metadata ({error}): "
            "put the model's config.json beside it"
        ) from None


def _dit_config_from_shapes(files: QuantisedFiles) -> dict[str, Any]:
    """The config of a single-file DiT, which has the released head size if it is one at all."""
    names = to_internal("dit", files)
    shapes = {name: files.info(key).shape for name, key in names.items()}
    try:
        dim = shapes["x_embedder.proj.weight"][0]
        head_dim = shapes["single_transformer_blocks.0.attn.norm_q.weight"][0]
        image_dim = shapes["image_projection.up.weight"][1]
        text_dim = shapes["context_embedder.proj_in.weight"][1]
        pooled_dim = shapes["time_text_embed.text_embedder.linear_1.weight"][1]
        hidden = shapes["single_transformer_blocks.0.proj_mlp.weight"][0]
    except KeyError:
        return {}  # not a FramePack DiT: the released config then shows what is missing
    if head_dim != HEAD_DIM:
        raise FramePackError(
            f"{files.paths[0]} has attention heads of {head_dim} channels, not {HEAD_DIM}: "
            "put the config.json of this model beside it"
        )
    return {
        "num_attention_heads": dim // HEAD_DIM,
        "num_layers": _count(names, "transformer_blocks."),
        "num_single_layers": _count(names, "single_transformer_blocks."),
        "num_refiner_layers": _count(names, "context_embedder.token_refiner.refiner_blocks."),
        "mlp_ratio": hidden / dim,
        "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in names,
        "text_embed_dim": text_dim,
        "pooled_projection_dim": pooled_dim,
        "image_proj_dim": image_dim,
    }


def _count(names: Iterable[str], prefix: str) -> int:
    return len({n.removeprefix(prefix).split(".")[0] for n in names if n.startswith(prefix)})


def _state(
    component: Component,
    files: QuantisedFiles,
    skeleton: nn.Module,
    storage: Storage,
    device: torch.device | str,
    transform: Transform | None = None,
    copy: bool = False,
) -> ModelState:
    """The files' tensors under the names of `skeleton`, checked to be all of them and no more.

    The skeleton has plain torch layers: a host's own may create their parameters only when filled.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    if problem := explain_mismatch(component, files, shapes):
        raise FramePackError(f"{files.paths[0]} {problem}")
    found, targets = to_internal(component, files), to_internal(component, shapes)
    keys = {target: found[name] for name, target in targets.items()}
    for target, key in keys.items():
        _check_shape(component, files, key, shapes[target])
    return ModelState(files, keys, shapes, storage, device, transform, copy)


def _check_shape(
    component: Component, files: QuantisedFiles, key: str, wanted: tuple[int, ...]
) -> None:
    shape = files.info(key).shape
    # ComfyUI's VAE has its attention's linear layers as 1x1x1 convolutions.
    if shape != wanted and shape != (*wanted, *(1,) * (len(shape) - len(wanted))):
        raise FramePackError(
            f"{files.paths[0]} does not fit this {TITLES[component]}: {key} is {list(shape)} "
            f"where the config says {list(wanted)}; put its own config.json beside it"
        )


def _fill(model: Any, state: Mapping[str, Tensor], device: torch.device | str) -> Any:
    """Give a meta-device model its tensors as they are, and bring its buffers to them."""
    model.eval().requires_grad_(False)
    model.load_state_dict(state, strict=True, assign=True)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    return model


def _tokenizer(
    component: Component,
    path: Path | str,
    spare: Path | None,
    fetch: Callable[[str], None] | None,
) -> Tokenizer:
    from transformers import CLIPTokenizer, PreTrainedTokenizerFast

    folder = find_tokenizer(path, component, spare=spare, fetch=fetch)
    # The tokenizer.json of LLaMA 3 says all; the class its config names differs by version.
    kind = PreTrainedTokenizerFast if component == "llama" else CLIPTokenizer
    try:
        return kind.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FramePackError(
            f"{folder} is not a usable tokenizer ({error}): download it again"
        ) from error
