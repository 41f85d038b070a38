"""A tokenizer folder with LLaMA 3's own vocabulary, from the package llama-models.

HunyuanVideo's LLaMA has that vocabulary, the special tokens of LLaMA 3.0 and three of LLaVA's.
"""

from __future__ import annotations

import base64
import importlib.metadata
import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

PACKAGE, FILE = "llama-models", "llama_models/llama3/tokenizer.model"
MISSING = f"the package {PACKAGE}, which holds the vocabulary of LLaMA 3, is not installed"
# How LLaMA 3 cuts text into pieces before it looks for tokens in them.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BEGIN = "<|begin_of_text|>"
NAMED = {0: BEGIN, 1: "<|end_of_text|>", 6: "<|start_header_id|>", 7: "<|end_header_id|>"}
NAMED |= {9: "<|eot_id|>", 256: "<unk>", 257: "<image>", 258: "<pad>"}


def vocabulary() -> Path | None:
    """The file of the installed package, without importing it; None without the package."""
    try:
        path = Path(str(importlib.metadata.distribution(PACKAGE).locate_file(FILE)))
    except importlib.metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


def read_ranks(path: Path) -> dict[bytes, int]:
    """Tokens and their ids, which are also the order in which they were merged."""
    pairs = (line.split() for line in path.read_bytes().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def special_tokens() -> list[str]:
    """The special tokens by their place behind the vocabulary."""
    reserved = iter(range(251))
    return [
        NAMED.get(i) or f"<|reserved_special_token_{next(reserved)}|>"
        for i in range(max(NAMED) + 1)
    ]


def write_tokenizer(folder: Path) -> Path:
    """The folder with the tokenizer.json that transformers and ComfyUI read."""
    path = vocabulary()
    assert path is not None, MISSING
    ranks = read_ranks(path)
    spelled = {token: _spelled(token) for token in ranks}
    ids = {spelled[token]: rank for token, rank in ranks.items()}
    merges = [(spelled[left], spelled[right]) for left, right in _merges(ranks)]
    tokenizer = Tokenizer(models.BPE(ids, merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, in_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    names = special_tokens()
    tokenizer.add_special_tokens([AddedToken(n, normalized=False, special=True) for n in names])
    begin = (BEGIN, tokenizer.token_to_id(BEGIN))
    tokenizer.post_processor = processors.TemplateProcessing(f"{BEGIN} $A", None, [begin])
    written = json.loads(tokenizer.to_str())
    # The form that every version of the readers knows.
    written["model"]["merges"] = [" ".join(pair) for pair in merges]
    (folder / "tokenizer.json").write_text(json.dumps(written), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BEGIN}
    config |= {"pad_token": "<pad>", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _spelled(token: bytes) -> str:
    return "".join(_LETTERS[byte] for byte in token)


def _letters() -> list[str]:
    """A visible letter for every byte: itself where it is one, else the next from 256 on."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


_LETTERS = _letters()


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """All ways to make a token of two others, the earliest tokens first."""
    found: list[tuple[bytes, bytes]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = [(token[:i], token[i:]) for i in range(1, len(token))]
        pairs = [pair for pair in halves if pair[0] in ranks and pair[1] in ranks]
        found += sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return found


PROMPTS = {
    "empty": "",
    "blank": " ",
    "english": "A girl dances gracefully, with clear movements, full of charm.",
    "contractions": "It's THEY'RE we'll I'd 'tis y'all'd've",
    "japanese": "少女が優雅に踊り、動きははっきりしていて魅力に満ちている。",
    "chinese": "一只猫在阳光下的窗台上伸懒腰，镜头缓慢推近。",
    "arabic": "قطة تمشي ببطء على الشاطئ عند الغروب",
    "russian": "Девушка изящно танцует под тёплым летним дождём.",
    "vietnamese": "Một người đàn ông làm việc ở Việt Nam",
    "hindi": "एक लड़की बारिश में नाच रही है",
    "thai": "เด็กผู้หญิงเต้นรำอย่างสง่างาม",
    "emoji": "fireworks 🎆 and a family 👨‍👩‍👧‍👦, 👍🏽",
    "accents": "Zoë's café, naïve; e\u0301 is not é",
    "numbers": "1234567890 frames at 29.97 fps, 16:9, ３ sections",
    "layout": "first line\n\n  second\tline \r\n   \n end  ",
    "markup": "(masterpiece:1.2), {a|b} [c] <lora:x:1> </s> <|not_special|>",
    "special": "before <|eot_id|><|start_header_id|>user<|end_header_id|> after <image> <pad>",
    "long": "A cat walks along the wall of an old garden, and the camera follows it. " * 40,
    "long-japanese": "猫が古い庭の塀の上を歩き、カメラがそれを追いかける。" * 30,
}
