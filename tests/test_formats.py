"""Every format of quantised weights against the makers' own functions, and damaged files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import get_args

import numpy
import pytest
import torch
from safetensors.torch import save_file
from tiny import randn
from torch import Tensor

from framepack_core.runtime.errors import FramePackError
from framepack_core.weights.files import open_weights
from framepack_core.weights.formats import (
    FORMATS,
    MADE,
    PARTS,
    Encoding,
    Gguf,
    encoding_of,
)
from framepack_core.weights.precisions import STATED, Precision
from framepack_core.weights.quantised_files import METADATA, QuantisedFiles

SHAPE = (160, 512)
# The norm of the error of normally distributed weights over their own.
ERRORS = {
    "fp8": 0.027,
    "fp8_e5m2": 0.055,
    "fp8_scaled": 0.027,
    "float8_e4m3fn": 0.027,
    "float8_e5m2": 0.054,
    "int8_tensorwise": 0.008,
    "int8_convrot": 0.009,
    "convrot_w4a4": 0.15,
    "asym_w4a8_int8": 0.09,
    "nvfp4": 0.085,
    "mxfp8": 0.028,
    "gguf_q8_0": 0.006,
    "gguf_q6_k": 0.02,
    "gguf_q5_k": 0.04,
    "gguf_q4_k": 0.08,
}
LAYOUTS = {
    "float8_e4m3fn": "TensorCoreFP8Layout",
    "float8_e5m2": "TensorCoreFP8Layout",
    "int8_tensorwise": "TensorWiseINT8Layout",
    "int8_convrot": "TensorWiseINT8Layout",
    "convrot_w4a4": "TensorCoreConvRotW4A4Layout",
    "asym_w4a8_int8": "AsymW4A8Int8Layout",
    "nvfp4": "TensorCoreNVFP4Layout",
    "mxfp8": "TensorCoreMXFP8Layout",
}
GGUF = [name for name, format in FORMATS.items() if isinstance(format, Gguf)]


def made(name: str, weight: Tensor) -> tuple[Encoding, dict[str, Tensor]]:
    options = MADE[name].options(tuple(weight.shape))
    assert options is not None
    encoding = Encoding(MADE[name], options)
    return encoding, encoding.encode(weight)


def theirs(name: str, parts: dict[str, Tensor], options: dict) -> Tensor:
    """The weight that comfy-kitchen makes of parts, fp32."""
    pytest.importorskip("comfy_kitchen")
    from comfy_kitchen.tensor import get_layout_class

    layout = get_layout_class(LAYOUTS[name])
    tensors = {
        "nvfp4": {"scale": "weight_scale_2", "block_scale": "weight_scale"},
        "asym_w4a8_int8": {
            "scale": "weight_s_rel",
            "s_channel": "weight_s_channel",
            "codebook": "weight_codebook",
        },
    }.get(name, {"scale": "weight_scale"})
    given = {field: parts[part] for field, part in tensors.items()}
    if name == "mxfp8":
        given["scale"] = given["scale"].view(torch.float8_e8m0fnu)
    params = layout.Params(**given, **options, orig_dtype=torch.float32, orig_shape=SHAPE)
    return layout.dequantize(parts["weight"], params)


def their_parts(name: str, weight: Tensor) -> tuple[dict[str, Tensor], dict]:
    """The parts that comfy-kitchen makes of a weight, and its options."""
    pytest.importorskip("comfy_kitchen")
    from comfy_kitchen.tensor import get_layout_class

    layout, options = get_layout_class(LAYOUTS[name]), dict(MADE[name].options(SHAPE) or {})
    more = {"per_channel": True} if name.startswith("int8") else {}
    if name == "float8_e5m2":
        more["dtype"] = torch.float8_e5m2
    q, params = layout.quantize(weight, **options, **more)
    parts = layout.state_dict_tensors(q, params)
    return {f"weight{end}": x for end, x in parts.items()}, options


def test_every_precision_is_known() -> None:
    assert set(get_args(Precision)) == {"auto", "full", *MADE} and set(ERRORS) == set(MADE)


@pytest.mark.parametrize("name", MADE)
def test_what_a_format_loses(name: str) -> None:
    """As much as its numbers must, and its parts are of the types and shapes that it says."""
    weight = randn(*SHAPE) * 0.02
    if name in ("fp8", "fp8_e5m2"):
        weight = weight * 50  # without a scale small numbers are lost
    encoding, parts = made(name, weight)
    error = float((encoding.decode(parts) - weight).norm() / weight.norm())
    assert 0.5 * ERRORS[name] < error < ERRORS[name], error
    infos = encoding.infos(SHAPE)
    assert {part: (x.dtype, tuple(x.shape)) for part, x in parts.items()} == {
        part: (info.dtype, info.shape) for part, info in infos.items()
    }
    assert set(parts) <= {"weight", *PARTS}
    assert encoding.format.logical(tuple(parts["weight"].shape), encoding.options) == SHAPE
    found = encoding_of(parts)
    assert found is not None and torch.equal(found.decode(parts), encoding.decode(parts))


@pytest.mark.parametrize("name", MADE)
def test_zeros_stay_zeros(name: str) -> None:
    weight = randn(*SHAPE)
    weight[:40] = 0
    weight[:, 256:] = 0
    encoding, parts = made(name, weight)
    back = encoding.decode(parts)
    assert back.isfinite().all() and back[:40].abs().max() < 1e-8


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_we_make_is_what_comfy_kitchen_reads(name: str) -> None:
    encoding, parts = made(name, randn(*SHAPE) * 0.02)
    expected = theirs(name, parts, dict(encoding.options))
    torch.testing.assert_close(encoding.decode(parts), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_comfy_kitchen_makes_is_what_we_read(name: str) -> None:
    weight = randn(*SHAPE, seed=2) * 0.02
    parts, options = their_parts(name, weight)
    encoding = Encoding(MADE[name], options)
    back = encoding.decode(parts)
    torch.testing.assert_close(back, theirs(name, parts, options), rtol=1e-5, atol=1e-6)
    ours = made(name, weight)[0].decode(made(name, weight)[1])
    # Their 4-bit codes are searched for longer.
    assert (ours - weight).norm() < 1.2 * (back - weight).norm()


@pytest.mark.parametrize("name", GGUF)
def test_ggml_reads_the_same(name: str) -> None:
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[name.removeprefix("gguf_").upper()]
    encoding, parts = made(name, randn(*SHAPE))
    assert gguf.GGML_QUANT_SIZES[kind] == (encoding.format.block, encoding.format.size)
    random = numpy.random.default_rng(0).integers(0, 256, parts["weight"].shape, numpy.uint8)
    for stored in (parts["weight"].numpy(), random):
        expected = torch.from_numpy(gguf.quants.dequantize(stored, kind))
        found = encoding.decode({"weight": torch.from_numpy(stored)})
        known = expected.isfinite()
        torch.testing.assert_close(found[known], expected[known], rtol=1e-6, atol=0)
        assert torch.equal(found.isfinite(), known)


# --- files ----------------------------------------------------------------------------------------


def saved(folder: Path, tensors: dict[str, Tensor], metadata: dict | None = None) -> QuantisedFiles:
    path = folder / "model.safetensors"
    save_file({k: x.contiguous() for k, x in tensors.items()}, path, metadata)
    return QuantisedFiles(open_weights(path))


def config(**stated: object) -> Tensor:
    return torch.tensor(list(json.dumps(stated).encode()), dtype=torch.uint8)


@pytest.mark.parametrize("name", [name for name in MADE if MADE[name].stated])
@pytest.mark.parametrize("where", ["tensors", "metadata"])
def test_files_of_every_format(tmp_path: Path, name: str, where: str) -> None:
    encoding, parts = made(name, randn(*SHAPE))
    stored = {f"x.{part}": tensor for part, tensor in parts.items()}
    metadata = None
    if where == "metadata":
        stated = json.loads(bytes(stored.pop("x.comfy_quant").tolist()))
        stated = {"format": stated.pop("format"), "params": stated}
        metadata = {"_quantization_metadata": json.dumps({"layers": {"x": stated}})}
    files = saved(tmp_path, stored | {"x.bias": randn(3)}, metadata)
    assert list(files) == ["x.bias", "x.weight"] or list(files) == ["x.weight", "x.bias"]
    assert files.info("x.weight").shape == SHAPE
    torch.testing.assert_close(files.load("x.weight"), encoding.decode(parts), rtol=0, atol=0)
    again = files.load_parts("x.weight")
    assert {part: (i.dtype, i.shape) for part, i in files.part_infos("x.weight").items()} == {
        part: (x.dtype, tuple(x.shape)) for part, x in again.items()
    }
    found = encoding_of(again)
    assert found is not None and torch.equal(found.decode(again), encoding.decode(parts))


def _cut(name: str, part: str) -> Tensor:
    return made(name, randn(*SHAPE))[1][part][:-1].clone()


STATED_HERE = [name for name in STATED if not name.startswith("gguf")]


def stored_as(name: str, **changed: Tensor | None) -> dict[str, Tensor]:
    """The tensors of a layer x in a format, some of them changed or left out."""
    parts = {**made(name, randn(*SHAPE))[1], **changed}
    return {f"x.{part}": tensor for part, tensor in parts.items() if tensor is not None}


def message_of(folder: Path, tensors: dict[str, Tensor], metadata: dict | None = None) -> str:
    with pytest.raises(FramePackError) as error:
        saved(folder, tensors, metadata)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", STATED_HERE)
def test_a_damaged_file_of_each_format(tmp_path: Path, name: str) -> None:
    """Cut anywhere, a part lost, of another shape or type, in a format that is not there."""
    parts, format = made(name, randn(*SHAPE))[1], MADE[name]
    file = saved(tmp_path, stored_as(name)).paths[0]
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(FramePackError, match=r"model.safetensors .*download it again"):
        open_weights(file)
    for part in set(format.parts) - set(format.optional):
        lost = message_of(tmp_path, stored_as(name, **{part: None}))
        assert f"says that x.weight is {format.name}, but has no x.{part}" in lost
        odd = torch.ones(7, 3).to(parts[part].dtype)
        misfit = message_of(tmp_path, stored_as(name, **{part: odd}))
        assert f"x.{part} is [7, 3], which does not fit a weight" in misfit
        if parts[part].dtype.itemsize == 1:
            wide = parts[part].view(torch.uint8).half()
            mistyped = message_of(tmp_path, stored_as(name, **{part: wide}))
            assert f"says that x.weight is {format.name}, but x.{part} is stored as" in mistyped
    unknown = message_of(tmp_path, stored_as(name, comfy_quant=config(format="int3")))
    assert "is quantised as int3 (x), which is not supported: use a file in one of" in unknown
    layers = json.dumps({"layers": {"x": {"format": "int3"}}})
    unknown = message_of(tmp_path, stored_as(name, comfy_quant=None), {METADATA: layers})
    assert "is quantised as int3 (x), which is not supported" in unknown


@pytest.mark.parametrize("name", STATED_HERE)
@pytest.mark.parametrize("claimed", sorted({MADE[name].name for name in STATED_HERE}))
def test_metadata_that_lie(tmp_path: Path, name: str, claimed: str) -> None:
    """What is stored in one format is taken for no other, or for a weight of another shape."""
    if claimed == MADE[name].name:
        return
    lie = config(format=claimed, **(FORMATS[claimed].options(SHAPE) or {}))
    if {claimed, MADE[name].name} == {"int8_tensorwise", "convrot_w4a4"}:
        files = saved(tmp_path, stored_as(name, comfy_quant=lie))
        assert files.info("x.weight").shape not in (SHAPE, SHAPE[::-1])  # which models refuse
        return
    message = message_of(tmp_path, stored_as(name, comfy_quant=lie))
    assert claimed in message and "x." in message and "download" in message


BAD = {
    "no scale": ("nvfp4", {"weight_scale_2": None}, "but has no x.weight_scale_2"),
    "a block scale that is cut": (
        "mxfp8",
        {"weight_scale": _cut("mxfp8", "weight_scale")},
        "the scale x.weight_scale is [255, 16], which does not fit a weight [160, 512] in mxfp8",
    ),
    "another type": (
        "int8_tensorwise",
        {"weight": torch.ones(SHAPE).bfloat16()},
        "says that x.weight is int8_tensorwise, but it is stored as bfloat16 [160, 512]",
    ),
    "another format": (
        "int8_tensorwise",
        {"comfy_quant": config(format="nvfp4")},
        "x.weight_scale is [160, 1], which does not fit a weight [160, 1024] in nvfp4",
    ),
    "a group that does not fit": (
        "int8_convrot",
        {"comfy_quant": config(format="int8_tensorwise", convrot=True, convrot_groupsize=1024)},
        "states convrot_groupsize 1024 for x.weight",
    ),
    "a group that is no power of 4": (
        "convrot_w4a4",
        {"comfy_quant": config(format="convrot_w4a4", convrot_groupsize="128")},
        "states convrot_groupsize 128 for x.weight",
    ),
    "groups of the scale": (
        "asym_w4a8_int8",
        {"comfy_quant": config(format="asym_w4a8_int8", group_size=7, convrot_groupsize=256)},
        "states group_size 7 for x.weight",
    ),
    "unknown": ("mxfp8", {"comfy_quant": config(format="int3")}, "is quantised as int3 (x), which"),
    "no format": ("mxfp8", {"comfy_quant": config(block=3)}, "has damaged quantisation metadata"),
    "of nothing": ("mxfp8", {}, "states a format for y, which it does not hold"),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_files(tmp_path: Path, case: str) -> None:
    name, changed, expected = BAD[case]
    layers = {"layers": {"y": {"format": "mxfp8"}}} if case == "of nothing" else {"layers": {}}
    message = message_of(tmp_path, stored_as(name, **changed), {METADATA: json.dumps(layers)})
    assert expected in message
