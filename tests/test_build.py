"""Models from files: every naming scheme, every wrong file, and the memory it takes."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from framepack_core.models import build
from framepack_core.models.build import (
    load_dit,
    load_image_encoder,
    load_text_encoders,
    load_vae,
)
from framepack_core.models.dit import DiTConfig, FramePackDiT
from framepack_core.models.text import clip_model, llama_model
from framepack_core.runtime.errors import FramePackError
from framepack_core.toyworld import SNAPSHOT
from framepack_core.weights import tokenizers
from framepack_core.weights.files import open_weights, save_weights
from framepack_core.weights.layouts import TOKENIZERS, find_component

COMPONENTS = {
    "transformer": "dit",
    "vae": "vae",
    "text_encoder": "llama",
    "text_encoder_2": "clip",
    "image_encoder": "image_encoder",
}


def tensors(folder: str) -> dict[str, Tensor]:
    """All tensors of a component of the built-in model."""
    return dict(open_weights(find_component(SNAPSHOT / folder, COMPONENTS[folder]).weights))


def single_file(
    folder: Path, component: str, rename: Callable[[str], str], extra: dict | None = None
) -> Path:
    """The built-in model's component as one file under other names, with its config inside."""
    config = json.loads((SNAPSHOT / component / "config.json").read_text())
    state = {rename(name): tensor for name, tensor in tensors(component).items()}
    path = folder / "one.safetensors"
    save_weights(path, state | (extra or {}), {"config": json.dumps(config)})
    return path


def assert_holds(model: nn.Module, component: str) -> None:
    """The model's parameters are the snapshot's, in fp32."""
    expected = tensors(component)
    state = model.state_dict()
    assert set(state) == set(expected)
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name].float()), name


# --- every naming scheme -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix", ["", "model.diffusion_model.", "diffusion_model.", "model.model.", "transformer."]
)
def test_dit_of_any_prefix(tmp_path: Path, prefix: str) -> None:
    path = single_file(tmp_path, "transformer", lambda name: prefix + name)
    assert_holds(load_dit(path, dtype=torch.float32), "transformer")


def comfy_vae_pairs(levels: int, resnets: int) -> dict[str, str]:
    """Latent diffusion's name of every part of the autoencoder, by diffusers' name of it."""
    pairs = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for side in ("encoder", "decoder"):
        for name in ("conv_in", "conv_out"):
            pairs[f"{side}.{name}"] = f"{side}.{name}"
        pairs[f"{side}.conv_norm_out"] = f"{side}.norm_out"
        for i in (0, 1):
            pairs[f"{side}.mid_block.resnets.{i}"] = f"{side}.mid.block_{i + 1}"
        attention = f"{side}.mid_block.attentions.0"
        names = {
            "group_norm": "norm",
            "to_q": "q",
            "to_k": "k",
            "to_v": "v",
            "to_out.0": "proj_out",
        }
        for ours, theirs in names.items():
            pairs[f"{attention}.{ours}"] = f"{side}.mid.attn_1.{theirs}"
    for i in range(levels):
        up = levels - 1 - i
        pairs[f"encoder.down_blocks.{i}.downsamplers.0"] = f"encoder.down.{i}.downsample"
        pairs[f"decoder.up_blocks.{i}.upsamplers.0"] = f"decoder.up.{up}.upsample"
        for j in range(resnets + 1):
            pairs[f"encoder.down_blocks.{i}.resnets.{j}"] = f"encoder.down.{i}.block.{j}"
            pairs[f"decoder.up_blocks.{i}.resnets.{j}"] = f"decoder.up.{up}.block.{j}"
    return pairs


def test_vae_of_comfyui(tmp_path: Path) -> None:
    pairs = comfy_vae_pairs(levels=4, resnets=1)

    def rename(name: str) -> str:
        part = max((p for p in pairs if name.startswith(p + ".")), key=len)
        return pairs[part] + name.removeprefix(part).replace("conv_shortcut", "nin_shortcut")

    path = single_file(tmp_path, "vae", rename)
    state = dict(open_weights(path))
    for name, tensor in state.items():
        if ".attn_1." in name and tensor.ndim == 2:
            state[name] = tensor[:, :, None, None, None]
    save_weights(path, state, {"config": (SNAPSHOT / "vae" / "config.json").read_text()})
    assert_holds(load_vae(path, dtype=torch.float32), "vae")


@pytest.mark.parametrize("nested", [True, False])
def test_vae_of_the_original_release(tmp_path: Path, nested: bool) -> None:
    state = {"vae." + name: tensor for name, tensor in tensors("vae").items()}
    torch.save({"state_dict": state} if nested else state, tmp_path / "pytorch_model.pt")
    shutil.copy(SNAPSHOT / "vae" / "config.json", tmp_path)
    assert_holds(load_vae(tmp_path / "pytorch_model.pt", dtype=torch.float32), "vae")
    assert_holds(load_vae(tmp_path, dtype=torch.float32), "vae")


