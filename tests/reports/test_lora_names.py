"""LoRAs under names of other makers: the longest known tail counts; what is ignored is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lora_files import KOHYA, NATIVE, SHAPES, LoraFile, underscored
from reports.inputs import error_of
from safetensors.torch import save_file

from framepack_core.lora.files import load_lora
from framepack_core.lora.names import part_table, resolve

TABLE = part_table(SHAPES)
DOUBLE, SINGLE = "double_blocks_0_img_attn_qkv", "single_transformer_blocks_0_attn_to_q"


@pytest.mark.parametrize(
    ("base", "name", "ignored"),
    [
        (f"Hunyuan_video_I2V_lora_{DOUBLE}", DOUBLE, "Hunyuan_video_I2V_lora_"),
        (f"lora_unet_model_{SINGLE}", SINGLE, "lora_unet_model_"),
        (f"my.own.wrapper.{SINGLE}", SINGLE, "my_own_wrapper_"),
        (f"lora_unet_{SINGLE}", SINGLE, ""),
        ("transformer.single_transformer_blocks.0._orig_mod.attn.to_q", SINGLE, ""),
        ("_orig_mod.module.single_transformer_blocks.0.attn.to_q", SINGLE, ""),
        ("single_transformer_blocks.0._checkpoint_wrapped_module.attn.to_q", SINGLE, ""),
        (f"lora_unet__orig_mod_{SINGLE}", SINGLE, ""),
        ("lora_unet_single_transformer_blocks_0__orig_mod_attn_to_q", SINGLE, ""),
    ],
)
def test_names(base: str, name: str, ignored: str) -> None:
    assert resolve(base, TABLE) == (name, ignored)


@pytest.mark.parametrize(
    "base",
    [
        "joint_transformer_blocks_0_attn_to_q",  # AuraFlow
        "visual_transformer_blocks.0.attn.to_q",  # Kandinsky
        "single_transformer_blocks_9000_attn_to_q",
        "lora_unet_down_blocks_1_attentions_0_proj_out",  # Stable Diffusion: proj_out is ours too
        "controlnet.transformer_blocks.0.attn.to_q",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
    ],
)
def test_names_of_other_models(base: str) -> None:
    assert resolve(base, TABLE)[0] is None


def save(path: Path, prefix: str, dialect, **options) -> Path:
    LoraFile.make(NATIVE, lambda name: f"{prefix}{name}", dialect, **options).save(path)
    return path


@pytest.mark.parametrize("prefix", ["Hunyuan_video_I2V_lora_", "lora_unet_model_", "studio_v2_"])
def test_whole_files(prefix: str, tmp_path: Path) -> None:
    """With all their layers, also those outside of the blocks."""
    plain = LoraFile.make(NATIVE, underscored("lora_unet_"), KOHYA)
    other = LoraFile.make(NATIVE, underscored(prefix), KOHYA)
    save_file(plain.tensors, tmp_path / "plain.safetensors")
    save_file(other.tensors, tmp_path / "other.safetensors")
    expected = load_lora(tmp_path / "plain.safetensors", SHAPES)
    found = load_lora(tmp_path / "other.safetensors", SHAPES)
    assert found.modules == expected.modules
    assert found.report.ignored == [prefix] and expected.report.ignored == []
    assert "ignored before its names" in found.report.describe()
    assert prefix in found.report.describe()


def peft_tensors(adapter: str) -> dict[str, torch.Tensor]:
    base = "base_model.model.single_transformer_blocks.0.attn.to_q"
    rows, columns = SHAPES["single_transformer_blocks.0.attn.to_q.weight"]
    down, up = torch.ones(2, columns), torch.ones(rows, 2)
    return {f"{base}.lora_A{adapter}.weight": down, f"{base}.lora_B{adapter}.weight": up}


@pytest.mark.parametrize("adapter", ["", ".default", ".my-style", ".style 2", ".語"])
def test_adapters_of_any_name(adapter: str, tmp_path: Path) -> None:
    save_file(peft_tensors(adapter), tmp_path / "a.safetensors")
    found = load_lora(tmp_path / "a.safetensors", SHAPES)
    assert found.modules == ["single_transformer_blocks.0.attn.to_q"]


def test_a_folder_of_peft(tmp_path: Path) -> None:
    folder = tmp_path / "my-style"
    folder.mkdir()
    save_file(peft_tensors(""), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"lora_alpha": 6, "r": 2}')
    found = load_lora(folder, SHAPES)
    [delta] = found.deltas.values()
    columns = SHAPES["single_transformer_blocks.0.attn.to_q.weight"][1]
    assert delta.scale == 3 and columns
    (folder / "adapter_model.safetensors").unlink()
    assert "is a folder without adapter_model.safetensors" in error_of(load_lora, folder, SHAPES)
