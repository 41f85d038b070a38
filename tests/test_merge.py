"""Merged models on disk: what is in them, that they load back, and the memory it takes."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lora_files import KOHYA, NATIVE, SHAPES, LoraFile, output, underscored
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import CONFIG, tiny_dit
from torch import Tensor

from framepack_core.lora.apply import LoraUse, MergeLoras
from framepack_core.lora.files import load_lora
from framepack_core.models.build import dit_shapes, dit_state_of, load_dit
from framepack_core.models.dit import DiTConfig
from framepack_core.models.merge import save_dit, write_dit
from framepack_core.runtime.errors import FramePackError
from framepack_core.weights.files import save_weights
from framepack_core.weights.formats import is_block_linear
from framepack_core.weights.fp8 import FP8

FILE = LoraFile.make(NATIVE, underscored("lora_unet_"), KOHYA)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    base = {name: x.bfloat16() for name, x in tiny_dit().state_dict().items()}
    save_weights(folder / "base.safetensors", base)
    (folder / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    return folder


@pytest.fixture
def uses(tmp_path: Path) -> list[LoraUse]:
    return [LoraUse(load_lora(FILE.save(tmp_path), SHAPES), 0.25)]


def base_of(source: Path) -> dict[str, Tensor]:
    return load_file(source / "base.safetensors")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_one_file(tmp_path: Path, source: Path, uses: list[LoraUse], dtype: torch.dtype) -> None:
    path = tmp_path / "merged.safetensors"
    seen = []
    paths = save_dit(source, path, uses, dtype=dtype, on_tensor=lambda n, of: seen.append((n, of)))
    assert paths == [path] and seen == [(n + 1, len(SHAPES)) for n in range(len(SHAPES))]
    merge, state = MergeLoras(uses), load_file(path)
    assert set(state) == set(SHAPES)
    for name, x in base_of(source).items():
        assert torch.equal(state[name], merge(name, x.to(dtype)))
    model = load_dit(source, dtype=dtype, transform=merge)
    again = load_dit(path, dtype=dtype)  # its config is in the file
    for name, x in model.state_dict().items():
        if not name.startswith("proj_out."):  # merged in fp32 where it stays in fp32
            assert torch.equal(again.state_dict()[name], x)


def test_metadata_says_what_went_in(tmp_path: Path, source: Path, uses: list[LoraUse]) -> None:
    save_dit(source, tmp_path / "m.safetensors", uses)
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        metadata = file.metadata()
    digest = hashlib.sha256((tmp_path / "lora.safetensors").read_bytes()).hexdigest()
    assert json.loads(metadata["framepack_merged"]) == {
        "base": "base",
        "loras": [
            {
                "file": "lora.safetensors",
                "sha256": digest,
                "strength": 0.25,
                "modules": len(NATIVE),
            }
        ],
    }
    assert metadata["format"] == "pt"
    assert json.loads(metadata["config"])["num_single_layers"] == CONFIG.num_single_layers


def test_equal_input_gives_equal_bytes(tmp_path: Path, source: Path, uses: list[LoraUse]) -> None:
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for path in (a, b):
        save_dit(source, path, uses, precision="fp8_scaled")
    assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("precision", ["fp8", "fp8_scaled"])
def test_fp8(tmp_path: Path, source: Path, uses: list[LoraUse], precision: str) -> None:
    path = tmp_path / "m.safetensors"
    save_dit(source, path, uses, precision=precision)
    state = load_file(path)
    assert {name for name, x in state.items() if x.dtype in FP8} == set(
        filter(is_block_linear, state)
    )
    scales = {name for name in state if name.endswith(".scale_weight")}
    assert len(scales) == (
        len(list(filter(is_block_linear, SHAPES))) if "scaled" in precision else 0
    )
    loading = load_dit(source, precision=precision, transform=MergeLoras(uses))
    saved = load_dit(path)
    for name, x in saved.state_dict().items():
        if not name.startswith("proj_out."):
            assert torch.equal(x.float(), loading.state_dict()[name].float())


def test_without_loras_it_converts(tmp_path: Path, source: Path) -> None:
    save_dit(source, tmp_path / "m.safetensors")
    state = load_file(tmp_path / "m.safetensors")
    assert all(torch.equal(state[name], x) for name, x in base_of(source).items())


def test_an_fp8_file_merged_to_bf16(tmp_path: Path, source: Path, uses: list[LoraUse]) -> None:
    save_dit(source, tmp_path / "fp8.safetensors", precision="fp8_scaled")
    save_dit(tmp_path / "fp8.safetensors", tmp_path / "m.safetensors", uses)
    merge, exact = MergeLoras(uses), base_of(source)
    merged = load_file(tmp_path / "m.safetensors")
    assert merged.keys() == exact.keys()
    for name, x in merged.items():
        assert x.dtype == torch.bfloat16
        expected = merge(name, exact[name].float())
        assert (x - expected).norm() < 0.04 * expected.norm()


@pytest.mark.parametrize("precision", ["full", "fp8_scaled"])
def test_shards(tmp_path: Path, source: Path, uses: list[LoraUse], precision: str) -> None:
    folder = tmp_path / "out"
    limit = 100_000
    paths = save_dit(source, folder, uses, precision=precision, max_shard_bytes=limit)
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2 and sorted(paths) == sorted(folder.iterdir())
    assert paths[-1].name == "diffusion_pytorch_model.safetensors.index.json"
    index = json.loads(paths[-1].read_text())
    total = 0
    for shard in shards:
        state = load_file(shard)
        size = sum(x.nbytes for x in state.values())
        assert size < 1.1 * limit or len(state) == 1
        total += size
        assert {index["weight_map"][name] for name in state} == {shard.name}
        for name in (name for name in state if name.endswith(".scale_weight")):
            assert name.replace("scale_weight", "weight") in state
    assert index["metadata"]["total_size"] == total
    one = tmp_path / "one.safetensors"
    save_dit(source, one, uses, precision=precision)
    whole = load_dit(one).state_dict()
    for given in (folder, shards[1], paths[-1]):
        state = load_dit(given).state_dict()
        assert all(torch.equal(state[n].float(), x.float()) for n, x in whole.items())


def test_the_merged_model_answers_as_the_lora_beside_the_base(
    tmp_path: Path, source: Path, uses
) -> None:
    save_dit(source, tmp_path / "m.safetensors", uses, dtype=torch.float32)
    beside = load_dit(source, dtype=torch.float32, transform=MergeLoras(uses))
    merged = load_dit(tmp_path / "m.safetensors", dtype=torch.float32)
    torch.testing.assert_close(output(merged), output(beside), rtol=1e-4, atol=1e-4)


class Patched:
    """What a host's own merged weights look like to the writer."""

    def __init__(self, merge: MergeLoras) -> None:
        self.base, self.merge = tiny_dit().state_dict(), merge

    def encoding(self, name: str) -> None:
        """None of its weights is quantised."""

    def load(self, name: str, dtype: torch.dtype, *_: object, **__: object) -> Tensor:
        return self.merge(name, self.base[name]).to(dtype)


