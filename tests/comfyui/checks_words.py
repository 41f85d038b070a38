"""Token ids of ComfyUI's own text encoder and of ours, in LLaMA 3's own vocabulary."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import SkipTest

import comfy.text_encoders.hunyuan_video as hunyuan_video
import llama_words
import transformers
from inside import error_of, pack, slow
from llama_words import PROMPTS
from transformers import PreTrainedTokenizerFast

TEMPLATE_TOKENS, MAX_PROMPT_TOKENS = 95, 256


@contextmanager
def tokenizer_folder() -> Iterator[Path]:
    if llama_words.vocabulary() is None:
        raise SkipTest(llama_words.MISSING)
    with tempfile.TemporaryDirectory() as folder:
        yield llama_words.write_tokenizer(Path(folder))


@cache
def both() -> tuple[Any, Any]:
    """Our encoders and ComfyUI's tokenizer of HunyuanVideo, reading the same tokenizer.json."""
    kind = hunyuan_video.LlamaTokenizerFast
    with tokenizer_folder() as folder:
        of_folder = SimpleNamespace(from_pretrained=lambda *_, **__: kind.from_pretrained(folder))
        hunyuan_video.LlamaTokenizerFast = of_folder
        try:
            theirs = hunyuan_video.HunyuanVideoTokenizer()
        finally:
            hunyuan_video.LlamaTokenizerFast = kind
        ours = PreTrainedTokenizerFast.from_pretrained(folder)
    no_clip = lambda text, **_: SimpleNamespace(input_ids=[0, 2])  # noqa: E731
    clip = SimpleNamespace(max_tokens=77)
    encoders = pack("framepack_core.models.text").TextEncoders(None, clip, ours, no_clip)
    return encoders, theirs


def our_ids(text: str, system: str | None = None) -> list[int]:
    return both()[0].tokenize(text, system).llama_ids[0].tolist()


def their_ids(text: str, system: str | None = None) -> list[int]:
    """As encode_prompt() asks for them."""
    template = pack("nodes.comfyui.encode").native_template(system)
    tokens = both()[1].tokenize_with_weights(text, disable_weights=True, llama_template=template)
    [batch] = tokens["llama"]
    return [token for token, _ in batch]


def loses_spaces() -> bool:
    """Whether ComfyUI's tokenizer is transformers 5's class, which makes rules of its own.

    Then there are no ids to compare with, and encoding is refused.
    """
    kind = hunyuan_video.LlamaTokenizerFast
    if kind.__module__.startswith("comfy") or int(transformers.__version__.split(".")[0]) < 5:
        return False
    clip = SimpleNamespace(tokenize=both()[1].tokenize_with_weights)
    refused = error_of(lambda: pack("nodes.comfyui.encode").encode_prompt(clip, "a red circle"))
    assert refused == (
        "clip: ComfyUI's tokenizer of this text encoder loses the spaces between words, as older "
        "versions of ComfyUI do with transformers 5; load it with Load FramePack Text Encoders, "
        'update ComfyUI, or install "transformers<5"'
    )
    return True


@slow
def check_words_have_the_ids_of_comfyuis_text_encoder() -> Any:
    if loses_spaces():
        return "refused"
    counts = {}
    for name in PROMPTS.keys() - {"vietnamese"}:  # which has a check of its own below
        text = PROMPTS[name]
        ours, theirs = our_ids(text), their_ids(text)
        # ComfyUI keeps all of a long prompt; encode_prompt() cuts what comes out of the model.
        assert ours == theirs[: TEMPLATE_TOKENS + MAX_PROMPT_TOKENS], name
        assert (len(theirs) > len(ours)) == name.startswith("long"), name
        counts[name] = len(theirs)
    return counts


def check_words_behind_another_system_prompt_have_the_same_ids() -> Any:
    if loses_spaces():
        return "refused"
    for text in (PROMPTS["english"], PROMPTS["markup"]):
        assert our_ids(text, "Be {brief}.") == their_ids(text, "Be {brief}.")
    return None


def check_words_that_no_merge_leads_to_are_whole() -> Any:
    """LLaMA 3 looks a word up before it merges letters; ComfyUI's own tokenizer only merges."""
    text = PROMPTS["vietnamese"]
    assert {100769, 101798} <= set(our_ids(text))  # việc, Việt
    if loses_spaces():
        return "refused"
    ours, theirs = (ids(text)[TEMPLATE_TOKENS:] for ids in (our_ids, their_ids))
    by_merges = {100769: [3355, 26298, 66], 101798: [11655, 26298, 83]}
    cut = [part for token in ours for part in by_merges.get(token, [token])]
    only_merges = hunyuan_video.LlamaTokenizerFast.__module__.startswith("comfy")
    assert theirs == (cut if only_merges else ours)
    return {"only merges": only_merges}


def check_words_that_comfyui_reads_as_its_own_syntax_are_text_to_us() -> Any:
    """Two things that ComfyUI changes even where weights are off."""
    if loses_spaces():
        return "refused"
    escaped = "a \\(red\\) cat"  # it takes the backslashes for its own
    assert their_ids(escaped) == our_ids("a (red) cat") != our_ids(escaped)
    named = "a cat embedding:nobody runs"  # it cuts the text where an embedding could be
    theirs, ours = their_ids(named), our_ids(named)
    tokenizer = both()[0].llama_tokenizer
    assert theirs != ours and tokenizer.decode(theirs) == tokenizer.decode(ours)
    return None
