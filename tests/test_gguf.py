"""GGUF files: those of others, read; ours, written and read by the package gguf."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from tiny import CONFIG, randn, tiny_dit
from torch import Tensor

from framepack_core.models.build import load_dit, load_text_encoders
from framepack_core.models.merge import save_dit
from framepack_core.runtime.errors import FramePackError
from framepack_core.toyworld import SNAPSHOT
from framepack_core.weights.files import open_weights
from framepack_core.weights.formats import MADE, Encoding
from framepack_core.weights.quantised_linear import QuantisedLinear, full_weight

gguf = pytest.importorskip("gguf")
LLAMA = SNAPSHOT / "text_encoder"
NAMES = {
    "embed_tokens.": "token_embd.",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attn_output",
    r"self_attn.(.)_proj": r"attn_\1",
    r"mlp.(\w+)_proj": r"ffn_\1",
    r"^norm\.": "output_norm.",
    r"^layers\.": "blk.",
}


def write(path: Path, tensors: dict[str, Tensor], kind: str, architecture: str, **values) -> Path:
    """A GGUF file as ggml's own tools write it, weights of two axes in this type."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in values.items():
        writer.add_uint32(name.replace("__", "."), value)
    number = gguf.GGMLQuantizationType[kind]
    for name, x in tensors.items():
        data = x.float().contiguous().numpy()
        if x.ndim == 2 and x.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(data, number), raw_dtype=number)
        elif x.ndim > 4:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(x.shape))
            writer.add_tensor(name, data.reshape(x.shape[0], -1))
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def dit_file(folder: Path, kind: str = "Q8_0") -> Path:
    (folder / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    return write(folder / "dit.gguf", tiny_dit().state_dict(), kind, "hyvid")


@pytest.mark.parametrize("kind", ["Q8_0", "F16", "BF16", "F32"])
def test_a_dit(tmp_path: Path, kind: str) -> None:
    model, plain = load_dit(dit_file(tmp_path, kind), dtype=torch.float32), tiny_dit()
    layer = model.get_submodule("transformer_blocks.0.attn.to_q")
    assert isinstance(layer, QuantisedLinear) == (kind == "Q8_0")
    for name, module in plain.named_modules():
        if isinstance(module, torch.nn.Linear):
            found = full_weight(model.get_submodule(name), torch.float32)
            error = (found - module.weight).norm() / module.weight.norm()
            assert error < {"Q8_0": 0.01, "F16": 3e-4, "BF16": 3e-3, "F32": 1e-9}[kind]


def test_a_llama_of_ggml(tmp_path: Path) -> None:
    """Its names, and its queries and keys, whose rotated halves ggml interleaves."""
    encoders = load_text_encoders(LLAMA, SNAPSHOT / "text_encoder_2", dtype=torch.float32)
    config, tensors = encoders.llama.config, {}
    for name, x in encoders.llama.state_dict().items():
        match = re.search(r"\.([qk])_proj", name)
        if match:
            heads = config.num_attention_heads if match[1] == "q" else config.num_key_value_heads
            x = x.reshape(heads, 2, -1, x.shape[1]).transpose(1, 2).reshape(x.shape)
        for pattern, replacement in NAMES.items():
            name = re.sub(pattern, replacement, name)
        tensors[name] = x
    tensors |= {"output.weight": tensors["token_embd.weight"], "rope_freqs.weight": torch.ones(8)}
    for file in ("config.json",):
        (tmp_path / file).write_bytes((LLAMA / file).read_bytes())
    counts = {
        "llama__attention__head_count": config.num_attention_heads,
        "llama__attention__head_count_kv": config.num_key_value_heads,
    }
    path = write(tmp_path / "llama.gguf", tensors, "Q8_0", "llama", **counts)
    loaded = load_text_encoders(
        path, SNAPSHOT / "text_encoder_2", tokenizers={"llama": SNAPSHOT / "tokenizer"}
    )
    assert any(isinstance(m, QuantisedLinear) for m in loaded.llama.modules())
    a, b = (e.encode("a red circle moves left").text.float() for e in (encoders, loaded))
    assert (a - b).norm() / a.norm() < 0.03


@pytest.mark.parametrize("precision", ["gguf_q8_0", "gguf_q4_k"])
def test_ours_is_read_by_us_and_by_ggml(tmp_path: Path, precision: str) -> None:
    source, path = SNAPSHOT / "transformer", tmp_path / "made.gguf"
    save_dit(source, path, precision=precision)
    plain = load_dit(source, dtype=torch.float32)
    ours = load_dit(path, dtype=torch.float32, precision="full")
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    kinds = {tensor.tensor_type.name for tensor in theirs.values()}
    assert kinds == {precision.removeprefix("gguf_").upper(), "BF16"}
    for name, x in ours.state_dict().items():
        tensor = theirs[name]
        read = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        torch.testing.assert_close(read.reshape(x.shape), x, rtol=1e-6, atol=0)
        if tensor.tensor_type.name != "BF16":
            encoding = Encoding(MADE[precision])
            made = encoding.decode(encoding.encode(plain.state_dict()[name]))
            torch.testing.assert_close(x, made, rtol=1e-6, atol=0)
    with pytest.raises(FramePackError, match=r"must be named \.gguf and be one file"):
        save_dit(source, tmp_path / "made.safetensors", precision=precision)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def other_type(path: Path) -> None:
    write(path, {"x.weight": torch.ones(32, 32)}, "Q4_0", "hyvid")


def no_heads(path: Path) -> None:
    write(path, {"blk.0.attn_q.weight": torch.ones(32, 32)}, "Q8_0", "llama")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "is a damaged GGUF file"),
        (header, "is a damaged GGUF file"),
        (other_type, "tensor x.weight is in Q4_0, which is not supported: use a file in one of"),
        (no_heads, "is a damaged GGUF file"),
    ],
)
def test_damaged_files(tmp_path: Path, damage, message: str) -> None:
    path = dit_file(tmp_path)
    damage(path)
    with pytest.raises(FramePackError) as error:
        open_weights(path)
    assert message in str(error.value) and "\n" not in str(error.value)