@pytest.mark.parametrize("precision", ["full", "fp8_scaled"])
def test_weights_of_a_host(tmp_path: Path, uses: list[LoraUse], precision: str) -> None:
    state = dit_state_of(
        CONFIG, Patched(MergeLoras(uses)), dtype=torch.float32, precision=precision
    )
    write_dit(CONFIG, state, tmp_path / "m.safetensors", {"by": "a host"})
    save_weights(tmp_path / "base.safetensors", tiny_dit().state_dict())
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    save_dit(
        tmp_path / "base.safetensors",
        tmp_path / "same.safetensors",
        uses,
        dtype=torch.float32,
        precision=precision,
    )
    found, expected = (load_file(tmp_path / f"{n}.safetensors") for n in ("m", "same"))
    assert set(found) == set(expected)
    assert all(torch.equal(found[name].float(), x.float()) for name, x in expected.items())


# --- refused --------------------------------------------------------------------------------------


def test_names_that_cannot_be(tmp_path: Path, source: Path) -> None:
    with pytest.raises(FramePackError, match=r"merged\.pt must be named \.safetensors; or ask for"):
        save_dit(source, tmp_path / "merged.pt")
    for destination, limit in ((source / "base.safetensors", None), (source, 1000)):
        before = (source / "base.safetensors").read_bytes()
        with pytest.raises(FramePackError, match=r"is (there already|not empty): choose a"):
            save_dit(source, destination, max_shard_bytes=limit)
        assert (source / "base.safetensors").read_bytes() == before
        assert len(list(source.iterdir())) == 2


