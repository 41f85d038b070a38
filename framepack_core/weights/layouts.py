"""Finding the files of a component from whatever a user points at.

A path may be a file, any one shard, a component's folder, a snapshot with one sub-folder for each
component, or a folder of the Hugging Face cache. What is chosen follows fixed rules; where they
leave several candidates, that is an error which names them.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..runtime.errors import FramePackError
from ..runtime.files import is_file, is_folder
from .files import GGUF, SAFETENSORS, TORCH

Component = Literal["dit", "vae", "llama", "clip", "image_encoder"]

TITLES: dict[Component, str] = {
    "dit": "FramePack DiT",
    "vae": "HunyuanVideo VAE",
    "llama": "LLaMA text encoder",
    "clip": "CLIP-L text encoder",
    "image_encoder": "SigLIP image encoder",
}
FOLDERS: dict[Component, str] = {
    "dit": "transformer",
    "vae": "vae",
    "llama": "text_encoder",
    "clip": "text_encoder_2",
    "image_encoder": "image_encoder",
}
F1_FOLDER = "transformer_f1"
TOKENIZERS: dict[Component, str] = {"llama": "tokenizer", "clip": "tokenizer_2"}

# What `_class_name`, `architectures` or `model_type` of a fitting config.json say.
CONFIG_CLASSES: dict[Component, set[str]] = {
    "dit": {"HunyuanVideoTransformer3DModelPacked", "HunyuanVideoFramepackTransformer3DModel"},
    "vae": {"AutoencoderKLHunyuanVideo", "AutoencoderKLCausal3D"},
    "llama": {"LlamaModel", "LlamaForCausalLM", "llama"},
    "clip": {"CLIPTextModel", "CLIPTextModelWithProjection", "clip_text_model"},
    "image_encoder": {"SiglipVisionModel", "siglip_vision_model"},
}
# Configs of two-tower models hold the tower's own under these keys.
CONFIG_TOWERS: dict[Component, str] = {"clip": "text_config", "image_encoder": "vision_config"}

# The names that diffusers and transformers give to the one model of a folder.
STANDARD_NAMES = {"diffusion_pytorch_model", "model", "pytorch_model"}
SHARD = re.compile(r"(?P<stem>.*?)-?(?P<number>\d+)-of-(?P<count>\d+)")
INDEX = ".index.json"


def is_standard_name(name: str) -> bool:
    """Whether a file, or shard, has the name that diffusers and transformers give to any model."""
    stem = Path(name).stem
    shard = SHARD.fullmatch(stem)
    return (shard["stem"] if shard else stem) in STANDARD_NAMES


@dataclass(frozen=True)
class ComponentFiles:
    """The files of one component: all shards, config.json if there is one, its tokenizer folder."""

    weights: list[Path]
    config: dict[str, Any] | None
    tokenizer: Path | None


def find_component(path: Path | str, component: Component) -> ComponentFiles:
    """The files of `component` behind a path of any supported layout.

    Raises FramePackError that names the missing shard, the candidates, or the wrong config.json.
    """
    path = Path(path).expanduser()
    if is_folder(path):
        folder = _cached_snapshot(path)
        if is_folder(folder / FOLDERS[component]):
            folder = folder / FOLDERS[component]
        weights = _weights_in(folder)
    else:
        weights = _indexed(path) if path.name.endswith(INDEX) else _shards(path)
        folder = path.parent
    _check_complete(path, folder, weights)
    config = _config(folder, component)
    return ComponentFiles(weights, config, _tokenizer(folder, component, config is not None))


def find_snapshot(path: Path | str, *, f1: bool = False) -> dict[Component, Path]:
    """The folder of every component in a snapshot directory; `f1` takes the F1 transformer.

    Raises FramePackError that names the sub-folders which are not there.
    """
    root = _cached_snapshot(Path(path).expanduser())
    names = dict(FOLDERS)
    if f1:
        names["dit"] = F1_FOLDER
    missing = [name for name in names.values() if not is_folder(root / name)]
    if missing:
        raise FramePackError(
            f"{root} is not a complete snapshot: it has no folder {', '.join(missing)}; "
            f"a snapshot holds {', '.join(names.values())}"
        )
    return {component: root / name for component, name in names.items()}


def _cached_snapshot(path: Path) -> Path:
    """The snapshot inside a `models--owner--name` folder of the Hugging Face cache, else `path`."""
    snapshots = path / "snapshots"
    if not (path.name.startswith("models--") and is_folder(snapshots)):
        return path
    current = path / "refs" / "main"
    if is_file(current) and is_folder(snapshots / current.read_text().strip()):
        return snapshots / current.read_text().strip()
    found = sorted(p for p in snapshots.iterdir() if is_folder(p))
    if len(found) != 1:
        raise FramePackError(
            f"{path} holds {len(found)} snapshots ({', '.join(p.name for p in found)}): "
            "give the path of one of them"
        )
    return found[0]


def _weights_in(folder: Path) -> list[Path]:
    """The one model of a folder: safetensors before others, a standard name before others."""
    for suffixes in (SAFETENSORS, TORCH, GGUF):
        models = _models_in(folder, suffixes)
        standard = [name for name in models if name.split(".")[0] in STANDARD_NAMES]
        plain = [name for name in standard if name.count(".") == 1]  # no variant such as .fp16
        for names in (list(models), standard, plain):
            if len(names) == 1:
                return models[names[0]]
        if models:
            raise FramePackError(
                f"{folder} holds {len(models)} models ({', '.join(sorted(models))}): "
                "give the path of the file to use"
            )
    raise FramePackError(
        f"{folder} holds no weights ({', '.join(SAFETENSORS + TORCH + GGUF)}): "
        "check the path, or that the download is complete"
    )


def _models_in(folder: Path, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    """Every model of a folder by file name without shard numbers; an index.json comes first."""
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    models: dict[str, list[Path]] = {}
    for name in names:
        model = name.removesuffix(INDEX)
        if model != name and Path(model).suffix.lower() in suffixes:
            models[model] = _indexed(folder / name)
    indexed = {path.name for paths in models.values() for path in paths}
    for name in names:
        path = folder / name
        if path.suffix.lower() in suffixes and name not in indexed:
            shard = SHARD.fullmatch(path.stem)
            model = shard["stem"] + path.suffix if shard else name
            if model not in models:
                models[model] = _shards(path)
    return models


def _indexed(index: Path) -> list[Path]:
    """The files that an index.json names."""
    content = _read_json(index)
    names = content.get("weight_map")
    if not names:
        raise FramePackError(f"{index} has no weight_map: download it again, or delete it")
    return [index.with_name(name) for name in sorted(set(names.values()))]


def _shards(path: Path) -> list[Path]:
    """A file, or all the shards of which it is one."""
    match = SHARD.fullmatch(path.stem)
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]):
        return [path]
    start, digits = path.name[: match.start("number")], len(match["number"])
    rest = path.name[match.end("number") :]
    count = int(match["count"])
    names = [f"{start}{number:0{digits}d}{rest}" for number in range(1, count + 1)]
    return [path.with_name(name) for name in names]


def _check_complete(given: Path, folder: Path, weights: list[Path]) -> None:
    missing = [path.name for path in weights if not is_file(path)]
    if missing and not os.path.exists(given) and len(missing) == len(weights):
        raise FramePackError(f"{given} does not exist: check the path")
    if missing:
        raise FramePackError(
            f"{folder} lacks {', '.join(missing)} of the model's {len(weights)} files: "
            "download what is missing into that folder"
        )


def _config(folder: Path, component: Component) -> dict[str, Any] | None:
    """config.json, if there is one, checked to be of this kind of model."""
    path = folder / "config.json"
    if not is_file(path):
        return None
    config = _read_json(path)
    if tower := config.get(CONFIG_TOWERS.get(component, "")):
        config = tower
    classes = config.get("architectures") or [config.get("_class_name", config.get("model_type"))]
    if classes[0] is not None and CONFIG_CLASSES[component].isdisjoint(classes):
        raise FramePackError(
            f"{path} is the config of {classes[0]}, not of a {TITLES[component]}: "
            "give the right folder, or move the file into a folder of its own"
        )
    return config


def _tokenizer(folder: Path, component: Component, own_folder: bool) -> Path | None:
    """The tokenizer folder beside or above the weights, or in a model's own folder."""
    if component not in TOKENIZERS:
        return None
    places = [folder / TOKENIZERS[component], folder.parent / TOKENIZERS[component]]
    if own_folder:
        places.append(folder)
    return next((place for place in places if is_tokenizer(place)), None)


def is_tokenizer(folder: Path) -> bool:
    """Whether the folder holds a tokenizer, in either of the two forms that transformers reads."""
    byte_pairs = is_file(folder / "vocab.json") and is_file(folder / "merges.txt")
    return byte_pairs or is_file(folder / "tokenizer.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FramePackError(f"{path} cannot be read ({error}): download it again") from None
    if not isinstance(content, dict):
        raise FramePackError(f"{path} is not a JSON object: download it again")
    return content
