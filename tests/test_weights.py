"""Weight files against the safetensors library, damaged files, and the key tables."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from framepack_core.runtime.errors import FramePackError
from framepack_core.runtime.files import atomic_path, shell_word
from framepack_core.weights.files import open_weights, read_header, save_weights
from framepack_core.weights.names import (
    UNKNOWN_KIND,
    explain_mismatch,
    guess_kind,
    mode_by_name,
    to_internal,
)


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(3, 5, generator=generator).bfloat16(),
        "b.weight": torch.randn(4, 2, generator=generator),
        "c.half": torch.randn(7, generator=generator).half(),
        "ids": torch.arange(6).reshape(2, 3),
        "flag": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
    }


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    assert torch.equal(actual, expected)


def write_raw(path: Path, header: dict, data: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(start: int, stop: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": [(stop - start) // 4], "data_offsets": [start, stop]}


# --- reading and writing -------------------------------------------------------------------------


def test_reads_what_safetensors_wrote(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "m.safetensors", {"format": "pt"})
    files = open_weights(tmp_path / "m.safetensors")
    assert set(files) == set(tensors()) and files.metadata == {"format": "pt"}
    for name, tensor in tensors().items():
        assert_same(files[name], tensor)
        assert files.info(name).nbytes == tensor.nbytes


def test_safetensors_reads_what_we_wrote(tmp_path: Path) -> None:
    save_weights(tmp_path / "m.safetensors", tensors(), {"b": "2", "a": "1"})
    assert read_header(tmp_path / "m.safetensors").metadata == {"a": "1", "b": "2"}
    for name, tensor in load_file(tmp_path / "m.safetensors").items():
        assert_same(tensor, tensors()[name])


def test_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    save_weights(tmp_path / "1.safetensors", tensors(), {"a": "1", "b": "2"})
    reverse = dict(reversed(tensors().items()))
    save_weights(tmp_path / "2.safetensors", reverse, {"b": "2", "a": "1"})
    first, second = (tmp_path / f"{n}.safetensors" for n in (1, 2))
    assert first.read_bytes() == second.read_bytes()


def test_non_contiguous_tensors_are_written_as_they_look(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).reshape(2, 3).T
    save_weights(tmp_path / "m.safetensors", {"t": tensor})
    assert_same(load_file(tmp_path / "m.safetensors")["t"], tensor.contiguous())


def test_load_converts_floats_and_keeps_integers(tmp_path: Path) -> None:
    save_weights(tmp_path / "m.safetensors", tensors())
    files = open_weights(tmp_path / "m.safetensors")
    assert_same(files.load("a.weight", torch.float32), tensors()["a.weight"].float())
    assert_same(files.load("ids", torch.float32), tensors()["ids"])
    assert_same(files.load("a.weight"), tensors()["a.weight"])


@pytest.mark.skipif(os.name == "nt", reason="views are read-only on Windows")
def test_writing_to_a_view_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_weights(path, tensors())
    before = path.read_bytes()
    view = open_weights(path).load("b.weight", torch.float32)
    view.add_(1)
    assert_same(view, tensors()["b.weight"] + 1)
    assert path.read_bytes() == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_a_file_larger_than_memory_can_be_mapped(tmp_path: Path) -> None:
    """Sparse, so that it takes no disk: what a 26 GB model is to a machine of 16 GB."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    swap = int(re.search(r"SwapTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024
    size = (memory + swap) // 4096 * 4096 + 4096
    path = tmp_path / "m.safetensors"
    write_raw(path, {"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}, b"")
    try:
        os.truncate(path, path.stat().st_size + size)
    except OSError:
        pytest.skip("no sparse files here")
    assert open_weights(path)["a"][-1] == 0


def test_shards_are_one_mapping(tmp_path: Path) -> None:
    save_weights(tmp_path / "1.safetensors", {"a": torch.zeros(2)})
    save_weights(tmp_path / "2.safetensors", {"b": torch.ones(2)})
    files = open_weights([tmp_path / "1.safetensors", tmp_path / "2.safetensors"])
    assert sorted(files) == ["a", "b"] and files["b"].sum() == 2


def test_shards_that_repeat_a_tensor_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    for path in paths:
        save_weights(path, {"a": torch.zeros(2)})
    with pytest.raises(FramePackError, match=r"2\.safetensors and .*1\.safetensors both hold"):
        open_weights(paths)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_torch_files(tmp_path: Path, zipped: bool, nested: bool) -> None:
    state = {"a": torch.arange(4.0), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    content = {"state_dict": state} if nested else state
    torch.save(content, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    files = open_weights(tmp_path / "m.pt")
    assert set(files) == {"a", "b"}
    assert_same(files["a"], state["a"])
    assert_same(files.load("b", torch.float32), state["b"].float())


# --- bad files -----------------------------------------------------------------------------------


def truncated(path: Path) -> None:
    save_weights(path, {"a": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:2000])


def appended(path: Path) -> None:
    save_weights(path, {"a": torch.zeros(1000)})
    path.write_bytes(path.read_bytes() + bytes(100))


def cut_in_header(path: Path) -> None:
    save_weights(path, {"a": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:30])


def torch_by_another_name(path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, path)


BAD = {
    "missing": (lambda path: None, "does not exist: check the path"),
    "empty": (lambda path: path.write_bytes(b""), "is empty: download it again"),
    "truncated": (
        truncated,
        r"is 2.0 kB but its header says 4.1 kB: the download is incomplete, download it again",
    ),
    "appended": (appended, "is 4.2 kB but its header says 4.1 kB: something was added to it"),
    "cut in header": (cut_in_header, r"ends inside its header \(30 bytes\): download it again"),
    "web page": (
        lambda path: path.write_text("<!DOCTYPE html><html>404"),
        "is a web page, not a model: use the page's download link",
    ),
    "pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0"),
        "is a Git LFS pointer",
    ),
    "gguf": (lambda path: path.write_bytes(b"GGUF" + bytes(90)), "is a GGUF file"),
    "torch": (torch_by_another_name, "is a PyTorch file named .safetensors: rename it to .pt"),
    "picture": (
        lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99)),
        "is not a file of weights",
    ),
    "no json": (
        lambda path: path.write_bytes((8).to_bytes(8, "little") + b"not json"),
        "has a damaged safetensors header",
    ),
    "no object": (
        lambda path: path.write_bytes((2).to_bytes(8, "little") + b"[]"),
        "has a damaged safetensors header",
    ),
    "overlap": (
        lambda path: write_raw(path, {"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
        r"has a damaged safetensors header \(b overlaps the tensor before it\)",
    ),
    "gap": (
        lambda path: write_raw(path, {"a": entry(0, 8), "b": entry(12, 16)}, bytes(16)),
        r"has a damaged safetensors header \(b leaves a gap\)",
    ),
    "negative": (
        lambda path: write_raw(path, {"a": entry(-4, 4)}, bytes(8)),
        r"damaged safetensors header \(a of shape \[2\] at bytes -4 to 4\)",
    ),
    "wrong shape": (
        lambda path: write_raw(path, {"a": entry(0, 8) | {"shape": [3]}}, bytes(8)),
        r"damaged safetensors header \(a of shape \[3\] at bytes 0 to 8\)",
    ),
    "no offsets": (
        lambda path: write_raw(path, {"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
        r"has a damaged safetensors header \('data_offsets'\)",
    ),
    "unknown type": (
        lambda path: write_raw(path, {"a": entry(0, 8, "F4")}, bytes(8)),
        "tensor a has the type F4, which is not supported",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_safetensors(tmp_path: Path, case: str) -> None:
    make, message = BAD[case]
    path = tmp_path / "model.safetensors"
    make(path)
    with pytest.raises(FramePackError, match=message) as error:
        open_weights(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


class Harmful:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("harmed",)


def test_pickles_that_could_run_code_are_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.pt").write_bytes(pickle.dumps({"a": Harmful()}, protocol=2))
    with pytest.raises(FramePackError, match=r"m\.pt holds more than tensors and could run code"):
        open_weights(tmp_path / "m.pt")
    torch.save({"a": Harmful()}, tmp_path / "z.pt")
    with pytest.raises(FramePackError, match=r"z\.pt holds more than tensors and could run code"):
        open_weights(tmp_path / "z.pt")
    assert not (tmp_path / "harmed").exists()


def test_truncated_torch_file(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(FramePackError, match=r"m\.pt cannot be read .*download is incomplete"):
        open_weights(path)


def test_torch_file_of_something_else(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "m.pt")
    with pytest.raises(FramePackError, match="is not a dict of tensors"):
        open_weights(tmp_path / "m.pt")


def test_gguf_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(90))
    with pytest.raises(FramePackError, match="is a damaged GGUF file"):
        open_weights(tmp_path / "m.gguf")


# --- never half a file ---------------------------------------------------------------------------


def test_atomic_path_replaces_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "clip.mp4"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".mp4"
        temporary.write_text("video")
        assert not path.exists()
    assert path.read_text() == "video" and os.listdir(path.parent) == ["clip.mp4"]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["f.txt"]


def test_disk_full_says_what_survives(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    path.write_text("old")
    message = (
        r"cannot write .*f\.txt: No space left on device \(.* free\); the file from before is "
        "unchanged, and files finished earlier are safe; free some space and run again"
    )
    with pytest.raises(FramePackError, match=message), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["f.txt"]


def test_a_full_disk_while_saving_weights(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(FramePackError, match="nothing was left half-written"):
            save_weights(tmp_path / "m.safetensors", {"a": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FramePackError, match=r"cannot write .*choose another folder"):
        save_weights(tmp_path / "file" / "m.safetensors", {"a": torch.zeros(1)})


def test_an_error_about_another_file_passes_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "f.txt"):
        (tmp_path / "other.txt").read_text()


@pytest.mark.parametrize(
    ("system", "path", "word"),
    [
        ("linux", "/home/me/a_1.safetensors", "/home/me/a_1.safetensors"),
        ("linux", "/home/me/my videos/it's.mp4", "'/home/me/my videos/it'\"'\"'s.mp4'"),
        ("win32", r"C:\Users\me\a-1.mp4", r"C:\Users\me\a-1.mp4"),
        ("win32", r"C:\Users\John Doe\a & b.mp4", r'"C:\Users\John Doe\a & b.mp4"'),
    ],
)
def test_a_path_to_be_copied_into_a_shell(
    system: str, path: str, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert shell_word(Path(path)) == word


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix", ["", "model.diffusion_model.", "diffusion_model.", "model.model.", "transformer."]
)
def test_dit_prefixes(prefix: str) -> None:
    names = ["x_embedder.proj.weight", "transformer_blocks.0.attn.to_q.weight", "proj_out.bias"]
    keys = [prefix + name for name in names]
    assert to_internal("dit", keys) == dict(zip(names, keys, strict=True))


# Written out by hand from the module trees of diffusers and of latent diffusion.
COMFY_VAE = {
    "encoder.conv_in.conv.weight": "encoder.conv_in.conv.weight",
    "encoder.down.0.block.1.conv1.conv.bias": "encoder.down_blocks.0.resnets.1.conv1.conv.bias",
    "encoder.down.2.block.0.nin_shortcut.conv.weight": (
        "encoder.down_blocks.2.resnets.0.conv_shortcut.conv.weight"
    ),
    "encoder.down.2.downsample.conv.conv.weight": (
        "encoder.down_blocks.2.downsamplers.0.conv.conv.weight"
    ),
    "encoder.mid.block_1.norm1.weight": "encoder.mid_block.resnets.0.norm1.weight",
    "encoder.mid.attn_1.norm.weight": "encoder.mid_block.attentions.0.group_norm.weight",
    "encoder.norm_out.weight": "encoder.conv_norm_out.weight",
    "decoder.conv_in.conv.weight": "decoder.conv_in.conv.weight",
    "decoder.mid.block_2.conv2.conv.weight": "decoder.mid_block.resnets.1.conv2.conv.weight",
    "decoder.mid.attn_1.q.weight": "decoder.mid_block.attentions.0.to_q.weight",
    "decoder.mid.attn_1.k.bias": "decoder.mid_block.attentions.0.to_k.bias",
    "decoder.mid.attn_1.v.weight": "decoder.mid_block.attentions.0.to_v.weight",
    "decoder.mid.attn_1.proj_out.weight": "decoder.mid_block.attentions.0.to_out.0.weight",
    "decoder.up.3.block.0.conv1.conv.weight": "decoder.up_blocks.0.resnets.0.conv1.conv.weight",
    "decoder.up.3.upsample.conv.conv.weight": ("decoder.up_blocks.0.upsamplers.0.conv.conv.weight"),
    "decoder.up.1.block.0.nin_shortcut.conv.weight": (
        "decoder.up_blocks.2.resnets.0.conv_shortcut.conv.weight"
    ),
    "decoder.up.0.block.2.norm2.bias": "decoder.up_blocks.3.resnets.2.norm2.bias",
    "decoder.norm_out.bias": "decoder.conv_norm_out.bias",
    "post_quant_conv.weight": "post_quant_conv.weight",
}


@pytest.mark.parametrize("prefix", ["", "vae."])
def test_comfy_vae_names(prefix: str) -> None:
    found = to_internal("vae", [prefix + key for key in COMFY_VAE])
    assert found == {name: prefix + key for key, name in COMFY_VAE.items()}


def test_diffusers_vae_names_stay() -> None:
    names = list(COMFY_VAE.values())
    assert to_internal("vae", names) == {name: name for name in names}


@pytest.mark.parametrize(
    ("component", "keys", "expected"),
    [
        (
            "llama",
            ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", "tokenizer"],
            ["embed_tokens.weight", "norm.weight"],
        ),
        ("llama", ["embed_tokens.weight", "norm.weight"], ["embed_tokens.weight", "norm.weight"]),
        (
            "clip",
            ["text_model.embeddings.token_embedding.weight", "text_projection.weight"],
            ["embeddings.token_embedding.weight"],
        ),
        (
            "clip",
            ["embeddings.token_embedding.weight", "final_layer_norm.bias"],
            ["embeddings.token_embedding.weight", "final_layer_norm.bias"],
        ),
        (
            "image_encoder",
            ["vision_model.embeddings.patch_embedding.weight", "vision_model.head.probe"],
            ["embeddings.patch_embedding.weight"],
        ),
    ],
)
def test_encoder_names(component, keys: list[str], expected: list[str]) -> None:
    assert list(to_internal(component, keys)) == expected


KINDS = {
    "LoRA (musubi-tuner and kohya names)": [
        "lora_unet_single_transformer_blocks_0_attn_to_k.lora_down.weight"
    ],
    "LoRA (diffusers names)": ["transformer.transformer_blocks.0.attn.to_k.lora_A.weight"],
    "LoRA (diffusion-pipe and ComfyUI names)": [
        "diffusion_model.single_blocks.0.linear1.lora_A.weight"
    ],
    "LoRA (PEFT names)": ["base_model.model.single_blocks.0.linear1.lora_A.weight"],
    "LoHa (LyCORIS)": ["lora_unet_single_blocks_0_linear1.hada_w1_a"],
    "LoKr (LyCORIS)": ["lora_unet_single_blocks_0_linear1.lokr_w1"],
    "FramePack DiT": ["model.diffusion_model.clean_x_embedder.proj.weight"],
    "HunyuanVideo DiT (diffusers names)": [
        "x_embedder.proj.weight",
        "context_embedder.token_refiner.refiner_blocks.0.attn.to_q.weight",
    ],
    "HunyuanVideo DiT (original names)": [
        "txt_in.individual_token_refiner.blocks.0.norm1.weight",
        "double_blocks.0.img_attn_qkv.weight",
    ],
    "Wan DiT": ["text_embedding.0.weight", "blocks.0.self_attn.norm_q.weight"],
    "Flux DiT": ["double_blocks.0.img_attn.norm.key_norm.scale"],
    "Stable Diffusion model": ["model.diffusion_model.input_blocks.0.0.weight"],
    "HunyuanVideo VAE (ComfyUI names)": ["decoder.up.0.block.0.conv1.conv.weight"],
    "Wan VAE": ["decoder.middle.0.residual.0.gamma"],
    "image VAE (Stable Diffusion or Flux)": ["decoder.conv_in.weight"],
    "T5 text encoder": ["encoder.block.0.layer.0.SelfAttention.q.weight"],
    "LLaMA text encoder": ["model.layers.0.mlp.gate_proj.weight", "model.embed_tokens.weight"],
    "CLIP-L text encoder": [
        "text_model.embeddings.token_embedding.weight",
        "text_model.encoder.layers.0.mlp.fc1.weight",
    ],
    "CLIP vision encoder": [
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.embeddings.class_embedding",
    ],
    "SigLIP image encoder": ["vision_model.embeddings.patch_embedding.weight"],
    UNKNOWN_KIND: ["weight"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_guess_kind(kind: str) -> None:
    assert guess_kind(KINDS[kind]) == kind


WANTED = ["x_embedder.proj.weight", "clean_x_embedder.proj.weight", "proj_out.bias"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (WANTED, None),
        (
            KINDS["LoRA (diffusers names)"],
            "is a LoRA (diffusers names), not a FramePack DiT: load it as a LoRA, and give the "
            "model's own file here (3 missing: x_embedder.proj.weight, "
            "clean_x_embedder.proj.weight, proj_out.bias; 1 left over: "
            "transformer.transformer_blocks.0.attn.to_k.lora_A.weight)",
        ),
        (
            KINDS["Wan VAE"],
            "is a Wan VAE, not a FramePack DiT: give another file (3 missing: "
            "x_embedder.proj.weight, clean_x_embedder.proj.weight, proj_out.bias; 1 left over: "
            "decoder.middle.0.residual.0.gamma)",
        ),
        (
            WANTED[:2],
            "is only a part of a FramePack DiT: give the file or folder that has all of it "
            "(1 missing: proj_out.bias; 0 left over)",
        ),
        (
            ["foo", "bar", "baz", "qux"],
            "does not look like a FramePack DiT: give another file (3 missing: "
            "x_embedder.proj.weight, clean_x_embedder.proj.weight, proj_out.bias; 4 left over: "
            "foo, bar, baz, ...)",
        ),
        (
            [*WANTED, "transformer_blocks.99.x"],
            "is a FramePack DiT of other sizes than expected: put its own config.json beside it "
            "(0 missing; 1 left over: transformer_blocks.99.x)",
        ),
    ],
)
def test_explain_mismatch(keys: list[str], message: str | None) -> None:
    assert explain_mismatch("dit", keys, WANTED) == message


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("lllyasviel/FramePackI2V_HY", "framepack"),
        ("frame_pack-i2v.safetensors", "framepack"),
        ("FramePack_F1_I2V_HY_20250503_fp8.safetensors", "f1"),
        ("framepack-f1/diffusion_pytorch_model-00001-of-00003.safetensors", "f1"),
        ("f1/a/b/c/model.safetensors", None),
        ("hf16.safetensors", None),
        ("", None),
    ],
)
def test_names_of_files_tell_the_mode(name: str, mode: str | None) -> None:
    assert mode_by_name(name) == mode
