"""Cache files from stub encoders, file by file, and the batches that are made of them.

The clips are made up: their pixels go nowhere but into the stubs, which check their shapes.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from framepack_core.models.dit import DiTConfig, FramePackDiT
from framepack_core.models.prompt import TextCondition
from framepack_core.sampling.flow import FlowDenoiser, Guided
from framepack_core.training.adapters import Adapters
from framepack_core.training.batches import collate
from framepack_core.training.cache import (
    LatentEncoders,
    OneFrameContexts,
    TextEncoder,
    cache_latents,
    cache_text,
)
from framepack_core.training.cache_files import cached_mode, load_cache
from framepack_core.training.config import AdapterConfig
from framepack_core.training.dataset import TrainingSet

from .result import Case, compare, exact

TEXT, BATCHES = "text", "training_batches"
OURS = "fpreel_"
VIDEO_FILE = re.compile(r"(.+)_(\d{5})-(\d{3,})-\d{4}_\d{4}x\d{4}_fp\.safetensors")
IMAGE_FILE = re.compile(r"(.+)_(\d{4})x(\d{4})_fp\.safetensors")
MASK_TOLERANCE = 1e-3


def check(folder: Path) -> Iterator[Case]:
    for path in sorted(folder.glob("cache*.json")):
        spec = json.loads(path.read_text())
        inputs = load_file(path.with_name(f"{path.stem}_inputs.safetensors"))
        for name, case in spec.items():
            if name == TEXT:
                yield from _text(case, inputs, folder / f"cache_{name}")
            elif name == BATCHES:
                yield from _batches(case, folder)
            elif isinstance(case, dict) and "files" in case:
                yield from _latents(name, case, inputs, folder / f"cache_{name}")


def _latents(
    name: str, case: dict[str, Any], inputs: dict[str, Tensor], expected: Path
) -> Iterator[Case]:
    arguments = set(case["arguments"])
    mode = "one_frame" if "--one_frame" in arguments else "f1" if "--f1" in arguments else None
    with tempfile.TemporaryDirectory() as work:
        found = _make_dataset(name, case, inputs, Path(work))
        stub = Stub(case, inputs)
        cache_latents(
            found,
            mode or "framepack",
            LatentEncoders(stub.vae, stub.image, "stub"),
            one_frame=OneFrameContexts(
                "--one_frame_no_2x" in arguments, "--one_frame_no_4x" in arguments
            ),
        )
        made = found.datasets[0].cache
        yield exact(f"{name}.files", _names(made), sorted(case["files"]))
        yield exact(f"{name}.vae", stub.shapes, [c["pixel_shape"] for c in case["vae_calls"]])
        pictures = [c["image_h_w_c"] for c in case["image_encoder_calls"]]
        yield exact(f"{name}.image", stub.pictures, pictures)
        for file, about in case["files"].items():
            yield from _compare(f"{name}.{file}", made / file, expected / file, about)
            yield exact(f"{name}.{file}.mode", cached_mode(expected / file), mode or "framepack")


def _compare(name: str, made: Path, expected: Path, about: dict[str, Any]) -> Iterator[Case]:
    with safe_open(made, "pt") as file:
        metadata = {k: v for k, v in file.metadata().items() if not k.startswith(OURS)}
    yield exact(f"{name}.metadata", metadata, about["metadata"])
    ours, theirs = load_file(made), load_file(expected)
    described = {
        key: {
            "dtype": str(x.dtype).removeprefix("torch."),
            "shape": list(x.shape),
            **({"values": x.tolist()} if x.dtype == torch.int64 else {}),
        }
        for key, x in ours.items()
    }
    yield exact(f"{name}.keys", described, about["tensors"])
    for key in sorted(set(ours) & set(theirs)):
        if key.startswith("latents_clean_1x"):  # masked controls: two ways to resize a mask
            yield compare(f"{name}.{key}", ours[key], theirs[key], 0.0, MASK_TOLERANCE)
        else:
            yield exact(f"{name}.{key}", ours[key], theirs[key])


class Stub:
    """Encoders that return what is on file, call by call."""

    def __init__(self, case: dict[str, Any], inputs: dict[str, Tensor]) -> None:
        self._latents = [inputs[call["latents"]] for call in case["vae_calls"]]
        self._images = [inputs[call["result"]] for call in case["image_encoder_calls"]]
        self.shapes: list[list[int]] = []
        self.pictures: list[list[int]] = []

    def vae(self, pixels: Tensor) -> Tensor:
        self.shapes.append(list(pixels.shape))
        return self._latents[len(self.shapes) - 1]

    def image(self, pixels: np.ndarray) -> Tensor:
        self.pictures.append(list(pixels.shape))
        return self._images[len(self.pictures) - 1][None]


def _make_dataset(
    name: str, case: dict[str, Any], inputs: dict[str, Tensor], work: Path
) -> TrainingSet:
    """The data set of a case, with clips and pictures of the sizes that the file names tell."""
    toml = case["dataset_config"].replace("<work>", work.as_posix())
    source = Path(re.search(r'(\w+)_jsonl_file = "(.+)"', toml)[2])
    make = _clips if "video_jsonl_file" in toml else _pictures
    entries = make(name, case, inputs, work)
    source.write_text("\n".join(json.dumps(entry) for entry in entries))
    (work / "data.toml").write_text(toml)
    return TrainingSet.load(work / "data.toml")


def _clips(
    name: str, case: dict[str, Any], inputs: dict[str, Tensor], work: Path
) -> list[dict[str, str]]:
    frames: dict[str, int] = {}
    for file in case["files"]:
        stem, first, length = VIDEO_FILE.fullmatch(file).groups()
        frames[stem] = max(frames.get(stem, 0), int(first) + int(length))
    size = case["vae_calls"][0]["pixel_shape"][3:]
    for stem, count in frames.items():
        (work / stem).mkdir()
        for i in range(count):
            Image.new("RGB", (size[1], size[0])).save(work / stem / f"{i:04d}.png")
    return [{"video_path": str(work / stem), "caption": stem} for stem in frames]


def _pictures(
    name: str, case: dict[str, Any], inputs: dict[str, Tensor], work: Path
) -> list[dict[str, str]]:
    """Controls are plain but for those whose transparency is among the inputs of any case."""
    controls = len(case["vae_calls"]) // len(case["files"]) - 1
    entries = []
    for file in case["files"]:
        stem, width, height = IMAGE_FILE.fullmatch(file).groups()
        Image.new("RGB", (int(width), int(height))).save(work / f"{stem}.png")
        entry = {"image_path": str(work / f"{stem}.png"), "caption": stem}
        for i in range(controls):
            rgba = next((x for k, x in inputs.items() if k.endswith(f".{stem}_c{i}.rgba")), None)
            picture = Image.new("RGB", (40, 48)) if rgba is None else Image.fromarray(rgba.numpy())
            picture.save(work / f"{stem}_c{i}.png")
            entry[f"control_path_{i}"] = str(work / f"{stem}_c{i}.png")
        entries.append(entry)
    return entries


def _text(case: dict[str, Any], inputs: dict[str, Tensor], expected: Path) -> Iterator[Case]:
    conditions = {
        prompt: TextCondition(*(inputs[name.strip()][None] for name in names.split("/")))
        for prompt, names in zip(case["prompts"], case["inputs"], strict=True)
    }
    blank = next(iter(conditions.values()))
    encode: Callable[[str], TextCondition] = lambda caption: conditions.get(caption, blank)  # noqa: E731
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for file, about in case["files"].items():
            stem = file.removesuffix("_fp_te.safetensors")
            (work / stem).mkdir()
            for i in range(37):
                Image.new("RGB", (32, 32)).save(work / stem / f"{i:03d}.png")
            (work / f"{stem}.txt").write_text(about["metadata"]["caption1"])
        (work / "data.json").write_text(
            json.dumps({"datasets": [{"video_directory": folder, "resolution": 32}]})
        )
        cache_text(TrainingSet.load(work / "data.json"), TextEncoder(encode, "stub"))
        for file, about in case["files"].items():
            yield from _compare(f"text.{file}", work / file, expected / file, about)


def _batches(case: dict[str, Any], folder: Path) -> Iterator[Case]:
    """Names, types and shapes that the reference's own files have in memory."""
    for name, about in case.items():
        text = load_cache(sorted((folder / "cache_text").glob("*.safetensors"))[0])
        for file in (file for files in about["buckets"].values() for file in files):
            tensors = {**load_cache(folder / f"cache_{name}" / file), **text}
            actual = {
                key: [str(x.dtype).removeprefix("torch."), [1, *x.shape]]
                for key, x in tensors.items()
            }
            expected = {key: value for key, value in about["batch_keys"].items() if value}
            yield exact(f"batch.{name}.{file}", actual, expected)
            yield exact(f"train.{name}.{file}", _gradient(tensors), "finite")


def _gradient(tensors: dict[str, Tensor]) -> str:
    """Whether a file of the reference's gives an adapter a gradient, in a DiT of its widths."""
    config = DiTConfig(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=tensors["llama_vec"].shape[-1],
        pooled_projection_dim=tensors["clip_l_pooler"].shape[-1],
        rope_axes_dim=(4, 6, 6),
        image_proj_dim=tensors["image_embeddings"].shape[-1],
    )
    dit = FramePackDiT(config).requires_grad_(False)
    adapters = Adapters.create(dit, AdapterConfig(rank=2))
    batch = collate([tensors])
    with adapters.attached(dit):
        loss = FlowDenoiser(dit).loss(
            batch.latents,
            torch.zeros_like(batch.latents),
            torch.tensor([0.5]),
            Guided(batch.text, batch.image_embeds),
            latent_indices=batch.latent_indices,
            context=batch.context,
        )
    loss.mean().backward()
    gradients = [p.grad for p in adapters.parameters() if p.grad is not None]
    moved = any(g.isfinite().all() and g.any() for g in gradients)
    return "finite" if moved else "no gradient"


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))
