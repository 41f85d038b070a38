"""GGUF files (ggml's), read and written through the package `gguf`.

Block types keep their bytes: such a weight comes as uint8 with a `comfy_quant` tensor beside it,
as a safetensors file would state it. The names of LLaMA's tensors are made those of transformers.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from ..runtime.errors import FramePackError
from ..runtime.files import atomic_path
from .files import Header, TensorInfo
from .formats import CONFIG, FORMATS, WEIGHT, Encoding, Format, Gguf

SUFFIX = ".gguf"
ARCHITECTURE = "hyvid"  # as other tools name HunyuanVideo's DiT
LLAMA = "llama"
MAX_DIMENSIONS = 4
_SHAPE = "comfy.gguf.orig_shape."  # of tensors with more dimensions than GGUF has
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BLOCKS = {f.kind: f for f in FORMATS.values() if isinstance(f, Gguf)}
_LLAMA_NAMES = (
    (r"token_embd\.", "embed_tokens."),
    (r"output_norm\.", "norm."),
    (r"output\.", "lm_head."),
    (r"rope_freqs\.weight", "rotary_emb.inv_freq"),
    (r"blk\.(\d+)\.attn_norm\.", r"layers.\1.input_layernorm."),
    (r"blk\.(\d+)\.ffn_norm\.", r"layers.\1.post_attention_layernorm."),
    (r"blk\.(\d+)\.attn_output\.", r"layers.\1.self_attn.o_proj."),
    (r"blk\.(\d+)\.attn_([qkv])\.", r"layers.\1.self_attn.\2_proj."),
    (r"blk\.(\d+)\.ffn_(gate|up|down)\.", r"layers.\1.mlp.\2_proj."),
)


def _package() -> Any:
    try:
        import gguf
    except ImportError as error:  # of its own, where it is older than 0.17.1
        raise FramePackError(
            f"GGUF files need the package gguf, 0.17.1 or newer ({error}): `pip install -U gguf`"
        ) from error
    return gguf


class GgufFile:
    """The tensors of a GGUF file as `WeightFiles` takes them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        gguf = _package()
        try:
            reader = gguf.GGUFReader(path)
            _check_places(reader, path.stat().st_size)
            texts = {n: field.contents() for n, field in reader.fields.items() if _is_text(field)}
            self._views = dict(self._read(reader, texts))
        except FramePackError:
            raise
        except Exception as error:  # any at all: the package reads on wherever a damaged file leads
            raise FramePackError(
                f"{path} is a damaged GGUF file ({str(error).partition(chr(10))[0]}): "
                "download it again"
            ) from error
        infos = {name: TensorInfo(x.dtype, tuple(x.shape)) for name, x in self._views.items()}
        self.header = Header(infos, {name: str(text) for name, text in texts.items()})

    def view(self, name: str) -> Tensor:
        return self._views[name]

    def copy_to(self, name: str, target: Tensor) -> None:
        target.copy_(self._views[name])

    def _read(self, reader: Any, texts: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
        llama = texts.get("general.architecture") == LLAMA
        for tensor in reader.tensors:
            kind, name = tensor.tensor_type.name, tensor.name
            if kind not in _PLAIN and kind not in _BLOCKS:
                raise FramePackError(
                    f"{self.path}: tensor {name} is in {kind}, which is not supported: use a file "
                    f"in one of {', '.join([*_BLOCKS, *_PLAIN])}"
                )
            with warnings.catch_warnings():  # of a read-only map, which is meant
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                stored = torch.from_numpy(tensor.data)
            if kind == "BF16":
                stored = stored.view(torch.bfloat16)
            if (shape := reader.get_field(_SHAPE + name)) is not None:
                stored = stored.reshape([int(n) for n in shape.contents()])
            if llama:
                stored, name = self._of_llama(reader, name, stored)
            yield name, stored
            if kind in _BLOCKS:
                base, _, end = name.rpartition(".")
                if end != WEIGHT:
                    raise FramePackError(f"{self.path}: {name} is in {kind}, but is no weight")
                yield f"{base}.{CONFIG}", Encoding(_BLOCKS[kind]).config()

    def _of_llama(self, reader: Any, name: str, stored: Tensor) -> tuple[Tensor, str]:
        """A tensor of LLaMA as transformers has it: ggml keeps the rotated halves interleaved."""
        if match := re.fullmatch(r"blk\.\d+\.attn_([qk])\.weight", name):
            key = "head_count" if match[1] == "q" else "head_count_kv"
            heads = int(reader.fields[f"{LLAMA}.attention.{key}"].contents())
            pairs = stored.unflatten(0, (heads, -1, 2))
            stored = pairs.transpose(1, 2).reshape(stored.shape)
        for pattern, replacement in _LLAMA_NAMES:
            name = re.sub(f"^{pattern}", replacement, name)
        return stored, name


def _check_places(reader: Any, size: int) -> None:
    """Refuse tensors that do not lie one behind the other, as where one is of another type."""
    end = reader.data_offset
    for tensor in sorted(reader.tensors, key=lambda tensor: tensor.data_offset):
        if tensor.data_offset != end:
            raise ValueError(f"{tensor.name} is not behind the tensor before it")
        end += tensor.n_bytes + -tensor.n_bytes % reader.alignment
    if not 0 <= end - size < reader.alignment:
        raise ValueError(f"{size} bytes in place of {end}")


def _is_text(field: Any) -> bool:
    return len(field.types) == 1 and field.types[0].name == "STRING"


@contextmanager
def writing_gguf(
    path: Path,
    infos: Mapping[str, TensorInfo],
    format: Format,
    metadata: Mapping[str, str],
) -> Iterator[Callable[[str, Tensor], None]]:
    """Write a GGUF file tensor by tensor, in the order of infos; the file appears when it is whole.

    Tensors are those of a `ModelState`; quantised ones are in `format`, and their `comfy_quant`
    becomes the type.
    """
    gguf = _package()
    kinds = {dtype: kind for kind, dtype in _PLAIN.items()}
    kinds[torch.uint8] = next(kind for kind, block in _BLOCKS.items() if block is format)
    types = {n: kinds[i.dtype] for n, i in infos.items() if not n.endswith(f".{CONFIG}")}
    with atomic_path(path) as temporary:
        writer = gguf.GGUFWriter(temporary, ARCHITECTURE)
        for name, text in metadata.items():
            writer.add_string(name, text)
        for name, kind in types.items():
            info = infos[name]
            shape = list(info.shape)
            if len(shape) > MAX_DIMENSIONS:
                writer.add_array(_SHAPE + name, shape)
                shape = [shape[0], math.prod(shape[1:])]
            shape[-1] *= info.dtype.itemsize
            number = gguf.GGMLQuantizationType[kind]
            writer.add_tensor_info(name, shape, numpy.dtype(numpy.uint8), info.nbytes, number)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()

        def write(name: str, tensor: Tensor) -> None:
            if name in types:
                data = tensor.contiguous().cpu().flatten().view(torch.uint8)
                writer.write_tensor_data(data.numpy())

        try:
            yield write
        finally:
            writer.close()
