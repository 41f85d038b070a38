"""From files to working models: construction on the meta device, then the files' own tensors.

At no time are there two copies of a component in memory. A tensor that already has the wanted type
is a view of its file; any other is converted by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from ..runtime.errors import FramePackError
from ..weights.files import WeightFiles, open_weights
from ..weights.layouts import (
    TITLES,
    TOKENIZERS,
    Component,
    ComponentFiles,
    find_component,
    find_snapshot,
    is_tokenizer,
)
from ..weights.names import explain_mismatch, to_internal
from .attention import Attention, sdpa
from .dit import DiTConfig, FramePackDiT
from .image import SIGLIP_CONFIG, ImageEncoder, siglip_model
from .text import CLIP_CONFIG, LLAMA_CONFIG, TextEncoders, Tokenizer, clip_model, llama_model
from .vae import AutoencoderKL, VAEConfig

HEAD_DIM = 128  # of the released DiT; no shape in a file tells it apart from the number of heads
TOKENIZER_REPOSITORY = "hunyuanvideo-community/HunyuanVideo"
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


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
) -> FramePackDiT:
    """The DiT of a file, shard, folder or snapshot; its output projection stays in fp32.

    Raises FramePackError for files that are not a FramePack DiT, saying what they are.
    """
    config, state = dit_state(path, dtype=dtype, device=device)
    model = FramePackDiT(config, ops=ops, attention=attention, dtype=dtype, device="meta")
    return _fill(model, state, device)


def dit_state(
    path: Path | str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
) -> tuple[DiTConfig, dict[str, Tensor]]:
    """Config and tensors of a DiT under the names of `FramePackDiT`, for a host that builds it."""
    found, files = _open("dit", path)
    config = DiTConfig.from_dict(_config(found, files) or _dit_config_from_shapes(files))
    skeleton = FramePackDiT(config, device="meta")
    fp32 = FramePackDiT.FP32_PARAMETERS
    return config, _state("dit", files, skeleton, dtype, device, fp32)


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
    state = _state("vae", files, AutoencoderKL(config, device="meta"), dtype, device)
    return _fill(AutoencoderKL(config, ops=ops, dtype=dtype, device="meta"), state, device)


def load_text_encoders(
    llama_path: Path | str,
    clip_path: Path | str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    ops: Any = nn,
    allow_download: bool = False,
) -> TextEncoders:
    """LLaMA and CLIP-L with their tokenizers.

    Tokenizers lie beside or above the weights, or in the Hugging Face cache; `allow_download` lets
    them be fetched. Raises FramePackError that says where to put them.
    """
    # Tokenizers first: they are what is most often not there, and cost nothing to look for.
    llama_tokenizer = _tokenizer("llama", llama_path, allow_download)
    clip_tokenizer = _tokenizer("clip", clip_path, allow_download)
    return TextEncoders(
        llama=_load_hugging_face("llama", llama_path, dtype, device, ops),
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
) -> Any:
    found, files = _open(component, path)
    make, released = _HUGGING_FACE[component]
    model = make(_config(found, files) or released)
    state = _state(component, files, model, dtype, device)
    return _fill(replace_layers(model, ops), state, device)


def _open(component: Component, path: Path | str) -> tuple[ComponentFiles, WeightFiles]:
    found = find_component(path, component)
    return found, open_weights(found.weights)


def _config(found: ComponentFiles, files: WeightFiles) -> dict[str, Any] | None:
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


def _dit_config_from_shapes(files: WeightFiles) -> dict[str, Any]:
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
    files: WeightFiles,
    skeleton: nn.Module,
    dtype: torch.dtype,
    device: torch.device | str,
    fp32: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """The files' tensors under the names of `skeleton`, checked to be all of them and no more.

    The skeleton has plain torch layers: a host's own may create their parameters only when filled.
    """
    shapes = {name: tensor.shape for name, tensor in skeleton.state_dict().items()}
    _check_fp8(files)
    if problem := explain_mismatch(component, files, shapes):
        raise FramePackError(f"{files.paths[0]} {problem}")
    keys = to_internal(component, files)
    targets = to_internal(component, shapes)
    for name, target in targets.items():
        _check_shape(component, files, keys[name], shapes[target])
    return {
        target: files.load(
            keys[name], torch.float32 if target.startswith(fp32) else dtype, device
        ).reshape(shapes[target])
        for name, target in targets.items()
    }


def _check_fp8(files: WeightFiles) -> None:
    for name in files:
        if files.info(name).dtype in FP8:
            raise FramePackError(
                f"{files.paths[0]} is an fp8 file ({files.info(name).dtype}), which is not "
                "supported yet: use the bf16 or fp16 file of this model"
            )


def _check_shape(component: Component, files: WeightFiles, key: str, wanted: torch.Size) -> None:
    shape = files.info(key).shape
    # ComfyUI's VAE has its attention's linear layers as 1x1x1 convolutions.
    if shape != tuple(wanted) and shape != (*wanted, *(1,) * (len(shape) - len(wanted))):
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


def _tokenizer(component: Component, path: Path | str, allow_download: bool) -> Tokenizer:
    folder = find_component(path, component).tokenizer
    folder = folder or _shared_tokenizer(component, path, allow_download)
    # The tokenizer.json of LLaMA 3 says all; the class its config names differs by version.
    kind = PreTrainedTokenizerFast if component == "llama" else CLIPTokenizer
    try:
        return kind.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FramePackError(
            f"{folder} is not a usable tokenizer ({error}): download it again"
        ) from error


def _shared_tokenizer(component: Component, path: Path | str, allow_download: bool) -> Path:
    """The released tokenizer, which single-file encoders leave out, from the local cache or hub."""
    name = TOKENIZERS[component]
    for local in (True, False) if allow_download else (True,):
        try:
            root = snapshot_download(
                TOKENIZER_REPOSITORY, allow_patterns=[f"{name}/*"], local_files_only=local
            )
        except (OSError, ValueError):
            continue
        if is_tokenizer(Path(root) / name):
            return Path(root) / name
    raise FramePackError(
        f"{path} has no tokenizer: put the folder {name}/ of "
        f"https://huggingface.co/{TOKENIZER_REPOSITORY} beside it"
    )
