"""Prompts in LLaMA 3's own vocabulary: the template, the crop, and what is cut off."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llama_words
import pytest
from llama_words import PROMPTS
from transformers import PreTrainedTokenizerFast

from framepack_core.models.prompt import END_OF_PROMPT, MAX_PROMPT_TOKENS, system_prefix
from framepack_core.models.text import TextEncoders

TEMPLATE_TOKENS = 95
EOT = 128009


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if llama_words.vocabulary() is None:
        pytest.skip(llama_words.MISSING)
    return llama_words.write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module")
def encoders(tokenizer: PreTrainedTokenizerFast) -> TextEncoders:
    no_clip: Any = lambda text, **_: SimpleNamespace(input_ids=[0, 2])  # noqa: E731
    clip: Any = SimpleNamespace(max_tokens=77)
    return TextEncoders(None, clip, tokenizer, no_clip)  # type: ignore[arg-type]


def test_words_have_their_published_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("Hello world").input_ids == [128000, 9906, 1917]
    assert tokenizer("<|eot_id|>").input_ids == [128000, EOT]
    assert len(tokenizer) == 128259


def test_the_template_has_95_tokens_before_the_prompt(encoders: TextEncoders) -> None:
    tokens = encoders.tokenize("a cat")
    assert tokens.crop == TEMPLATE_TOKENS
    assert tokens.llama_ids[0, TEMPLATE_TOKENS:].tolist() == [64, 8415, EOT]


@pytest.mark.parametrize("name", PROMPTS)
def test_ids_are_those_of_the_padded_and_masked_way(
    encoders: TextEncoders, tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    """The released pipeline pads to 95 + 256 tokens, and takes those under the mask."""
    padded = tokenizer(
        system_prefix() + PROMPTS[name] + END_OF_PROMPT,
        padding="max_length",
        truncation=True,
        max_length=TEMPLATE_TOKENS + MAX_PROMPT_TOKENS,
    )
    real = sum(padded.attention_mask)
    ids = encoders.tokenize(PROMPTS[name]).llama_ids[0].tolist()
    assert ids == padded.input_ids[:real]
    assert set(padded.input_ids[real:]) <= {tokenizer.pad_token_id}
    long = name.startswith("long")
    assert (len(ids) == TEMPLATE_TOKENS + MAX_PROMPT_TOKENS) == long
    assert (ids[-1] == EOT) == (not long)


@pytest.mark.parametrize("name", PROMPTS)
def test_ids_are_those_of_the_library_that_the_vocabulary_is_for(
    tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    path = llama_words.vocabulary()
    assert path is not None
    ranks = llama_words.read_ranks(path)
    special = {token: len(ranks) + i for i, token in enumerate(llama_words.special_tokens())}
    reference = tiktoken.Encoding(
        "llama3", pat_str=llama_words.PATTERN, mergeable_ranks=ranks, special_tokens=special
    )
    text = system_prefix() + PROMPTS[name] + END_OF_PROMPT
    assert tokenizer(text).input_ids[1:] == reference.encode(text, allowed_special="all")


def test_special_tokens_in_a_prompt_are_what_they_say(encoders: TextEncoders) -> None:
    ids = encoders.tokenize(PROMPTS["special"]).llama_ids[0, TEMPLATE_TOKENS:].tolist()
    assert [x for x in ids if x >= 128000] == [EOT, 128006, 128007, 128257, 128258, EOT]


def test_a_system_prompt_moves_the_crop(encoders: TextEncoders) -> None:
    tokens = encoders.tokenize("a cat", "Be brief.")
    text = tokens.llama_ids[0, tokens.crop :].tolist()
    assert tokens.crop < TEMPLATE_TOKENS and text == [64, 8415, EOT]
