"""The text encoders against transformers run the long way, with a toy tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from framepack_core.models.prompt import (
    MAX_PROMPT_TOKENS,
    fit_length,
    system_prefix,
)
from framepack_core.models.text import (
    CLIP_CONFIG,
    LLAMA_CONFIG,
    ClipText,
    TextEncoders,
    clip_model,
    clip_pooled,
    llama_model,
    llama_states,
)

SPECIAL = ["<unk>", "<s>", "</s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
WORDS = ["system", "user", "a", "cat", "runs", "be", "brief"]
TINY_LLAMA = {
    # Keys that a real config.json has and that shape nothing.
    "architectures": ["LlamaModel"],
    "torch_dtype": "float16",
    "transformers_version": "4.46.1",
    "rope_scaling": None,
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_theta": 500000.0,
    "max_position_embeddings": 512,
}
TINY_CLIP = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 12,
    "eos_token_id": 2,
}


def make_tokenizer(end: str | None) -> PreTrainedTokenizerFast:
    """Words and special tokens, `<s>` in front and `end` behind."""
    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    if end:  # CLIP's end token is its highest id
        vocabulary[end] = 31
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([*SPECIAL, *([end] if end else [])])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<s> $A {end or ''}".strip(),
        special_tokens=[("<s>", vocabulary["<s>"]), *([(end, vocabulary[end])] if end else [])],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def load(model: torch.nn.Module, reference: torch.nn.Module, prefix: str = "") -> Any:
    """`model` off the meta device with the weights of `reference`, by the released names."""
    weights = {prefix + k.removeprefix(prefix): v for k, v in reference.state_dict().items()}
    model.load_state_dict(weights, assign=True)
    return model.to("cpu")


@pytest.fixture(scope="module")
def reference_llama() -> LlamaModel:
    torch.manual_seed(0)
    return LlamaModel(LlamaConfig.from_dict(TINY_LLAMA)).eval()


@pytest.fixture(scope="module")
def reference_clip() -> CLIPTextModel:
    torch.manual_seed(1)
    return CLIPTextModel(CLIPTextConfig.from_dict(TINY_CLIP)).eval()


@pytest.fixture(scope="module")
def encoders(reference_llama: LlamaModel, reference_clip: CLIPTextModel) -> TextEncoders:
    return TextEncoders(
        load(llama_model(TINY_LLAMA), reference_llama),
        load(clip_model(TINY_CLIP), reference_clip, "text_model."),
        make_tokenizer(None),
        make_tokenizer("<end>"),
    )


def padded_states(llama: LlamaModel, ids: Tensor, crop: int) -> Tensor:
    """What the released pipeline does: pad on the right, mask, take the words afterwards."""
    real = ids.shape[1]
    padded = torch.nn.functional.pad(ids, (0, 7))
    mask = torch.arange(real + 7)[None] < real
    with torch.no_grad():
        states = llama(padded, attention_mask=mask.long(), output_hidden_states=True).hidden_states
    return states[-3][:, crop:real]


def test_the_crop_is_the_template_and_nothing_of_the_user(encoders):
    tokens = encoders.tokenize("a cat runs", "be brief")
    # <s> header system header be brief eot header user header
    assert tokens.crop == 10
    words = encoders.llama_tokenizer.convert_ids_to_tokens(tokens.llama_ids[0, tokens.crop :])
    assert words == ["a", "cat", "runs", "<|eot_id|>"]
    clip_words = encoders.clip_tokenizer.convert_ids_to_tokens(tokens.clip_ids[0])
    assert clip_words == ["<s>", "a", "cat", "runs", "<end>"]


def test_encode_equals_the_padded_and_masked_way(encoders, reference_llama, reference_clip):
    tokens = encoders.tokenize("a cat")
    condition = encoders.encode("a cat")
    expected = padded_states(reference_llama, tokens.llama_ids, tokens.crop)
    torch.testing.assert_close(condition.text, expected)
    padded = torch.nn.functional.pad(tokens.clip_ids, (0, 5), value=31)
    with torch.no_grad():
        torch.testing.assert_close(condition.pooled, reference_clip(padded).pooler_output)
    assert condition.mask is None


def test_long_prompts_are_cut(encoders):
    condition = encoders.encode("cat " * 400)
    assert condition.text.shape == (1, MAX_PROMPT_TOKENS, 16)
    assert encoders.tokenize("cat " * 400).clip_ids.shape == (1, 12)


def test_the_system_prompt_reaches_the_words_only(encoders):
    default, brief = encoders.encode("a cat"), encoders.encode("a cat", "be brief")
    assert default.text.shape == brief.text.shape == (1, 3, 16)
    assert not torch.allclose(default.text, brief.text)
    assert torch.equal(default.pooled, brief.pooled)


def test_braces_are_text():
    assert "{prompt} {" in system_prefix("{prompt} {")


def test_models_keep_their_dtype_but_not_their_rotary_table(reference_llama, reference_clip):
    half = {k: v.bfloat16() for k, v in reference_llama.state_dict().items()}
    llama = llama_model(TINY_LLAMA)
    llama.load_state_dict(half, assign=True)
    assert llama_states(llama, torch.tensor([[1, 2, 3]]), 1).dtype == torch.bfloat16
    torch.testing.assert_close(
        llama.rotary_emb.inv_freq, 500000.0 ** (-torch.arange(0, 4, 2) / 4), rtol=1e-6, atol=0
    )
    clip = clip_model(TINY_CLIP)
    weights = {
        "text_model." + k.removeprefix("text_model."): v.bfloat16()
        for k, v in reference_clip.state_dict().items()
    }
    clip.load_state_dict(weights, assign=True)
    assert clip_pooled(clip, torch.tensor([[1, 31]])).dtype == torch.bfloat16


def test_only_parameters_wait_on_the_meta_device():
    for model in (llama_model(TINY_LLAMA), clip_model(TINY_CLIP)):
        assert all(p.is_meta for p in model.parameters())
        assert not any(b.is_meta for b in model.buffers())


def test_released_sizes():
    llama, clip = llama_model(LLAMA_CONFIG), clip_model(CLIP_CONFIG)
    attention = 2 * 4096 * 4096 + 2 * 4096 * 1024
    layer = attention + 3 * 4096 * 14336 + 2 * 4096
    assert sum(p.numel() for p in llama.parameters()) == 128320 * 4096 + 32 * layer + 4096
    layer = 4 * (768 + 1) * 768 + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    assert sum(p.numel() for p in clip.parameters()) == (49408 + 77) * 768 + 12 * layer + 2 * 768
    assert isinstance(clip, ClipText)
    assert {name.split(".")[0] for name in clip.state_dict()} == {"text_model"}


@pytest.mark.parametrize("length, real", [(2, 2), (5, 3)])
def test_fit_length_cuts_or_pads(length, real):
    text = torch.arange(1.0, 7.0).view(1, 3, 2)
    fitted, mask = fit_length(text, length)
    assert fitted.shape == (1, length, 2) and mask.tolist() == [
        [True] * real + [False] * (length - real)
    ]
    assert torch.equal(fitted[:, :real], text[:, :real]) and not fitted[:, real:].any()