def with_tokenizers(folder: Path) -> None:
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(SNAPSHOT / name, folder / name)


def test_text_encoders_of_comfyui(tmp_path: Path) -> None:
    """llava_llama3 with its head and tokenizer, clip_l with its projection, one folder for all."""
    with_tokenizers(tmp_path)
    extra = {"lm_head.weight": torch.zeros(4, 64), "tokenizer": torch.zeros(9, dtype=torch.uint8)}
    llama = single_file(tmp_path, "text_encoder", lambda name: "model." + name, extra)
    llama = llama.rename(tmp_path / "llava_llama3_fp16.safetensors")
    clip = single_file(
        tmp_path, "text_encoder_2", str, {"text_projection.weight": torch.zeros(64, 64)}
    )
    encoders = load_text_encoders(llama, clip, dtype=torch.float32)
    assert_holds(encoders.llama, "text_encoder")
    assert_holds(encoders.clip, "text_encoder_2")
    reference = load_text_encoders(SNAPSHOT, SNAPSHOT, dtype=torch.float32)
    ours, theirs = (e.encode("a red circle moves right") for e in (encoders, reference))
    assert torch.equal(ours.text, theirs.text) and torch.equal(ours.pooled, theirs.pooled)


def test_clip_names_without_the_outer_module(tmp_path: Path) -> None:
    with_tokenizers(tmp_path)
    clip = single_file(tmp_path, "text_encoder_2", lambda name: name.removeprefix("text_model."))
    encoders = load_text_encoders(SNAPSHOT, clip, dtype=torch.float32)
    assert_holds(encoders.clip, "text_encoder_2")


def test_siglip_with_its_pooling_head(tmp_path: Path) -> None:
    path = single_file(tmp_path, "image_encoder", str, {"vision_model.head.probe": torch.zeros(48)})
    encoder = load_image_encoder(path, dtype=torch.float32)
    assert_holds(encoder.model, "image_encoder")
    image = np.zeros((56, 56, 3), np.uint8)
    assert encoder.encode(image).shape == (1, 16, 48)


# --- types, sizes, layers ------------------------------------------------------------------------


def test_bf16_dit_keeps_an_fp32_output_projection() -> None:
    state = load_dit(SNAPSHOT).state_dict()
    fp32 = {name for name, tensor in state.items() if tensor.dtype == torch.float32}
    assert fp32 == {"proj_out.weight", "proj_out.bias"}
    assert {t.dtype for n, t in state.items() if n not in fp32} == {torch.bfloat16}


def test_loaded_models_are_frozen_and_in_eval_mode() -> None:
    model = load_vae(SNAPSHOT)
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_dit_config_from_shapes_alone(tmp_path: Path) -> None:
    config = DiTConfig(
        num_attention_heads=1,
        num_layers=1,
        num_single_layers=2,
        num_refiner_layers=3,
        mlp_ratio=2.0,
        text_embed_dim=24,
        pooled_projection_dim=20,
        image_proj_dim=16,
    )
    skeleton = FramePackDiT(config, device="meta").state_dict()
    state = {name: torch.zeros(t.shape, dtype=torch.bfloat16) for name, t in skeleton.items()}
    save_weights(tmp_path / "m.safetensors", state)
    assert load_dit(tmp_path / "m.safetensors").config == config


def test_other_head_sizes_need_a_config(tmp_path: Path) -> None:
    save_weights(tmp_path / "m.safetensors", tensors("transformer"))
    with pytest.raises(FramePackError) as error:
        load_dit(tmp_path / "m.safetensors")
    assert str(error.value) == (
        f"{tmp_path / 'm.safetensors'} has attention heads of 64 channels, not 128: "
        "put the config.json of this model beside it"
    )


def marked_layers() -> SimpleNamespace:
    """Stand-ins for a host's layer classes, told apart by an attribute."""
    names = ("Linear", "Embedding", "LayerNorm", "Conv2d", "Conv3d", "GroupNorm", "RMSNorm")
    return SimpleNamespace(**{n: type(n, (getattr(nn, n),), {"marked": True}) for n in names})


def test_every_weight_sits_in_a_layer_of_ops() -> None:
    ops = marked_layers()
    models = [
        load_dit(SNAPSHOT, ops=ops),
        load_vae(SNAPSHOT, ops=ops),
        load_image_encoder(SNAPSHOT, ops=ops).model,
        (encoders := load_text_encoders(SNAPSHOT, SNAPSHOT, ops=ops)).llama,
        encoders.clip,
    ]
    for model in models:
        for name, module in model.named_modules():
            if module._parameters:
                assert hasattr(module, "marked"), f"{type(model).__name__}.{name}"


