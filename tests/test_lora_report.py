"""What the report says of a LoRA file, which files are refused, and how modules are chosen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lora_files import FOREIGN, HUNYUAN, KOHYA, NATIVE, PEFT, SHAPES, LoraFile, dotted, underscored
from safetensors.torch import save_file
from torch import Tensor

from framepack_core.lora.apply import LoraUse, MergeLoras, open_loras
from framepack_core.lora.files import inspect_lora, load_lora
from framepack_core.models.build import dit_shapes
from framepack_core.models.dit import DiTConfig
from framepack_core.runtime.errors import FramePackError

MUSUBI = LoraFile.make(NATIVE, underscored("lora_unet_"), KOHYA)
TO_Q, TO_K_MUSUBI = (f"lora_unet_transformer_blocks_0_attn_to_{name}" for name in "qk")


def save(folder: Path, tensors: dict[str, Tensor], metadata: dict | None = None) -> Path:
    path = folder / "lora.safetensors"
    save_file(tensors, path, metadata)
    return path


def problem(folder: Path, tensors: dict[str, Tensor], metadata: dict | None = None) -> str:
    path = save(folder, tensors, metadata)
    with pytest.raises(FramePackError) as error:
        load_lora(path, SHAPES)
    message = str(error.value)
    assert message.startswith(f"{path} ") and "\n" not in message
    assert inspect_lora(path, SHAPES).problem == message.removeprefix(f"{path} ")
    return message.removeprefix(f"{path} ")


def pair(base: str, rank: int = 2, rows: int = 32, columns: int = 32) -> dict[str, Tensor]:
    return {
        f"{base}.lora_up.weight": torch.ones(rows, rank),
        f"{base}.lora_down.weight": torch.ones(rank, columns),
    }


# --- provenance -----------------------------------------------------------------------------------

KOHYAS, BY_MODULES = "musubi-tuner or kohya's scripts", "FramePack (by its modules)"
MUSUBI_METADATA = {"ss_network_module": "networks.lora_framepack"}


@pytest.mark.parametrize(
    ("metadata", "trainer", "base"),
    [
        (
            {},
            KOHYAS,
            BY_MODULES,
        ),
        (
            MUSUBI_METADATA | {"ss_base_model_version": "framepack"},
            "musubi-tuner",
            "FramePack (says the file)",
        ),
        (
            {"modelspec.architecture": "framepack", "ss_sd_model_name": "FramePack_F1_I2V.sft"},
            KOHYAS,
            "FramePack F1 (says the file)",
        ),
        (
            {
                "ss_base_model_version": "framepack",
                "ss_datasets": json.dumps([{"has_control": True}]),
            },
            KOHYAS,
            "FramePack one-frame (says the file)",
        ),
        ({"framepack_mode": "f1"}, KOHYAS, "FramePack F1 (says the file)"),
        (
            {"framepack_mode": "f1", "framepack_end_target": "True"},
            KOHYAS,
            "FramePack F1 with end frames (says the file)",
        ),
        (
            {"modelspec.architecture": "hunyuan-video/lora", "ot_branch": "master"},
            "OneTrainer",
            "HunyuanVideo (says the file)",
        ),
        ({"ss_network_module": "lycoris.kohya"}, "LyCORIS in kohya's scripts", BY_MODULES),
        ({"software": '{"name": "ai-toolkit"}'}, "ai-toolkit", BY_MODULES),
    ],
)
def test_provenance_by_metadata(tmp_path: Path, metadata: dict, trainer: str, base: str) -> None:
    source = load_lora(save(tmp_path, MUSUBI.tensors, metadata), SHAPES).report.provenance
    assert (source.trainer, source.base) == (trainer, base)


@pytest.mark.parametrize(
    ("key", "slots", "modules", "trainer", "base"),
    [
        (dotted("transformer."), PEFT, NATIVE, "diffusers", "FramePack (by"),
        (dotted("diffusion_model."), PEFT, HUNYUAN, "diffusion-pipe", "HunyuanVideo (by"),
        (dotted("diffusion_model."), KOHYA, HUNYUAN, "ComfyUI", "HunyuanVideo (by"),
        (dotted("base_model.model."), PEFT, {TO_Q: []}, "PEFT", "FramePack or HunyuanVideo"),
        (underscored("lora_transformer_"), KOHYA, NATIVE, "OneTrainer", "FramePack (by"),
        (dotted("transformer."), KOHYA, NATIVE, "OneTrainer", "FramePack (by"),
        (underscored("lycoris_"), KOHYA, NATIVE, "LyCORIS", "FramePack (by"),
    ],
)
def test_provenance_by_names(tmp_path: Path, key, slots, modules, trainer: str, base: str) -> None:
    if TO_Q in modules:
        modules = {name: NATIVE[name] for name in ["transformer_blocks.0.attn.to_q"]}
    file = LoraFile.make(modules, key, slots)
    source = load_lora(file.save(tmp_path), SHAPES).report.provenance
    assert source.trainer.startswith(trainer) and source.base.startswith(base)


def test_the_text_of_a_report(tmp_path: Path) -> None:
    tensors = pair(TO_Q) | pair(TO_K_MUSUBI, 3)
    tensors |= pair("lora_unet_no_such_module") | pair("lora_te1_text_model_encoder_layers_0_fc1")
    tensors[f"{TO_K_MUSUBI}.lora_up.weight"] *= 0
    tensors |= pair("lora_unet_proj_out", columns=64)
    report = inspect_lora(save(tmp_path, tensors, MUSUBI_METADATA), SHAPES)
    assert report.problem is None
    assert report.describe().splitlines() == [
        "LoRA lora.safetensors",
        "  made by musubi-tuner",
        "  names of diffusers, such as lora_unet_proj_out.lora_down.weight",
        "  trained on FramePack or HunyuanVideo (their names are the same; nothing else is stated)",
        "  2 LoRA",
        "  rank 2 (1), 3 (1)",
        "  fits 2 modules of the model",
        "  1 with no place in the model: lora_unet_no_such_module",
        "  1 of a text encoder, ignored: lora_te1_text_model_encoder_layers_0_fc1",
        "  1 without effect (zero): transformer_blocks.0.attn.to_k",
        "  1 of another size: lora_unet_proj_out (changes 32 x 64 numbers where the model has "
        "64 x 32)",
    ]


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FOREIGN)
def test_loras_for_other_models_are_named(tmp_path: Path, family: str) -> None:
    message = problem(tmp_path, pair(FOREIGN[family]))
    assert message == f"is a LoRA for {family.strip()}, not for FramePack: use it with that model"


FULL_SIZE = dit_shapes(DiTConfig())


@pytest.mark.parametrize(
    ("double", "single", "metadata", "family"),
    [
        (19, 38, {}, "Flux.1"),
        (19, 0, {}, "Flux.1"),
        (0, 38, {}, "Flux.1"),
        (60, 0, {}, "Qwen-Image"),
        (54, 0, {}, "HunyuanVideo 1.5"),
        (8, 48, {}, "Flux.2"),
        (25, 0, {}, "a model of 25 double and 0 single blocks or more"),
        (3, 2, {"modelspec.architecture": "flux-1-dev/lora"}, "Flux.1"),
        (20, 0, {"modelspec.architecture": "Qwen-Image"}, "Qwen-Image"),
        (20, 40, {}, None),
        (20, 0, {}, None),
        (10, 38, {}, None),
        (3, 2, {}, None),
        (3, 2, {"ss_base_model_version": "sd_1.5"}, None),
        (3, 2, {"ss_base_model_version": "skyreels"}, None),
    ],
)
def test_models_with_the_same_names_are_told_apart(
    tmp_path: Path, double: int, single: int, metadata: dict, family: str | None
) -> None:
    """Flux.1 has FramePack's names and even its widths, but 19 and 38 blocks."""
    tensors = {}
    for i in range(double):
        tensors |= pair(f"transformer.transformer_blocks.{i}.attn.to_q", 1, 3072, 3072)
    for i in range(single):
        tensors |= pair(f"transformer.single_transformer_blocks.{i}.attn.to_q", 1, 3072, 3072)
    path = save(tmp_path, tensors, metadata)
    if family is None:
        assert len(load_lora(path, FULL_SIZE).modules) == double + single
        return
    with pytest.raises(FramePackError, match=f"is a LoRA for {family}, not for FramePack"):
        load_lora(path, FULL_SIZE)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("lora_te2_encoder_block_0_layer_0_SelfAttention_q", "Flux.1 or Stable Diffusion 3"),
        ("transformer.transformer_blocks.0.img_mlp.net.2", "Qwen-Image"),
        ("diffusion_model.distilled_guidance_layer.in_proj", "Chroma"),
    ],
)
def test_one_name_gives_another_model_away(tmp_path: Path, name: str, family: str) -> None:
    message = problem(tmp_path, pair(TO_Q) | pair(name))
    assert message == f"is a LoRA for {family}, not for FramePack: use it with that model"