def test_too_little_space(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil._ntuple_diskusage(10**9, 10**9, 1000)
    monkeypatch.setattr("framepack_core.models.merge.shutil.disk_usage", lambda _: usage)
    with pytest.raises(FramePackError, match=r"needs .* kB but the disk has 1\.0 kB free"):
        save_dit(source, tmp_path / "new" / "m.safetensors")
    assert not (tmp_path / "new").exists()


def test_an_interrupted_merge_leaves_nothing(tmp_path: Path, source: Path) -> None:
    def stop(number: int, of: int) -> None:
        if number == of // 2:
            raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        save_dit(source, tmp_path / "out" / "m.safetensors", on_tensor=stop)
    assert list((tmp_path / "out").iterdir()) == []


# --- memory ---------------------------------------------------------------------------------------

MEMORY = """
import json, sys, psutil, torch
from pathlib import Path
from framepack_core.models.build import dit_config, dit_shapes
from framepack_core.models.merge import save_dit, write_dit
from framepack_core.lora.files import load_lora
from framepack_core.lora.apply import LoraUse
folder = Path(sys.argv[1])
torch.set_num_threads(1)
shapes = dit_shapes(dit_config(folder / "base"))
uses = [LoraUse(load_lora(folder / "lora.safetensors", shapes))]
process = psutil.Process()
start, peaks = process.memory_info().rss, {}
for precision in ("full", "fp8_scaled"):
    def watch(number, of):
        used = process.memory_info().rss - start
        peaks[precision] = max(peaks.get(precision, 0), used)
    path = folder / f"{precision}.safetensors"
    save_dit(folder / "base", path, uses, precision=precision, on_tensor=watch)
print(json.dumps(peaks))
"""


@pytest.mark.slow
def test_memory_of_merging(tmp_path: Path) -> None:
    """A tensor and its fp32 copies at a time, whatever the size of the model."""
    wide = CONFIG.to_dict() | {"num_attention_heads": 64, "num_layers": 2, "num_single_layers": 3}
    shapes = dit_shapes(DiTConfig.from_dict(wide))
    (tmp_path / "base").mkdir()
    weights = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    save_weights(tmp_path / "base" / "m.safetensors", weights)
    (tmp_path / "base" / "config.json").write_text(json.dumps(wide))
    size = sum(x.nbytes for x in weights.values())
    largest = max(x.numel() for x in weights.values())
    del weights
    tensors = {}
    for name, shape in shapes.items():
        if is_block_linear(name):
            base = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            tensors[f"{base}.lora_down.weight"] = torch.ones(4, shape[1])
            tensors[f"{base}.lora_up.weight"] = torch.ones(shape[0], 4)
    save_weights(tmp_path / "lora.safetensors", tensors)
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peaks, allowed = json.loads(done.stdout), 7 * 4 * largest + 20e6
    assert size > 300e6 and allowed < 0.65 * size
    assert all(peak < allowed for peak in peaks.values()), peaks
