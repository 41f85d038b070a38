"""The built-in model: complete, small, the same each time, and it can tell prompts apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toyworld.make import captions, make_snapshot

from framepack_core.models.build import Snapshot, load_snapshot
from framepack_core.models.dit import DiTInputs
from framepack_core.models.prompt import system_prefix
from framepack_core.runtime.errors import FramePackError
from framepack_core.toyworld import SNAPSHOT

FILES = {
    "README.md",
    "image_encoder/config.json",
    "image_encoder/model.safetensors",
    "text_encoder/config.json",
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.json",
    "text_encoder_2/config.json",
    "text_encoder_2/model.safetensors",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer_2/merges.txt",
    "tokenizer_2/special_tokens_map.json",
    "tokenizer_2/tokenizer_config.json",
    "tokenizer_2/vocab.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
    "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "transformer_f1/config.json",
    "transformer_f1/diffusion_pytorch_model-00001-of-00002.safetensors",
    "transformer_f1/diffusion_pytorch_model-00002-of-00002.safetensors",
    "transformer_f1/diffusion_pytorch_model.safetensors.index.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
}


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    return load_snapshot(SNAPSHOT, dtype=torch.float32)


def test_files_and_size() -> None:
    found = contents(SNAPSHOT)
    assert set(found) == FILES
    assert sum(map(len, found.values())) <= 20_000_000


def test_making_it_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    make_snapshot(tmp_path / "1")
    make_snapshot(tmp_path / "2")
    first, second = contents(tmp_path / "1"), contents(tmp_path / "2")
    assert set(first) == FILES
    assert [name for name in first if first[name] != second[name]] == []


def test_it_is_not_written_over_something(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FramePackError, match="is not an empty folder"):
        make_snapshot(tmp_path)


@pytest.mark.parametrize("name", ["transformer", "transformer_f1", "text_encoder"])
def test_index_tells_the_total_size(name: str) -> None:
    [index] = (SNAPSHOT / name).glob("*.index.json")
    total = json.loads(index.read_text())["metadata"]["total_size"]
    shards = [path.stat().st_size for path in index.parent.glob("*.safetensors")]
    assert len(shards) == 2 and 0 < sum(shards) - total < 40_000  # the headers


def test_the_whole_chain_runs(snapshot: Snapshot) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None, :, None] / 127.5 - 1
    latents = snapshot.vae.encode(pixels)
    assert latents.shape == (1, 16, 1, 8, 8)
    inputs = DiTInputs(
        latents.repeat(1, 1, 3, 1, 1),
        torch.tensor([500.0]),
        snapshot.text_encoders.encode("a red circle moves right"),
        torch.tensor([10000.0]),
        snapshot.image_encoder.encode(image),
    )
    velocity = snapshot.dit(inputs)
    assert velocity.shape == (1, 16, 3, 8, 8) and 0.1 < velocity.std() < 10
    decoded = snapshot.vae.decode(latents)
    assert decoded.shape == pixels.shape and decoded.isfinite().all()


def test_f1_is_another_model_of_the_same_shape(snapshot: Snapshot) -> None:
    f1 = load_snapshot(SNAPSHOT, f1=True, dtype=torch.float32).dit
    assert f1.config == snapshot.dit.config
    assert not torch.equal(f1.proj_out.weight, snapshot.dit.proj_out.weight)


def test_captions_differ_in_both_text_conditions(snapshot: Snapshot) -> None:
    """Any two captions, even with one word exchanged, give clearly different vectors."""
    conditions = [snapshot.text_encoders.encode(caption) for caption in captions()]
    pooled = torch.cat([condition.pooled for condition in conditions])
    cosines = F.normalize(pooled) @ F.normalize(pooled).T
    pairs = cosines[~torch.eye(len(cosines), dtype=torch.bool)]
    assert pairs.max() < 0.9 and pairs.quantile(0.99) < 0.8 and pairs.mean().abs() < 0.1
    assert 0.5 < pooled.std() < 2
    words = torch.cat([condition.text for condition in conditions], dim=1)
    assert 0.5 < words.std() < 2


def test_free_prompts_differ_too(snapshot: Snapshot) -> None:
    prompts = ["a cat sits on the grass", "A woman dances", "朝の海", "ein Hund läuft"]
    pooled = F.normalize(torch.cat([snapshot.text_encoders.encode(p).pooled for p in prompts]))
    assert (pooled @ pooled.T - torch.eye(4)).max() < 0.9


def test_caption_words_are_single_tokens(snapshot: Snapshot) -> None:
    encoders = snapshot.text_encoders
    tokens = encoders.tokenize("the green square then moves left")
    llama = encoders.llama_tokenizer.convert_ids_to_tokens(tokens.llama_ids[0, tokens.crop :])
    expected = ["the", "Ġgreen", "Ġsquare", "Ġthen", "Ġmoves", "Ġleft", "<|eot_id|>"]
    assert llama == expected
    clip = encoders.clip_tokenizer.convert_ids_to_tokens(tokens.clip_ids[0])
    words = ["the</w>", "green</w>", "square</w>", "then</w>", "moves</w>", "left</w>"]
    assert clip == ["<|startoftext|>", *words, "<|endoftext|>"]


@pytest.mark.parametrize("text", ["a red circle", "naïve 3½ 🐶", "走れ、メロス", "\n\n x"])
def test_the_template_is_cropped_exactly(snapshot: Snapshot, text: str) -> None:
    """The beginning token comes once; what is left after the crop is the text, of any language."""
    encoders = snapshot.text_encoders
    tokens = encoders.tokenize(text)
    ids = tokens.llama_ids[0].tolist()
    tokenizer = encoders.llama_tokenizer
    start = tokenizer.convert_tokens_to_ids("<|begin_of_text|>")
    assert ids[0] == start and ids.count(start) == 1
    if not text.startswith("\n"):  # a line break joins those before it, as in the released one
        assert ids[: tokens.crop] == tokenizer(system_prefix()).input_ids
        assert tokenizer.decode(ids[tokens.crop :]) == text + "<|eot_id|>"
    assert tokenizer.decode(ids[1:]) == system_prefix() + text + "<|eot_id|>"