@pytest.mark.parametrize("model", ["framepack", "hunyuan-video"])
def test_unknown_names_of_a_lora_that_says_it_is_for_framepack(tmp_path: Path, model: str) -> None:
    message = problem(tmp_path, pair("a.b"), {"ss_base_model_version": model})
    assert message.startswith("is not for FramePack: none of its 1 modules is in the model (a.b)")


def test_unknown_names_of_a_lora_that_says_it_is_for_another_model(tmp_path: Path) -> None:
    message = problem(tmp_path, pair("a.b"), {"modelspec.architecture": "ltxv/lora"})
    assert message == "is a LoRA for LTX-Video, not for FramePack: use it with that model"


TO_K = "transformer.transformer_blocks.0.attn.to_k"
GOOD = pair(TO_K)
REFUSED = {
    "empty": ({}, "holds no tensors: download it again"),
    "nothing known": (
        pair("a.b") | pair("c.d"),
        "is not for FramePack: none of its 2 modules is in the model (a.b, c.d)",
    ),
    "text encoder": (
        pair("lora_te1_text_model_encoder_layers_0_mlp_fc1"),
        "changes only a text encoder, nothing of the FramePack model",
    ),
    "a model": (
        {"clean_x_embedder.proj.weight": torch.ones(1), "proj_out.weight": torch.ones(1)},
        "is no LoRA but a FramePack DiT: give a LoRA file",
    ),
    "another model": (
        {"decoder.middle.0.residual.0.gamma": torch.ones(1)},
        "is no LoRA but a Wan VAE: give a LoRA file",
    ),
    "no model": ({"x": torch.ones(1)}, "is no LoRA but of an unknown kind: give a LoRA file"),
    "OFT": (
        {"lora_unet_transformer_blocks_0_attn_to_k.oft_blocks": torch.ones(1)},
        "is an adapter of the kind OFT, which is not supported: use a LoRA",
    ),
    "another width": (
        pair(TO_K, rows=64, columns=64),
        f"is a LoRA for another model: {TO_K} changes 64 x 64 numbers where the model has 32 x 32; "
        "use it with that model",
    ),
    "zero": (
        {key: 0 * x for key, x in GOOD.items()},
        "changes nothing: all its 1 modules are zero; it was saved before training or its training "
        "failed",
    ),
    "zero alpha": (
        GOOD | {f"{TO_K}.alpha": torch.tensor(0.0)},
        "changes nothing: all its 1 modules are zero; it was saved before training or its training "
        "failed",
    ),
    "half": (
        {f"{TO_K}.lora_up.weight": torch.ones(32, 2)},
        f"is damaged: {TO_K} has up but no down; get the file again",
    ),
    "other half": (
        {f"{TO_K}.lora_A.weight": torch.ones(32, 2)},
        f"is damaged: {TO_K} has down but no up; get the file again",
    ),
    "only alpha": (
        GOOD | {"transformer.proj_out.alpha": torch.tensor(1.0)},
        "is damaged: transformer.proj_out has only alpha, nothing to apply; get the file again",
    ),
    "ranks": (
        GOOD | {f"{TO_K}.lora_up.weight": torch.ones(32, 3)},
        f"is damaged: {TO_K} has ranks that differ: up is [32, 3], down is [2, 32]; "
        "get the file again",
    ),
    "NaN": (
        GOOD | {f"{TO_K}.lora_up.weight": torch.full((32, 2), torch.nan)},
        f"is damaged: {TO_K} holds NaN or infinite numbers; get the file again",
    ),
    "infinite": (
        GOOD | {f"{TO_K}.lora_down.weight": torch.full((2, 32), -torch.inf)},
        f"is damaged: {TO_K} holds NaN or infinite numbers; get the file again",
    ),
    "infinite alpha": (
        GOOD | {f"{TO_K}.alpha": torch.tensor(torch.inf)},
        f"is damaged: {TO_K} has the alpha inf; get the file again",
    ),
    "alphas": (
        GOOD | {f"{TO_K}.alpha": torch.ones(2)},
        f"is damaged: {TO_K} has an alpha [2] of torch.float32, not one number; "
        "get the file again",
    ),
    "integers": (
        GOOD | {f"{TO_K}.lora_up.weight": torch.ones(32, 2, dtype=torch.int64)},
        f"is damaged: {TO_K} has lora_up.weight of torch.int64, not of floating point; "
        "get the file again",
    ),
    "no rank": (
        {key: x[:0] if "down" in key else x[:, :0] for key, x in GOOD.items()},
        f"is damaged: {TO_K} has lora_up.weight [32, 0], not a matrix; get the file again",
    ),
    "twice": (
        GOOD | {f"{TO_K}.lora_A.weight": torch.ones(2, 32)},
        f"is damaged: {TO_K} is there twice, as {TO_K}.lora_A.weight and {TO_K}.lora_down.weight; "
        "get the file again",
    ),
    "fused and apart": (
        GOOD | pair("diffusion_model.double_blocks.0.img_attn_qkv", rows=96),
        f"is damaged: {TO_K} changes transformer_blocks.0.attn.to_k.weight a second time; "
        "get the file again",
    ),
    "two ways": (
        GOOD | {f"{TO_K}.diff": torch.ones(32, 32)},
        f"is damaged: {TO_K} is changed in two ways (LoRA and difference); get the file again",
    ),
    "LoRA of a norm": (
        pair("transformer.transformer_blocks.0.attn.norm_q", rows=16, columns=1),
        "is damaged: transformer.transformer_blocks.0.attn.norm_q is a LoRA of a vector; "
        "get the file again",
    ),
    "DoRA of the change": (
        GOOD | {f"{TO_K}.dora_scale": torch.ones(32, 1), f"{TO_K}.wd_for_diff": torch.tensor(True)},
        f"is damaged: {TO_K} has a DoRA scale for the change alone, which is not supported; "
        "get the file again",
    ),
    "DoRA": (
        GOOD | {f"{TO_K}.dora_scale": torch.ones(7, 1)},
        f"is damaged: {TO_K} has a DoRA scale [7, 1] for a weight [32, 32]; get the file again",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    tensors, message = REFUSED[case]
    assert problem(tmp_path, tensors) == message


def test_one_bad_module_among_good_ones(tmp_path: Path) -> None:
    tensors = dict(MUSUBI.tensors)
    for module in ("to_q", "to_v"):
        tensors[f"lora_unet_transformer_blocks_0_attn_{module}.lora_up.weight"] = torch.ones(32, 9)
    assert problem(tmp_path, tensors) == (
        f"is damaged: {TO_Q} has ranks that differ: up is [32, 9], down is [3, 32] (and 1 more); "
        "get the file again"
    )


# --- choosing modules -----------------------------------------------------------------------------

Q, K = "transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k"


@pytest.fixture
def lora_path(tmp_path: Path) -> Path:
    modules = {name: NATIVE[name] for name in (Q, K, "proj_out")}
    return LoraFile.make(modules, underscored("lora_unet_"), KOHYA).save(tmp_path)


@pytest.mark.parametrize(
    ("include", "exclude", "kept"),
    [
        ([], [], [Q, K, "proj_out"]),
        (["attn"], [], [Q, K]),
        ([r"attn\.to_q$"], [], [Q]),
        (["lora_unet_transformer_blocks_0_attn"], ["to_k"], [Q]),
        (["to_q", "proj"], [], [Q, "proj_out"]),
        ([], ["attn"], ["proj_out"]),
        ([], ["to_q", "to_k"], ["proj_out"]),
    ],
)
def test_select(lora_path: Path, include: list[str], exclude: list[str], kept: list[str]) -> None:
    chosen = load_lora(lora_path, SHAPES).select(include, exclude)
    assert chosen.modules == sorted(kept)
    assert MergeLoras([LoraUse(chosen)]).names == {f"{name}.weight" for name in kept}


@pytest.mark.parametrize("pattern", ["img_attn_qkv", "double_blocks.0.*qkv", r"\.attn\.to_[qkv]$"])
def test_patterns_find_the_files_own_names(tmp_path: Path, pattern: str) -> None:
    """A fused layer of a HunyuanVideo LoRA is chosen with all its parts."""
    names = ("double_blocks.0.img_attn_qkv", "double_blocks.0.img_attn_proj")
    file = LoraFile.make({n: HUNYUAN[n] for n in names}, underscored("lora_unet_"), KOHYA)
    lora = load_lora(file.save(tmp_path), SHAPES)
    parts = [f"transformer_blocks.0.attn.{name}" for name in ("to_k", "to_q", "to_v")]
    assert lora.select([pattern]).modules == parts
    assert lora.select([], [pattern]).modules == ["transformer_blocks.0.attn.to_out.0"]


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        (
            ["("],
            [],
            r"include pattern '\(' is not a regular expression \(missing \), .*\); correct it",
        ),
        ([], ["["], r"exclude pattern '\[' is not a regular expression"),
        (
            ["nothing"],
            [],
            "include pattern 'nothing' matches none of the 3 modules of",
        ),
        ([], [r"\.alpha$"], r"exclude pattern .* matches none of the 3 modules"),
        (["attn"], ["to_"], "the patterns leave nothing of its 3 modules; loosen them"),
    ],
)
def test_bad_patterns(lora_path: Path, include: list, exclude: list, message: str) -> None:
    with pytest.raises(FramePackError, match=message):
        load_lora(lora_path, SHAPES).select(include, exclude)


def test_several_files(lora_path: Path) -> None:
    paths = [lora_path, lora_path, lora_path]
    uses = open_loras(paths, SHAPES, [0.5, 2], include=["to_q"], exclude=["", "proj"])
    assert [use.strength for use in uses] == [0.5, 2, 1]
    assert [use.lora.modules for use in uses] == [[Q], sorted([Q, K]), sorted([Q, K, "proj_out"])]


@pytest.mark.parametrize("what", ["strengths", "include", "exclude"])
def test_more_options_than_files(lora_path: Path, what: str) -> None:
    with pytest.raises(
        FramePackError, match=f"2 {what} for 1 LoRA files; give at most one for each"
    ):
        open_loras([lora_path], SHAPES, **{what: [1, 1]})


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_that_is_no_number(lora_path: Path, strength: float) -> None:
    with pytest.raises(FramePackError, match=r"LoRA strength (nan|inf) is not a number"):
        open_loras([lora_path], SHAPES, [strength])
