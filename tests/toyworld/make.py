"""Write the built-in model: a complete snapshot directory of the real layout at toy size.

`python tests/toyworld make OUT` gives the same bytes each time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from framepack_core.models.build import load_text_encoders
from framepack_core.models.dit import DiTConfig, FramePackDiT
from framepack_core.models.image import siglip_model
from framepack_core.models.prompt import SYSTEM_PROMPT, system_prefix
from framepack_core.models.text import clip_model, clip_pooled, llama_model
from framepack_core.models.vae import AutoencoderKL, VAEConfig
from framepack_core.runtime.errors import FramePackError
from framepack_core.toyworld.render import CAPTION_VARIANTS, COLOUR_NAMES, FORMS, MOTIONS, caption
from framepack_core.weights.files import open_weights, save_weights
from framepack_core.weights.layouts import F1_FOLDER, FOLDERS, TOKENIZERS

DIT = DiTConfig(
    num_attention_heads=2,
    attention_head_dim=16,
    rope_axes_dim=(4, 6, 6),
    num_layers=1,
    num_single_layers=2,
    num_refiner_layers=1,
    text_embed_dim=64,
    pooled_projection_dim=64,
    image_proj_dim=48,
)
# Four norm groups: one channel a group would take the colour out of the picture.
VAE = VAEConfig(block_out_channels=(8, 16, 16, 16), layers_per_block=1, norm_num_groups=4)
LLAMA = {
    "architectures": ["LlamaModel"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
}
CLIP = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 64,
    "bos_token_id": 0,
    "eos_token_id": 2,  # as in the released config: pooling then takes the highest token id
    "pad_token_id": 1,
}
SIGLIP = {
    "architectures": ["SiglipVisionModel"],
    "model_type": "siglip_vision_model",
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_channels": 3,
    "image_size": 56,
    "patch_size": 14,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
LLAMA_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<pad>",
)
# How the released tokenizers part a text: the crop of the template relies on its line breaks.
LLAMA_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())

CARD = """\
---
license: apache-2.0
pipeline_tag: image-to-video
---

# Toy World

The FramePack architecture at toy size, in the file layout of the released models: two DiTs
(`transformer/`, `transformer_f1/`), the video autoencoder, LLaMA and CLIP text encoders with their
tokenizers, and the SigLIP image encoder. It is small enough to run a whole generation on a CPU in
seconds, and every loader can be tried on it.

The weights are random: the videos are noise. The tokenizers read any text, with whole words for
captions such as "a red circle moves right".

Made by `python tests/toyworld make OUT`; the same command gives the same bytes.
"""


def captions(variants: int = 1, then: bool = False) -> list[str]:
    """Every caption of the world, in so many wordings."""
    motions = range(len(MOTIONS) + 1)  # one more than named: TRAVEL
    subjects = itertools.product(range(len(FORMS)), range(len(COLOUR_NAMES)), motions)
    return [caption(*s, then=then, variant=v) for s in subjects for v in range(variants)]


def make_snapshot(out: Path) -> None:
    """Write the whole snapshot into the new or empty folder `out`."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FramePackError(f"{out} is not an empty folder: give a new one")
    llama_words = write_llama_tokenizer(out / TOKENIZERS["llama"])
    clip_words = write_clip_tokenizer(out / TOKENIZERS["clip"])
    llama, clip = {**LLAMA, "vocab_size": llama_words}, {**CLIP, "vocab_size": clip_words}

    dit = {"_class_name": "HunyuanVideoTransformer3DModelPacked", **DIT.to_dict()}
    for seed, folder in enumerate((FOLDERS["dit"], F1_FOLDER)):
        state = random_state(FramePackDiT(DIT, device="meta"), seed)
        write_model(out / folder, "diffusion_pytorch_model", dit, state, shards=2)

    vae = {"_class_name": "AutoencoderKLHunyuanVideo", **asdict(VAE)}
    state = random_state(AutoencoderKL(VAE, device="meta"), 2)
    write_model(out / FOLDERS["vae"], "diffusion_pytorch_model", vae, state)
    write_model(out / FOLDERS["llama"], "model", llama, random_state(llama_model(llama), 3), 2)
    write_model(out / FOLDERS["clip"], "model", clip, random_state(clip_model(clip), 4))
    write_model(
        out / FOLDERS["image_encoder"], "model", SIGLIP, random_state(siglip_model(SIGLIP), 5)
    )
    spread_pooled(out)
    (out / "README.md").write_text(CARD, encoding="utf-8")


