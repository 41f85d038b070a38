"""Cache files that musubi-tuner reads and writes too, with a digest of what they depend on.

A key is a name, for latents the target's frames x height x width, and the type; the names in
memory are without the last two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..runtime.errors import FramePackError
from ..runtime.files import is_file
from ..runtime.images import Size
from ..sampling.plan import HISTORY
from ..weights.files import Header, open_weights, read_header, save_weights
from .config import TrainMode
from .dataset import SUFFIX, TEXT_SUFFIX

ARCHITECTURE = "framepack"
FORMAT_VERSION = "1.0.1"
# Our own entries of the metadata, which others pass over: of what, and by which models.
DIGEST, MODELS = "fpreel_digest", "fpreel_models"
CACHE_MODE = "fpreel_mode"

LATENTS = "latents"
INDICES = {
    "latent_indices": "latent",
    "clean_latent_indices": "clean",
    "clean_latent_2x_indices": "clean_2x",
    "clean_latent_4x_indices": "clean_4x",
}
IMAGE = "image_embeddings"
END_SUFFIX = "_fp_end.safetensors"
END = "latent_end"
# Where it belongs: a place in the history of the framepack mode, or F1's own index behind all.
END_SLOT, END_INDEX = "end_slot", "end_index"
TEXT, TEXT_MASK, POOLED = "llama_vec", "llama_attention_mask", "clip_l_pooler"
_SIZE = re.compile(r"_\d+x\d+x\d+$")
_TYPE = re.compile(r"_(?:float16|float32|bfloat16|int64|int32|bool)$")


def save_latent_cache(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    size: Size,
    digest: str,
    models: str = "",
    mode: TrainMode,
    frame_count: int | None = None,
) -> None:
    """Write one section or picture; size is (width, height), frame_count that of the crop."""
    metadata = {"width": str(size[0]), "height": str(size[1])}
    if frame_count is not None:
        metadata["frame_count"] = str(frame_count)
    frames, height, width = tensors[LATENTS].shape[1:]
    shape = f"{frames}x{height}x{width}"
    save_weights(
        path,
        {_key(name, tensor, shape): tensor for name, tensor in tensors.items()},
        {**_common(digest, models), **metadata, CACHE_MODE: mode},
    )


def save_text_cache(
    path: Path, tensors: Mapping[str, Tensor], caption: str, digest: str, models: str = ""
) -> None:
    """Write one prompt."""
    named = {n if n == TEXT_MASK else _key(n, x, ""): x for n, x in tensors.items()}
    save_weights(path, named, {**_common(digest, models), "caption1": caption})


def end_path(path: Path) -> Path:
    """Where the end frame for a section's cache is; a name that other trainers pass over."""
    return path.with_name(path.name.removesuffix(SUFFIX) + END_SUFFIX)


def save_end(
    path: Path, latent: Tensor, place: Mapping[str, int], digest: str, models: str = ""
) -> None:
    """Write the latent [C, 1, h, w] of a crop's last frame and its END_SLOT or END_INDEX."""
    tensors = {END: latent, **{name: torch.tensor(number) for name, number in place.items()}}
    save_weights(end_path(path), tensors, _common(digest, models))


def show_end(tensors: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cached tensors of a section that also sees the end frame, behind the last section."""
    if END_INDEX in end:
        clean, indices = tensors["latents_clean"], tensors["clean_latent_indices"]
        place = end[END_INDEX].to(indices).view(1)
        return {
            **tensors,
            "latents_clean": torch.cat([clean, end[END].to(clean)], dim=1),
            "clean_latent_indices": torch.cat([indices, place]),
        }
    one, two, _ = HISTORY
    slot = int(end[END_SLOT])
    name, frame = ("latents_clean_4x", slot - one - two)
    if slot < one:
        name, frame = "latents_clean", slot + 1  # behind the start image
    elif slot < one + two:
        name, frame = "latents_clean_2x", slot - one
    changed = tensors[name].clone()
    changed[:, frame : frame + 1] = end[END]
    return {**tensors, name: changed}


def load_cache(path: Path) -> dict[str, Tensor]:
    """The tensors of a cache file by name in memory; musubi-tuner's are as good as our own."""
    files = open_weights(path)
    if files.metadata.get("architecture") != ARCHITECTURE:
        raise FramePackError(
            f"{path} is a cache for {files.metadata.get('architecture', 'an unknown model')}, not "
            "for FramePack; give FramePack a cache folder of its own"
        )
    return {_name(key): tensor.clone() for key, tensor in files.items()}


def cached_mode(path: Path) -> TrainMode:
    """The mode that a latent cache was made for, told by where its context stands."""
    tensors = open_weights(path)
    indices = {_name(key): key for key in tensors if _name(key) in INDICES}
    if "latent_indices" not in indices:
        raise FramePackError(f"{path} is no FramePack latent cache; move it out of the folder")
    if not any(_name(key) == "latents_clean_4x" for key in tensors):
        return "one_frame"
    places = "latent_indices", "clean_latent_4x_indices"
    try:
        first, far = (int(tensors[indices[name]].flatten()[0]) for name in places)
    except (KeyError, IndexError, ValueError, OverflowError):
        raise FramePackError(f"{path} is damaged: its indices are missing; cache again") from None
    return "f1" if far < first else "framepack"


def is_cache(path: Path) -> bool:
    """Whether a file is one of ours or of musubi-tuner's, by its name."""
    return path.name.endswith((SUFFIX, END_SUFFIX, TEXT_SUFFIX))


def cached_header(path: Path) -> Header | None:
    """The header of a whole cache file; None where there is none to use."""
    if not is_file(path):
        return None
    try:
        return read_header(path)
    except FramePackError:  # cut short by another program: it is made again
        return None


def _common(digest: str, models: str) -> dict[str, str]:
    common = {"architecture": ARCHITECTURE, "format_version": FORMAT_VERSION}
    return common | {DIGEST: digest, MODELS: models}


def _key(name: str, tensor: Tensor, shape: str) -> str:
    size = f"_{shape}" if name.startswith(LATENTS) else ""
    return f"{name}{size}_{str(tensor.dtype).removeprefix('torch.')}"


def _name(key: str) -> str:
    if key == TEXT_MASK:
        return key
    name = _TYPE.sub("", key)
    return _SIZE.sub("", name) if name.startswith(LATENTS) else name


def to_half(tensor: Tensor, what: str) -> Tensor:
    """fp16 on the CPU; raises where the encoder made what fp16 cannot hold."""
    half = tensor.detach().to("cpu", torch.float16)
    if not torch.isfinite(half).all():
        raise FramePackError(
            f"{what}: the encoder made values that are not finite; run it in bf16 or fp32"
        )
    return half
