"""The tiny text and image encoders, from token ids and pictures to what the DiT is given."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from framepack_core.models.image import HEAD_PREFIX, ImageEncoder, preprocess, siglip_model
from framepack_core.models.prompt import (
    END_OF_PROMPT,
    MAX_PROMPT_TOKENS,
    fit_length,
    system_prefix,
)
from framepack_core.models.text import clip_model, clip_pooled, llama_model, llama_states
from golden.result import Case, compare, exact

RTOL, ATOL = 1e-4, 2e-5


def check(folder: Path) -> Iterator[Case]:
    notes = json.loads((folder / "te_tiny.json").read_text())
    data = load_file(folder / "te_tiny.safetensors")
    yield from _template(notes)
    yield from _llama(folder, notes, data)
    yield from _clip(folder, notes, data)
    yield from _siglip(folder, notes, data)
    yield from _lengths(data)


def _close(name: str, actual: Tensor, expected: Tensor) -> Case:
    return compare(name, actual, expected, RTOL, ATOL)


def _load(model: nn.Module, folder: Path, notes: dict[str, Any]) -> nn.Module:
    weights = load_file(folder / notes["weights"].split()[0])
    kept = {k: v.float() for k, v in weights.items() if not k.startswith(HEAD_PREFIX)}
    model.load_state_dict(kept, assign=True)
    return model


def _template(notes: dict[str, Any]) -> Iterator[Case]:
    template = notes["prompt_template"]
    yield exact("template", system_prefix() + "{}" + END_OF_PROMPT, template["text"])
    yield exact("max_prompt_tokens", MAX_PROMPT_TOKENS, template["max_prompt_tokens"])


def _llama(folder: Path, notes: dict[str, Any], data: dict[str, Tensor]) -> Iterator[Case]:
    llama = _load(llama_model(notes["llama"]["config"]), folder, notes["llama"])
    crop = notes["prompt_template"]["crop_start"]
    for case in notes["cases"]:
        name = case["name"]
        real = int(data[f"{name}.llama_mask"].sum())
        states = llama_states(llama, data[f"{name}.llama_ids"][:, :real], crop)
        yield exact(f"{name}.llama_vec.shape", list(states.shape), case["llama_vec_shape"])
        every = re.search(r"\d+", case["stored_rows"])
        stored = states[:, :: int(every.group())] if every else states
        yield _close(f"{name}.llama_vec", stored, data[f"{name}.llama_vec"])


def _clip(folder: Path, notes: dict[str, Any], data: dict[str, Tensor]) -> Iterator[Case]:
    clip = _load(clip_model(notes["clip"]["config"]), folder, notes["clip"])
    for key in sorted(data):
        if key.endswith(".clip_pooler"):
            ids = data[key.replace("pooler", "ids")]
            yield _close(key, clip_pooled(clip, ids), data[key])
        elif key.endswith(".clip_last_hidden"):
            with torch.no_grad():
                ids = data[key.replace("last_hidden", "ids")]
                hidden = clip.text_model(ids).last_hidden_state
            every = -(-hidden.shape[1] // data[key].shape[1])  # evenly spaced rows are stored
            yield _close(key, hidden[:, ::every], data[key])
        elif key.startswith("clip_") and key.endswith(".pooler"):
            ids = data[key.replace("pooler", "ids")]
            yield _close(key, clip_pooled(clip, ids), data[key])


def _siglip(folder: Path, notes: dict[str, Any], data: dict[str, Tensor]) -> Iterator[Case]:
    config = notes["siglip"]["config"]
    siglip = _load(siglip_model(config), folder, notes["siglip"])
    encoder = ImageEncoder(siglip, config["image_size"])
    for image in notes["siglip"]["images"]:
        key = f"image.{image['image']}"
        picture = data[key].numpy()
        pixels = preprocess(picture, config["image_size"])
        yield _close(f"{key}.pixel_values", pixels, data[f"{key}.pixel_values"])
        hidden = encoder.encode(picture)
        yield _close(f"{key}.last_hidden_state", hidden, data[f"{key}.last_hidden_state"])


def _lengths(data: dict[str, Tensor]) -> Iterator[Case]:
    """Every `<case>.padded` and `<case>.cropped_to_<n>` is made from that case's LLaMA vectors."""
    for key in sorted(data):
        match = re.fullmatch(r"(.+)\.(padded|cropped)(?:_to_\d+)?", key)
        if not match:
            continue
        case, how = match.groups()
        text, mask = fit_length(data[f"{case}.llama_vec"], data[key].shape[1])
        yield exact(key, text, data[key])
        yield exact(f"{case}.{how}_mask", mask, data[f"{case}.{how}_mask"])