def write_model(
    folder: Path,
    name: str,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    shards: int = 1,
) -> None:
    """A component's folder as diffusers and transformers write it: bf16, config, shards, index."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config)
    state = {key: state[key].to(torch.bfloat16) for key in sorted(state)}
    if shards == 1:
        save_weights(folder / f"{name}.safetensors", state, {"format": "pt"})
        return
    weight_map = {}
    keys = list(state)
    for number in range(shards):
        part = keys[number * len(keys) // shards : (number + 1) * len(keys) // shards]
        file = f"{name}-{number + 1:05d}-of-{shards:05d}.safetensors"
        save_weights(folder / file, {key: state[key] for key in part}, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / f"{name}.safetensors.index.json", index)


def random_state(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Random tensors for a model: norms 1, biases 0, layers that keep the variance of their input.

    Words come through: their embeddings have variance 1, those of positions little, and the
    encoders' attention is nearly even, so that CLIP's last token reads all words.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    return {name: _random(name, shapes[name], generator) for name in sorted(shapes)}


def spread_pooled(snapshot: Path) -> None:
    """Centre and scale CLIP's pooled vector over all captions, through its last norm.

    Every caption has the same end token, so a random CLIP gives all of them nearly one vector.
    """
    folders = (snapshot / FOLDERS["llama"], snapshot / FOLDERS["clip"])
    encoders = load_text_encoders(*folders, dtype=torch.float32)
    tokens = [encoders.tokenize(caption).clip_ids for caption in captions()]
    pooled = torch.cat([clip_pooled(encoders.clip, ids) for ids in tokens])
    mean, deviation = pooled.mean(dim=0), pooled.std(dim=0)
    state = dict(open_weights(folders[1] / "model.safetensors"))
    state["text_model.final_layer_norm.weight"] = 1 / deviation
    state["text_model.final_layer_norm.bias"] = -mean / deviation
    config = json.loads((folders[1] / "config.json").read_text(encoding="utf-8"))
    write_model(folders[1], "model", config, state)


def write_llama_tokenizer(folder: Path) -> int:
    """A byte-level BPE with the chat tokens of LLaMA 3; returns how many tokens it has."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, initial_alphabet=BYTES, show_progress=False, special_tokens=[]
    )
    texts = [*captions(CAPTION_VARIANTS, then=True), system_prefix(SYSTEM_PROMPT)]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(LLAMA_SPECIAL))
    start = LLAMA_SPECIAL[0]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A",
        pair=f"{start} $A {start} $B",
        special_tokens=[(start, tokenizer.token_to_id(start))],
    )
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    special = {"bos_token": start, "eos_token": LLAMA_SPECIAL[1], "pad_token": LLAMA_SPECIAL[-1]}
    _write_json(folder / "special_tokens_map.json", special)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192}
    _write_json(folder / "tokenizer_config.json", {**special, **config})
    return tokenizer.get_vocab_size()


def write_clip_tokenizer(folder: Path) -> int:
    """A BPE in CLIP's own files (vocab.json, merges.txt); returns how many tokens it has."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    # Given first, all bytes have fixed ids, by which the trainer breaks ties between merges.
    alphabet = [*BYTES, *(byte + "</w>" for byte in BYTES)]
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=alphabet, show_progress=False, end_of_word_suffix="</w>"
    )
    tokenizer.train_from_iterator(captions(CAPTION_VARIANTS, then=True), trainer)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    # The order of OpenAI's vocabulary: bytes, bytes that end a word, merges, the two special ones.
    words = [*alphabet, *map("".join, merges)]
    vocabulary = {word: i for i, word in enumerate([*words, CLIP_START, CLIP_END])}
    folder.mkdir(parents=True)
    _write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = dict.fromkeys(("eos_token", "unk_token", "pad_token"), CLIP_END)
    special["bos_token"] = CLIP_START
    _write_json(folder / "special_tokens_map.json", special)
    config = {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "model_max_length": 77}
    _write_json(folder / "tokenizer_config.json", {**special, **config})
    return len(vocabulary)


def _random(name: str, shape: Iterable[int], generator: torch.Generator) -> Tensor:
    shape = tuple(shape)
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    deviation = 1 / math.sqrt(math.prod(shape[1:]))
    if "embed_tokens" in name or "token_embedding" in name:
        deviation = 1.0
    if "position_embedding" in name:
        deviation = 0.1
    if "q_proj" in name or "k_proj" in name:
        deviation *= 0.3
    return torch.randn(shape, generator=generator) * deviation


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="a folder that is new or empty")
    make_snapshot(parser.parse_args().out)
