"""Every way in which people have the files of a model on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from framepack_core.runtime.errors import FramePackError
from framepack_core.weights.layouts import find_component, find_snapshot

SHARDS = [f"diffusion_pytorch_model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
DIT_CONFIG = {"_class_name": "HunyuanVideoTransformer3DModelPacked", "num_layers": 20}


def touch(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [folder / name for name in names]


def write_json(path: Path, content: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


# --- one component -------------------------------------------------------------------------------


def test_single_file(tmp_path: Path) -> None:
    [path] = touch(tmp_path, "FramePackI2V_HY_bf16.safetensors")
    touch(tmp_path, "another_model.safetensors")
    found = find_component(path, "dit")
    assert found.weights == [path] and found.config is None and found.tokenizer is None


@pytest.mark.parametrize("named", [0, 1, 2])
def test_any_shard_may_be_named(tmp_path: Path, named: int) -> None:
    paths = touch(tmp_path, *SHARDS)
    assert find_component(paths[named], "dit").weights == paths


def test_config_beside_a_shard(tmp_path: Path) -> None:
    paths = touch(tmp_path, *SHARDS)
    write_json(tmp_path / "config.json", DIT_CONFIG)
    assert find_component(paths[1], "dit").config == DIT_CONFIG


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    paths = touch(tmp_path, SHARDS[0], SHARDS[2])
    for path in (*paths, tmp_path / SHARDS[1], tmp_path):
        with pytest.raises(FramePackError) as error:
            find_component(path, "dit")
        assert str(error.value) == (
            f"{tmp_path} lacks {SHARDS[1]} of the model's 3 files: "
            "download what is missing into that folder"
        )


def test_a_broken_link_is_a_missing_shard(tmp_path: Path) -> None:
    touch(tmp_path, *SHARDS[:2])
    try:
        (tmp_path / SHARDS[2]).symlink_to(tmp_path / "blobs" / "0")
    except OSError:
        pytest.skip("no symbolic links here")
    with pytest.raises(FramePackError, match=f"lacks {SHARDS[2]}"):
        find_component(tmp_path, "dit")


def test_nothing_there(tmp_path: Path) -> None:
    for name in ("model.safetensors", SHARDS[0], "folder"):
        with pytest.raises(FramePackError, match=f"{name} does not exist: check the path"):
            find_component(tmp_path / name, "dit")


def test_folder_of_shards_without_an_index(tmp_path: Path) -> None:
    paths = touch(tmp_path, *SHARDS)
    assert find_component(tmp_path, "dit").weights == paths


def test_folder_with_an_index(tmp_path: Path) -> None:
    paths = touch(tmp_path, "part_a.safetensors", "part_b.safetensors")
    weight_map = {"x": "part_b.safetensors", "y": "part_a.safetensors", "z": "part_b.safetensors"}
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    write_json(index, {"weight_map": weight_map})
    assert find_component(tmp_path, "dit").weights == paths
    assert find_component(index, "dit").weights == paths


def test_index_that_names_a_missing_file(tmp_path: Path) -> None:
    touch(tmp_path, SHARDS[0])
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    write_json(index, {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}})
    with pytest.raises(FramePackError, match=f"lacks {SHARDS[1]} of the model's 2 files"):
        find_component(tmp_path, "dit")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read"), ("[]", "is not a JSON object"), ("{}", "has no weight_map")],
)
def test_bad_index(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(FramePackError, match=rf"index\.json {message}"):
        find_component(tmp_path, "llama")


@pytest.mark.parametrize(
    ("component", "folder"),
    [
        ("dit", "transformer"),
        ("vae", "vae"),
        ("llama", "text_encoder"),
        ("clip", "text_encoder_2"),
        ("image_encoder", "image_encoder"),
    ],
)
def test_sub_folder_before_the_folder_itself(tmp_path: Path, component, folder: str) -> None:
    [inner] = touch(tmp_path / folder, "model.safetensors")
    touch(tmp_path, "model.safetensors")
    assert find_component(tmp_path, component).weights == [inner]
    assert find_component(tmp_path / folder, component).weights == [inner]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["odd_name.safetensors"], "odd_name.safetensors"),
        (["lora.safetensors", "model.safetensors"], "model.safetensors"),
        (["model.safetensors", "pytorch_model.bin"], "model.safetensors"),
        (["model.safetensors", "model.fp16.safetensors"], "model.safetensors"),
        (["pytorch_model.pt", "optimizer.pt"], "pytorch_model.pt"),
        (["._model.safetensors", "model.safetensors", "config.txt"], "model.safetensors"),
    ],
)
def test_rules_for_several_files(tmp_path: Path, names: list[str], expected: str) -> None:
    touch(tmp_path, *names)
    assert find_component(tmp_path, "vae").weights == [tmp_path / expected]


def test_half_a_model_that_is_not_wanted_does_no_harm(tmp_path: Path) -> None:
    touch(tmp_path, "model.safetensors", "other-00001-of-00002.safetensors")
    assert find_component(tmp_path, "vae").weights == [tmp_path / "model.safetensors"]


def test_several_candidates_are_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "b.safetensors", "a.safetensors", "c-00001-of-00001.safetensors")
    with pytest.raises(FramePackError) as error:
        find_component(tmp_path, "dit")
    assert str(error.value) == (
        f"{tmp_path} holds 3 models (a.safetensors, b.safetensors, c.safetensors): "
        "give the path of the file to use"
    )


def test_folder_without_weights(tmp_path: Path) -> None:
    touch(tmp_path, "config.txt")
    with pytest.raises(FramePackError, match="holds no weights"):
        find_component(tmp_path, "dit")


# --- Hugging Face cache --------------------------------------------------------------------------


def test_cache_folder_follows_main(tmp_path: Path) -> None:
    root = tmp_path / "models--lllyasviel--FramePackI2V_HY"
    paths = touch(root / "snapshots" / "abc", *SHARDS)
    touch(root / "snapshots" / "old", "model.safetensors")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("abc")
    assert find_component(root, "dit").weights == paths
    assert find_component(root / "snapshots" / "abc", "dit").weights == paths


def test_cache_folder_with_one_snapshot(tmp_path: Path) -> None:
    root = tmp_path / "models--hunyuanvideo-community--HunyuanVideo"
    [path] = touch(root / "snapshots" / "e8c2", "vae/diffusion_pytorch_model.safetensors")
    assert find_component(root, "vae").weights == [path]


def test_cache_folder_with_several_snapshots(tmp_path: Path) -> None:
    root = tmp_path / "models--lllyasviel--FramePackI2V_HY"
    for commit in ("b", "a"):
        touch(root / "snapshots" / commit, *SHARDS)
    with pytest.raises(FramePackError, match=r"holds 2 snapshots \(a, b\): give the path of one"):
        find_component(root, "dit")


# --- config.json ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("component", "config"),
    [
        ("dit", {"_class_name": "HunyuanVideoFramepackTransformer3DModel"}),
        ("vae", {"_class_name": "AutoencoderKLHunyuanVideo"}),
        ("vae", {"_class_name": "AutoencoderKLCausal3D"}),
        ("llama", {"architectures": ["LlamaModel"], "model_type": "llama"}),
        ("clip", {"model_type": "clip_text_model"}),
        ("image_encoder", {"architectures": ["SiglipVisionModel"]}),
        ("vae", {"latent_channels": 16}),
    ],
)
def test_fitting_configs(tmp_path: Path, component, config: dict) -> None:
    touch(tmp_path, "model.safetensors")
    write_json(tmp_path / "config.json", config)
    assert find_component(tmp_path, component).config == config


@pytest.mark.parametrize(
    ("component", "tower"), [("clip", "text_config"), ("image_encoder", "vision_config")]
)
def test_config_of_a_model_with_two_towers(tmp_path: Path, component, tower: str) -> None:
    touch(tmp_path, "model.safetensors")
    write_json(tmp_path / "config.json", {"architectures": ["Model"], tower: {"hidden_size": 8}})
    assert find_component(tmp_path, component).config == {"hidden_size": 8}


def test_config_of_another_model(tmp_path: Path) -> None:
    touch(tmp_path, "model.safetensors")
    config = write_json(tmp_path / "config.json", {"_class_name": "HunyuanVideoTransformer3DModel"})
    with pytest.raises(FramePackError) as error:
        find_component(tmp_path, "dit")
    assert str(error.value) == (
        f"{config} is the config of HunyuanVideoTransformer3DModel, not of a FramePack DiT: "
        "give the right folder, or move the file into a folder of its own"
    )


# --- tokenizers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("component", "name", "files"),
    [
        ("llama", "tokenizer", ["tokenizer.json"]),
        ("clip", "tokenizer_2", ["vocab.json", "merges.txt"]),
    ],
)
@pytest.mark.parametrize("place", ["snapshot", "encoders"])
def test_tokenizer_above_or_beside(
    tmp_path: Path, component, name: str, files: list[str], place: str
) -> None:
    [weights] = touch(tmp_path / "encoders", "one.safetensors")
    folder = (tmp_path if place == "snapshot" else tmp_path / "encoders") / name
    touch(folder, "tokenizer_config.json")
    assert find_component(weights, component).tokenizer is None
    touch(folder, *files)
    assert find_component(weights, component).tokenizer == folder


def test_tokenizer_in_the_model_folder(tmp_path: Path) -> None:
    touch(tmp_path, "model.safetensors", "tokenizer.json")
    assert find_component(tmp_path, "llama").tokenizer is None
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    assert find_component(tmp_path, "llama").tokenizer == tmp_path


# --- snapshots -----------------------------------------------------------------------------------


def test_snapshot(tmp_path: Path) -> None:
    names = ["transformer", "vae", "text_encoder", "text_encoder_2", "image_encoder"]
    for name in names:
        (tmp_path / name).mkdir()
    found = find_snapshot(tmp_path)
    assert [path.name for path in found.values()] == names
    with pytest.raises(FramePackError) as error:
        find_snapshot(tmp_path, f1=True)
    assert str(error.value) == (
        f"{tmp_path} is not a complete snapshot: it has no folder transformer_f1; a snapshot "
        "holds transformer_f1, vae, text_encoder, text_encoder_2, image_encoder"
    )
    (tmp_path / "transformer_f1").mkdir()
    assert find_snapshot(tmp_path, f1=True)["dit"] == tmp_path / "transformer_f1"
