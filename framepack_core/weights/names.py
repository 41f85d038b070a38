"""What the tensors of each component are called in the files that exist, and what a file is.

The internal names are those of the released diffusers and transformers checkpoints, without the
outer `text_model.` or `vision_model.`, which transformers 5 dropped and older ones have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from .layouts import TITLES, Component

# In the names of DiT files and their folders: the weights of both models have the same shapes.
_F1 = re.compile(r"(?<![a-z0-9])f1(?![a-z0-9])", re.IGNORECASE)
_ORIGINAL = re.compile(r"frame[_-]?pack[_-]?i2v", re.IGNORECASE)
# Prefixes by the tool that wrote the file: ComfyUI checkpoints, ComfyUI and kohya, diffusers.
PREFIXES: dict[Component, tuple[str, ...]] = {
    "dit": ("", "model.diffusion_model.", "diffusion_model.", "model.model.", "transformer."),
    "vae": ("", "vae."),
    "llama": ("", "model."),
    "clip": ("", "text_model."),
    "image_encoder": ("", "vision_model."),
}
# A name that every file of the component has, by which its prefix is told.
MARKERS: dict[Component, str] = {
    "dit": "x_embedder.proj.weight",
    "vae": "decoder.conv_in.conv.weight",
    "llama": "embed_tokens.weight",
    "clip": "embeddings.token_embedding.weight",
    "image_encoder": "embeddings.patch_embedding.weight",
}
# Tensors that FramePack makes no use of, after the prefix is gone.
UNUSED: dict[Component, re.Pattern[str]] = {
    "llama": re.compile(r"lm_head\.weight|tokenizer.*|.*rotary_emb\.inv_freq"),
    "clip": re.compile(r"text_projection(\.weight)?|logit_scale|embeddings\.position_ids"),
    "image_encoder": re.compile(r"head\..*|embeddings\.position_ids"),
}
# ComfyUI's autoencoder names (those of latent diffusion) for parts of the same shape.
COMFY_VAE = (
    (r"encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets."),
    (r"encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"coder\.norm_out\.", "coder.conv_norm_out."),
)
COMFY_UP = re.compile(r"decoder\.up\.(\d+)\.")

# What a file is by pieces of its names, all of which must occur; the first fit counts, so that
# LoRAs, which repeat the names of their model, come before models.
KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("LoHa (LyCORIS)", (".hada_w1_a",)),
    ("LoKr (LyCORIS)", (".lokr_w",)),
    ("LoRA (musubi-tuner and kohya names)", ("\nlora_unet_",)),
    ("LoRA (diffusers names)", ("\ntransformer.", ".lora_A.")),
    ("LoRA (diffusion-pipe and ComfyUI names)", ("\ndiffusion_model.", ".lora_A.")),
    ("LoRA (PEFT names)", (".lora_A.",)),
    ("LoRA", (".lora_down.",)),
    ("LoRA", (".lora.down.",)),
    (TITLES["dit"], ("clean_x_embedder.proj.weight",)),
    (
        "HunyuanVideo DiT (diffusers names)",
        ("x_embedder.proj.weight", "context_embedder.token_refiner."),
    ),
    ("HunyuanVideo DiT (original names)", ("txt_in.individual_token_refiner.",)),
    ("Wan DiT", ("text_embedding.0.weight", "blocks.0.self_attn.norm_q.weight")),
    ("Wan DiT (diffusers names)", ("condition_embedder.text_embedder.", "blocks.0.attn1.")),
    ("Flux DiT", ("double_blocks.0.img_attn.norm.key_norm.",)),
    ("Flux DiT (diffusers names)", ("\ncontext_embedder.weight", "single_transformer_blocks.0.")),
    ("Stable Diffusion 3 model", ("joint_blocks.0.",)),
    ("Stable Diffusion model", ("input_blocks.0.0.weight",)),
    ("Stable Diffusion model (diffusers names)", ("down_blocks.0.attentions.0.transformer_",)),
    (f"{TITLES['vae']} (ComfyUI names)", ("decoder.up.0.block.0.conv1.conv.weight",)),
    (TITLES["vae"], ("decoder.up_blocks.0.resnets.0.conv1.conv.weight", "quant_conv.")),
    ("Wan VAE", ("decoder.middle.0.residual.0.gamma",)),
    ("image VAE (Stable Diffusion or Flux)", ("decoder.conv_in.weight",)),
    ("T5 text encoder", ("block.0.layer.0.SelfAttention.q.weight",)),
    ("OpenCLIP text encoder", ("transformer.resblocks.0.",)),
    ("CLIP model of text and vision", ("token_embedding.", "patch_embedding.")),
    (TITLES["llama"], ("layers.0.mlp.gate_proj.weight", "embed_tokens.weight")),
    (TITLES["clip"], ("embeddings.token_embedding.weight", "layers.0.mlp.fc1.weight")),
    ("CLIP vision encoder", ("embeddings.patch_embedding.weight", "class_embedding")),
    (TITLES["image_encoder"], ("embeddings.patch_embedding.weight",)),
)
ADAPTERS = ("LoRA", "LoHa", "LoKr")
UNKNOWN_KIND = "file of an unknown kind"


def to_internal(component: Component, keys: Iterable[str]) -> dict[str, str]:
    """The internal name of every tensor that counts, with the name `keys` has for it.

    Applied to a built model's own names it gives the internal names of that, so the two can be
    matched. A name that fits no table stays as it is.
    """
    keys = list(keys)
    prefix = _prefix(component, set(keys))
    names = {key.removeprefix(prefix): key for key in keys}
    if component == "vae":
        rename = _comfy_vae_renamer(names)
        names = {rename(name): key for name, key in names.items()}
    unused = UNUSED.get(component)
    return {name: k for name, k in names.items() if unused is None or not unused.fullmatch(name)}


def guess_kind(keys: Iterable[str]) -> str:
    """What kind of file has these tensors, in words: "LoRA (diffusers names)", "Wan VAE"."""
    text = "\n" + "\n".join(keys) + "\n"
    for kind, pieces in KINDS:
        if all(piece in text for piece in pieces):
            return kind
    return UNKNOWN_KIND


def explain_mismatch(
    component: Component, keys: Iterable[str], wanted: Iterable[str]
) -> str | None:
    """Why a file with these tensors is not the model whose names are `wanted`; None if it is.

    Both are names as they come, of the file and of the built model.
    """
    keys = list(keys)
    found, needed = to_internal(component, keys), to_internal(component, wanted)
    missing = [name for name in needed if name not in found]
    extra = [key for name, key in found.items() if name not in needed]
    if not missing and not extra:
        return None
    counts = f"{_some('missing', missing)}; {_some('left over', extra)}"
    return f"{_misfit(component, guess_kind(keys), bool(extra))} ({counts})"


def _misfit(component: Component, kind: str, extra: bool) -> str:
    title = TITLES[component]
    if kind.startswith(ADAPTERS):
        return f"is a {kind}, not a {title}: load it as a LoRA, and give the model's own file here"
    if kind != UNKNOWN_KIND and not kind.startswith(title):
        return f"is a {kind}, not a {title}: give another file"
    if not extra:
        return f"is only a part of a {title}: give the file or folder that has all of it"
    if kind == UNKNOWN_KIND:
        return f"does not look like a {title}: give another file"
    return f"is a {title} of other sizes than expected: put its own config.json beside it"


def _prefix(component: Component, keys: set[str]) -> str:
    prefixes = (p for p in PREFIXES[component] if p + MARKERS[component] in keys)
    return next(prefixes, "")


def _comfy_vae_renamer(names: Iterable[str]) -> Callable[[str], str]:
    """Latent diffusion counts decoder levels from the finest, diffusers from the coarsest."""
    levels = [int(match[1]) for name in names if (match := COMFY_UP.match(name))]
    last = max(levels, default=0)

    def rename(name: str) -> str:
        if match := COMFY_UP.match(name):
            rest = name[match.end() :].replace("block.", "resnets.", 1)
            rest = rest.replace("upsample.", "upsamplers.0.", 1)
            name = f"decoder.up_blocks.{last - int(match[1])}.{rest}"
        for pattern, replacement in COMFY_VAE:
            name = re.sub(pattern, replacement, name)
        return name

    return rename


def _some(what: str, names: list[str]) -> str:
    first = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {what}" + (f": {first}" if names else "")


def mode_by_name(path: Path | str) -> Literal["framepack", "f1"] | None:
    """Which model a file is by the end of its path, as released ones are named; None if unsaid."""
    name = "/".join(Path(path).parts[-3:])
    if _F1.search(name):
        return "f1"
    return "framepack" if _ORIGINAL.search(name) else None
