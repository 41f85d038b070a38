"""Prompts, clips and captions encoded by ComfyUI's CLIP, VAE and CLIP_VISION."""

from __future__ import annotations

import copy
from typing import Any, NoReturn

import comfy.model_management
import torch
from torch import Tensor

from ...framepack_core.models.prompt import (
    END_OF_PROMPT,
    MAX_PROMPT_TOKENS,
    TextCondition,
    check_prompt,
    mixed,
    system_prefix,
)
from ...framepack_core.parsing.blend import Blend
from ...framepack_core.runtime.errors import FramePackError
from ...framepack_core.runtime.images import Pixels
from ...framepack_core.training.cache import (
    LatentEncoders,
    TextEncoder,
)
from ...framepack_core.training.encoders import latent_identity, state_identity, text_identity
from .sockets import to_image, to_latents


def encode_prompt(clip: Any, text: str, system_prompt: str = "") -> list[Any]:
    """CONDITIONING of a prompt, by our CLIP or ComfyUI's own."""
    check_prompt(text)
    check_prompt(system_prompt, "system prompt")
    _check_spaces(clip)
    system = system_prompt or None
    tokens = clip.tokenize(
        text,
        disable_weights=True,
        system_prompt=system,
        llama_template=native_template(system),
    )
    return _cut(clip.encode_from_tokens_scheduled(tokens))


def encode_blend(clip: Any, prompt: str | Blend, system_prompt: str = "") -> list[Any]:
    """CONDITIONING of a prompt, or of several by their parts."""
    if isinstance(prompt, str):
        return encode_prompt(clip, prompt, system_prompt)
    found = [(part, encode_prompt(clip, text, system_prompt)[0]) for part, text in prompt.parts]
    made = mixed([(part, _condition(*given)) for part, given in found])
    extra = dict(found[0][1][1]) | {"pooled_output": made.pooled}
    extra.pop("attention_mask", None)
    return [[made.text, extra if made.mask is None else extra | {"attention_mask": made.mask}]]


def _condition(words: Tensor, extra: dict[str, Any]) -> TextCondition:
    """As the core has it, without tokens that are only padding."""
    mask = extra.get("attention_mask")
    if mask is not None:
        words = words[:, : int(mask.sum(dim=1).max())]
    return TextCondition(words, extra["pooled_output"])


def _check_spaces(clip: Any) -> None:
    """Refuse a tokenizer to which "a b" is "ab".

    Versions of ComfyUI that take LLaMA's tokenizer class from transformers have such a one with
    transformers 5, whose class makes its own rules of the words in tokenizer.json.
    """
    apart, together = (clip.tokenize(text, disable_weights=True) for text in ("a b", "ab"))
    # Our own tokens are no dict.
    if isinstance(apart, dict) and "llama" in apart and apart["llama"] == together["llama"]:
        raise FramePackError(
            "clip: ComfyUI's tokenizer of this text encoder loses the spaces between words, as "
            "older versions of ComfyUI do with transformers 5; load it with Load FramePack Text "
            'Encoders, update ComfyUI, or install "transformers<5"'
        )


def native_template(system_prompt: str | None) -> str | None:
    """The template as ComfyUI's own tokenizer takes it, or None for its default, which is ours."""
    if system_prompt is None:
        return None
    prefix = system_prefix(system_prompt).replace("{", "{{").replace("}", "}}")
    return prefix + "{}" + END_OF_PROMPT


def _cut(conditioning: list[Any]) -> list[Any]:
    """At most as many tokens as FramePack was trained with."""

    def cut(extra: dict[str, Any]) -> dict[str, Any]:
        mask = extra.get("attention_mask")
        return extra if mask is None else extra | {"attention_mask": mask[:, :MAX_PROMPT_TOKENS]}

    return [[words[:, :MAX_PROMPT_TOKENS], cut(extra)] for words, extra in conditioning]


def latent_encoders(vae: Any, clip_vision: Any, tile: int | None = None) -> LatentEncoders:
    """VAE and CLIP_VISION as the encoders of a latent cache."""

    def encode(pixels: Tensor) -> Tensor:
        clips = [_encode_clip(vae, clip, tile) for clip in pixels]
        return torch.cat(clips)

    def see(image: Pixels) -> Tensor:
        return clip_vision.encode_image(to_image(image[None]), crop=False).last_hidden_state

    models = {"vae": vae.first_stage_model, "image encoder": clip_vision.model}
    return LatentEncoders(encode, see, latent_identity(state_identity(models), tile))


def _encode_clip(vae: Any, pixels: Tensor, tile: int | None) -> Tensor:
    """Model-ready latents [1, 16, T, h, w] of pixels [3, F, H, W] in -1..1."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    image = pixels.permute(1, 2, 3, 0).add(1).div(2)
    if tile is None:
        return to_latents({"samples": _encode_whole(vae, image)}, "vae")
    whole = len(image)  # in time: FramePack's own tiles are in space alone
    samples = vae.encode_tiled(image, tile_x=tile, tile_y=tile, overlap=tile // 4, tile_t=whole)
    return to_latents({"samples": samples}, "vae")


def _encode_whole(vae: Any, image: Tensor) -> Tensor:
    """Without ComfyUI's own tiles where memory runs out: their seams would stay in the cache."""

    def refuse(*_args: Any, **_options: Any) -> NoReturn:
        raise FramePackError(
            "vae: not enough memory for whole frames; set tile to 256, or free memory"
        )

    vae = copy.copy(vae)
    vae.encode_tiled_3d = refuse
    return vae.encode(image)


def text_encoder(clip: Any) -> TextEncoder:
    """CLIP as the encoder of a caption cache."""
    if clip.patcher.patches:
        raise FramePackError("clip: it carries LoRAs; captions are cached without, so unplug them")

    def encode(caption: str) -> TextCondition:
        comfy.model_management.throw_exception_if_processing_interrupted()
        [[words, extra]] = encode_prompt(clip, caption)
        mask = extra.get("attention_mask")
        count = words.shape[1] if mask is None else int(mask.sum())
        return TextCondition(words[:, :count], extra["pooled_output"])

    return TextEncoder(encode, text_identity(state_identity({"clip": clip.cond_stage_model})))