TYPES = {"Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14}


def in_blocks(path: Path, kind: str, number: int) -> None:
    """Two weights in a block type, of which the file says that they are in this one."""
    writer = gguf.GGUFWriter(path, "hyvid")
    encoding = Encoding(MADE[f"gguf_{kind.lower()}"])
    for name in ("x.weight", "y.weight"):
        data = encoding.encode(randn(3, 512))["weight"].numpy()
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType(TYPES[kind]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content = bytearray(path.read_bytes())
    for name in (b"x.weight", b"y.weight"):  # dimensions of 4 and 2 x 8 bytes, then the type
        place = content.index(name) + len(name) + 4 + 16
        assert content[place] == TYPES[kind]
        content[place] = number
    path.write_bytes(content)


@pytest.mark.parametrize("kind", TYPES)
def test_damaged_files_of_each_type(tmp_path: Path, kind: str) -> None:
    """Cut by a byte, in a type that is not there, and in every type that it is not in."""
    path = tmp_path / "x.gguf"
    in_blocks(path, kind, TYPES[kind])
    assert {"x.weight", "y.weight"} <= set(open_weights(path))
    os.truncate(path, path.stat().st_size - 40)
    with pytest.raises(FramePackError, match=r"is a damaged GGUF file .*download it again"):
        open_weights(path)
    for number in {*TYPES.values(), 99} - {TYPES[kind]}:
        in_blocks(path, kind, number)
        with pytest.raises(FramePackError, match=r"is a damaged GGUF file .*download it again"):
            open_weights(path)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = dit_file(tmp_path)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(FramePackError, match=r"need the package gguf, .*`pip install -U gguf`"):
        open_weights(path)


def test_a_safetensors_file_of_another_name(tmp_path: Path) -> None:
    path = dit_file(tmp_path)
    renamed = path.with_suffix(".safetensors")
    path.rename(renamed)
    with pytest.raises(FramePackError, match=r"is a GGUF file: rename it to \.gguf"):
        open_weights(renamed)
