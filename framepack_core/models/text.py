"""The two text encoders: LLaMA for the words, CLIP for one vector of the whole prompt.

Both run through transformers; parameter names are those of the released checkpoints whatever the
version of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from .prompt import END_OF_PROMPT, MAX_PROMPT_TOKENS, TextCondition, check_prompt, system_prefix

if TYPE_CHECKING:  # slow to import, and ComfyUI has encoders of its own
    from transformers import CLIPTextConfig, LlamaModel

# The released encoders, for files that come without a config.json.
LLAMA_CONFIG: dict[str, Any] = {
    "vocab_size": 128320,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
}
CLIP_CONFIG: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 768,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
# The DiT was trained on the layer two before the last; 0 is the embedding, -1 the normed output.
HIDDEN_STATE = -3


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    def __call__(self, text: str, **options: Any) -> Any: ...


class ClipText(nn.Module):
    """CLIP's text transformer: token ids [B, L] to the pooled vector [B, C]."""

    def __init__(self, config: CLIPTextConfig) -> None:
        from transformers import CLIPTextModel

        super().__init__()
        model = CLIPTextModel(config)
        # transformers 4 has the transformer one level down, under the checkpoint's own name.
        self.text_model = getattr(model, "text_model", model)
        self.max_tokens = config.max_position_embeddings

    def forward(self, ids: Tensor) -> Tensor:
        return self.text_model(ids).pooler_output


def llama_model(config: Mapping[str, Any]) -> LlamaModel:
    """A LLaMA of this config.json: parameters on the meta device, buffers real and in fp32."""
    from transformers import LlamaConfig, LlamaModel
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    with torch.device("meta"):
        model = LlamaModel(LlamaConfig.from_dict(dict(config)))
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, LlamaRotaryEmbedding):
                setattr(module, name, LlamaRotaryEmbedding(config=model.config))
    return model.eval()


def clip_model(config: Mapping[str, Any]) -> ClipText:
    """A CLIP text encoder of this config.json: parameters on the meta device, buffers real."""
    from transformers import CLIPTextConfig

    with torch.device("meta"):
        model = ClipText(CLIPTextConfig.from_dict(dict(config)))
    make_position_ids(model.text_model.embeddings)
    return model.eval()


def make_position_ids(embeddings: nn.Module) -> None:
    """Give transformers' CLIP or SigLIP embeddings the buffer that no checkpoint holds."""
    table = cast(nn.Embedding, embeddings.position_embedding)
    positions = torch.arange(table.num_embeddings)
    embeddings.register_buffer("position_ids", positions[None], persistent=False)


@dataclass(frozen=True)
class PromptTokens:
    """A tokenized prompt: ids [1, L] of both encoders; LLaMA's first `crop` are not the user's."""

    llama_ids: Tensor
    clip_ids: Tensor
    crop: int


@torch.no_grad()
def llama_states(llama: LlamaModel, ids: Tensor, crop: int) -> Tensor:
    """Hidden states [B, L - crop, C] of unpadded ids [B, L], without the first `crop`.

    Right padding could not change them, attention being causal, so none is ever added.
    """
    states = llama(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    return states[HIDDEN_STATE][:, crop:]


@torch.no_grad()
def clip_pooled(clip: ClipText, ids: Tensor) -> Tensor:
    """The pooled vector [B, C] of ids [B, L], read at the end token: padding cannot change it."""
    return clip(ids)


@dataclass(frozen=True)
class TextEncoders:
    """Both encoders with their tokenizers; each runs in the dtype and on the device it is on."""

    llama: LlamaModel
    clip: ClipText
    llama_tokenizer: Tokenizer
    clip_tokenizer: Tokenizer

    def encode(self, prompt: str, system_prompt: str | None = None) -> TextCondition:
        """The condition of one prompt: text [1, L, 4096] of at most 256 tokens, pooled [1, 768]."""
        tokens = self.tokenize(prompt, system_prompt)
        llama_ids = tokens.llama_ids.to(self.llama.embed_tokens.weight.device)
        clip_ids = tokens.clip_ids.to(next(self.clip.parameters()).device)
        return TextCondition(
            text=llama_states(self.llama, llama_ids, tokens.crop),
            pooled=clip_pooled(self.clip, clip_ids),
        )

    def tokenize(self, prompt: str, system_prompt: str | None = None) -> PromptTokens:
        """The ids of the templated prompt for LLaMA, and of the bare prompt for CLIP."""
        check_prompt(prompt)
        check_prompt(system_prompt or "", "system prompt")
        prefix = system_prefix(system_prompt)
        crop = len(self.llama_tokenizer(prefix).input_ids)
        llama_ids = self.llama_tokenizer(
            prefix + prompt + END_OF_PROMPT, truncation=True, max_length=crop + MAX_PROMPT_TOKENS
        ).input_ids
        clip_ids = self.clip_tokenizer(
            prompt, truncation=True, max_length=self.clip.max_tokens
        ).input_ids
        return PromptTokens(torch.tensor([llama_ids]), torch.tensor([clip_ids]), crop)