def test_replaced_layers_compute_the_same() -> None:
    plain, marked = (
        load_text_encoders(SNAPSHOT, SNAPSHOT, dtype=torch.float32, ops=ops)
        for ops in (nn, marked_layers())
    )
    ours, theirs = (e.encode("a blue cross grows") for e in (marked, plain))
    torch.testing.assert_close(ours.text, theirs.text)
    torch.testing.assert_close(ours.pooled, theirs.pooled)
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    ours, theirs = (
        load_image_encoder(SNAPSHOT, dtype=torch.float32, ops=ops).encode(image)
        for ops in (marked_layers(), nn)
    )
    torch.testing.assert_close(ours, theirs)


def test_full_size_configs_of_files_that_come_alone() -> None:
    """Parameters of LLaMA 3 8B with llava's vocabulary and no head, and of CLIP-L's text half."""
    sizes = [
        sum(math.prod(p.shape) for p in model.parameters())
        for model in (llama_model(build.LLAMA_CONFIG), clip_model(build.CLIP_CONFIG))
    ]
    assert sizes == [7_505_186_816, 123_060_480]


# --- wrong files ---------------------------------------------------------------------------------


def error_of(load: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(FramePackError) as error:
        load(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_lora_given_as_a_model(tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    save_weights(path, {"lora_unet_transformer_blocks_0_attn_to_q.lora_down.weight": torch.ones(1)})
    assert error_of(load_dit, path).startswith(
        f"{path} is a LoRA (musubi-tuner and kohya names), not a FramePack DiT: "
        "load it as a LoRA, and give the model's own file here"
    )


@pytest.mark.parametrize(
    ("load", "given", "message"),
    [
        (load_dit, "vae", "is the config of AutoencoderKLHunyuanVideo, not of a FramePack DiT"),
        (
            load_vae,
            "transformer",
            "HunyuanVideoTransformer3DModelPacked, not of a HunyuanVideo VAE",
        ),
        (load_image_encoder, "text_encoder_2", "CLIPTextModel, not of a SigLIP image encoder"),
    ],
)
def test_the_folder_of_another_component(load, given: str, message: str) -> None:
    assert message in error_of(load, SNAPSHOT / given)


@pytest.mark.parametrize(
    ("load", "given", "message"),
    [
        (load_dit, "vae", "is a HunyuanVideo VAE, not a FramePack DiT: give another file"),
        (load_vae, "transformer", "is a FramePack DiT, not a HunyuanVideo VAE: give another file"),
        (
            load_image_encoder,
            "text_encoder",
            "is a LLaMA text encoder, not a SigLIP image encoder: give another file",
        ),
    ],
)
def test_the_file_of_another_component(tmp_path: Path, load, given: str, message: str) -> None:
    save_weights(tmp_path / "m.safetensors", tensors(given))
    assert message in error_of(load, tmp_path / "m.safetensors")


def test_a_shard_by_another_name(tmp_path: Path) -> None:
    """Renamed, a shard no longer tells how many there are; what is missing then does."""
    first = find_component(SNAPSHOT, "vae").weights[0]
    state = dict(open_weights(first))
    del state["decoder.conv_out.conv.weight"]
    save_weights(tmp_path / "m.safetensors", state)
    shutil.copy(SNAPSHOT / "vae" / "config.json", tmp_path)
    assert error_of(load_vae, tmp_path / "m.safetensors").endswith(
        "is only a part of a HunyuanVideo VAE: give the file or folder that has all of it "
        "(1 missing: decoder.conv_out.conv.weight; 0 left over)"
    )


def test_a_shape_that_the_config_contradicts(tmp_path: Path) -> None:
    config = json.loads((SNAPSHOT / "vae" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"block_out_channels": [8] * 4}))
    state = {n: t for n, t in tensors("vae").items() if "conv_shortcut" not in n}
    save_weights(tmp_path / "m.safetensors", state)
    message = error_of(load_vae, tmp_path / "m.safetensors")
    assert (
        "does not fit this HunyuanVideo VAE: encoder.conv_in.conv.weight is [16, 3, 3, 3, 3] "
        "where the config says [8, 3, 3, 3, 3]; put its own config.json beside it"
    ) in message


def test_a_damaged_config_inside_the_file(tmp_path: Path) -> None:
    save_weights(tmp_path / "m.safetensors", tensors("vae"), {"config": "{"})
    assert "has a damaged config in its metadata" in error_of(load_vae, tmp_path / "m.safetensors")


# --- tokenizers ----------------------------------------------------------------------------------


def lone_encoders(folder: Path) -> tuple[Path, Path]:
    llama = single_file(folder, "text_encoder", str).rename(folder / "llama.safetensors")
    return llama, single_file(folder, "text_encoder_2", str)


@pytest.mark.usefixtures("no_comfyui")
def test_without_any_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_cached(*_: object, **options: object) -> str:
        assert options["local_files_only"], "the hub may only be asked when allowed"
        raise FileNotFoundError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", not_cached)
    llama, clip = lone_encoders(tmp_path)
    with pytest.raises(FramePackError) as error:
        load_text_encoders(llama, clip)
    assert str(error.value) == (
        f"{llama} has no tokenizer; get it with: hf download hunyuanvideo-community/HunyuanVideo "
        '--include "tokenizer/*" "tokenizer_2/*"'
    )


@pytest.mark.usefixtures("no_comfyui")
@pytest.mark.parametrize("cached", [True, False])
def test_tokenizers_of_the_cache_then_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    calls, said = [], []

    def download(repository: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        calls.append((repository, *allow_patterns, local_files_only))
        if local_files_only and not cached:
            raise FileNotFoundError
        return str(SNAPSHOT)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    encoders = load_text_encoders(*lone_encoders(tmp_path), fetch=said.append)
    assert encoders.clip_tokenizer("a")["input_ids"][1] == 320
    repository = "hunyuanvideo-community/HunyuanVideo"
    tried = [True] if cached else [True, False]
    assert calls == [
        (repository, f"{name}/*", local) for name in ("tokenizer", "tokenizer_2") for local in tried
    ]
    assert len(said) == (0 if cached else 2)


@pytest.mark.parametrize("named", [True, False])
def test_tokenizers_of_comfyui(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    """Of the ComfyUI around the weights, or of the one that COMFYUI_PATH names."""
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked"))
    root = tmp_path / "ComfyUI"
    for component, folder in tokenizers.COMFYUI.items():
        name = TOKENIZERS[component]
        shutil.copytree(SNAPSHOT / name, root / folder)
    models = tmp_path / "elsewhere" if named else root / "models" / "text_encoders"
    models.mkdir(parents=True)
    if named:
        monkeypatch.setenv("COMFYUI_PATH", str(root))
    encoders = load_text_encoders(*lone_encoders(models))
    assert encoders.clip_tokenizer("a")["input_ids"][1] == 320


# --- memory --------------------------------------------------------------------------------------

BIG = DiTConfig(
    num_attention_heads=8,
    num_layers=2,
    num_single_layers=4,
    num_refiner_layers=1,
    text_embed_dim=512,
    pooled_projection_dim=256,
    image_proj_dim=256,
)

MEASURE = """
import json, sys, torch
from framepack_core.models.build import load_dit

def kilobytes(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key + ":"))

def measure(dtype):
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # forget earlier peaks
    before = kilobytes("VmRSS")
    model = load_dit(sys.argv[1], dtype=dtype)
    loaded = kilobytes("VmHWM") - before
    size = sum(p.nbytes for p in model.parameters())
    for p in model.parameters():
        p.view(-1)[::512].clone()  # touches every page
    return {"size": size, "loaded": loaded * 1024, "used": (kilobytes("VmHWM") - before) * 1024}

torch.ones(1).bfloat16().float()
print(json.dumps({str(dtype): measure(dtype) for dtype in (torch.bfloat16, torch.float32)}))
"""


@pytest.fixture(scope="module")
def big_dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    skeleton = FramePackDiT(BIG, device="meta").state_dict()
    count = sum(tensor.numel() for tensor in skeleton.values())
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(-128, 128, (count,), dtype=torch.int8, generator=generator).bfloat16()
    parts = noise.split([tensor.numel() for tensor in skeleton.values()])
    state = {k: part.view(skeleton[k].shape) for k, part in zip(skeleton, parts, strict=True)}
    path = tmp_path_factory.mktemp("big") / "big.safetensors"
    save_weights(path, state)
    return path


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_loading(big_dit: Path) -> None:
    """Peak resident memory, as a share of the loaded model: never a second copy.

    A type that needs no conversion is mapped, so nothing is read until it is used.
    """
    command = [sys.executable, "-c", MEASURE, str(big_dit)]
    root = Path(__file__).parents[1]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    print(result.stdout)
    found = json.loads(result.stdout)
    for peaks in found.values():
        assert peaks["size"] > 300e6
        assert peaks["used"] < 1.2 * peaks["size"]  # up to 35 MB are older PyTorch's own
    assert found["torch.bfloat16"]["loaded"] < 0.15 * found["torch.bfloat16"]["size"]
