"""musubi-tuner's FramePack documentation, pasted: its command lines and files.

What a user changes is changed: the program's path, the placeholders of paths, and behind each
command what makes it small. The built-in model takes the place of the released ones.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from cli_runs import make_clip, picture
from safetensors.torch import load_file

from framepack_core.cli import main
from framepack_core.runtime.video import read_video
from framepack_core.toyworld import OPPOSITE_LORA, SNAPSHOT
from framepack_core.training.cache_files import cached_mode
from framepack_core.weights.files import open_weights

ROOT = Path(__file__).resolve().parents[1]
PLACES = {
    "path/to/dit_model": SNAPSHOT
    / "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
    "path/to/vae_model.safetensors": SNAPSHOT / "vae/diffusion_pytorch_model.safetensors",
    "path/to/text_encoder1": SNAPSHOT / "text_encoder/model-00001-of-00002.safetensors",
    "path/to/text_encoder2": SNAPSHOT / "text_encoder_2/model.safetensors",
    "path/to/image_encoder_model.safetensors": SNAPSHOT / "image_encoder/model.safetensors",
    "path/to/lora.safetensors": OPPOSITE_LORA,
    "path/to/toml": "data.toml",
    "path/to/start_image.jpg": "start.png",
    "path/to/save/dir": "out",
    "path/to/output_dir": "out",
    "output_directory": "out",
    "./output": "out",
    "path/to/ckpts/hunyuan-video-t2v-720p/vae/pytorch_model.pt": "vae/pytorch_model.pt",
    "path/to/ckpts/text_encoder_2": SNAPSHOT / "text_encoder_2",
    "path/to/ckpts/text_encoder": SNAPSHOT / "text_encoder",
    "/path/to/prompt_file.txt": "prompt_file.txt",
}
MODELS = """
    --dit path/to/dit_model --vae path/to/vae_model.safetensors
    --text_encoder1 path/to/text_encoder1 --text_encoder2 path/to/text_encoder2
    --image_encoder path/to/image_encoder_model.safetensors
"""
DATA = """\
[general]
resolution = [32, 32]
caption_extension = ".txt"
batch_size = 1
enable_bucket = true

[[datasets]]
video_directory = "clips"
cache_directory = "cache"
frame_extraction = "full"
max_frames = 10000
fp_latent_window_size = 1
"""
PROMPTS = """\
A beautiful sunset over mountains --w 832 --h 480 --f 5 --d 42 --s 20 --i path/to/start_image.jpg
A busy city street at night --w 480 --h 832 --i path/to/another_start.jpg
"""
SAMPLES = """\
# prompt 1: for generating a cat video
A cat walks on the grass, realistic style. --w 640 --h 480 --f 25 --d 1 --s 20

# prompt 2: for generating a dog image
A dog runs on the beach, realistic style. --w 960 --h 544 --f 1 --d 2 --s 20
"""
SMALL_FILE = {"832": "48", "480": "32", "640": "48", "960": "48", "544": "32"}
SHORT_FILE = {"--s 20": "--s 1", "--f 5": "--f 0.2", "--f 25": "--f 4"}
SMALL_VIDEO = "--video_size 32 48 --latent_window_size 1 --infer_steps 1"

CACHE_LATENTS = """
    python src/musubi_tuner/fpack_cache_latents.py \\
    --dataset_config path/to/toml \\
    --vae path/to/vae_model.safetensors \\
    --image_encoder path/to/image_encoder_model.safetensors \\
    --vae_chunk_size 32 --vae_spatial_tile_sample_min_size 128
"""
CACHE_TEXT = """
    python src/musubi_tuner/fpack_cache_text_encoder_outputs.py \\
    --dataset_config path/to/toml \\
    --text_encoder1 path/to/text_encoder1 \\
    --text_encoder2 path/to/text_encoder2 \\
    --batch_size 16
"""
TRAIN = f"""
    accelerate launch --num_cpu_threads_per_process 1 --mixed_precision bf16 \\
    src/musubi_tuner/fpack_train_network.py {MODELS} \\
    --dataset_config path/to/toml \\
    --sdpa --mixed_precision bf16 \\
    --optimizer_type adamw8bit --learning_rate 2e-4 --gradient_checkpointing \\
    --timestep_sampling shift --weighting_scheme none --discrete_flow_shift 3.0 \\
    --max_data_loader_n_workers 2 --persistent_data_loader_workers \\
    --network_module networks.lora_framepack --network_dim 32 \\
    --max_train_epochs 16 --save_every_n_epochs 1 --seed 42 \\
    --output_dir path/to/output_dir --output_name name-of-lora
"""
SAMPLING = """
    --vae path/to/ckpts/hunyuan-video-t2v-720p/vae/pytorch_model.pt
    --vae_chunk_size 32 --vae_spatial_tile_sample_min_size 128
    --text_encoder1 path/to/ckpts/text_encoder
    --text_encoder2 path/to/ckpts/text_encoder_2
    --sample_prompts /path/to/prompt_file.txt
    --sample_every_n_epochs 1 --sample_every_n_steps 1000 --sample_at_first
"""
GENERATE = "python src/musubi_tuner/fpack_generate_video.py"
ONE_VIDEO = f"""
    {GENERATE} {MODELS} --image_path path/to/start_image.jpg
    --prompt "A cat walks on the grass, realistic style."
    --video_size 512 768 --video_seconds 5 --fps 30 --infer_steps 25
    --attn_mode sdpa --fp8_scaled
    --vae_chunk_size 32 --vae_spatial_tile_sample_min_size 128
    --save_path path/to/save/dir --output_type both
    --seed 1234 --lora_multiplier 1.0 --lora_weight path/to/lora.safetensors
"""
SECTIONS = f"""
    {GENERATE}
    --prompt "0:A dog runs towards a thrown ball, catches it, and runs back;;;1:The dog catches the
    ball and then runs back towards the viewer;;;2:The dog runs back towards the viewer holding the
    ball"
    --image_path "0:./img_start_running.png;;;1:./img_catching.png;;;2:./img_running_back.png"
    --end_image_path ./img_returned.png --save_path ./output {MODELS}
"""


@dataclass(frozen=True)
class Row:
    """A command of the documents: what is appended to it, its result, and what it has to say."""

    command: str
    more: str
    files: tuple[str, ...]
    says: tuple[str, ...] = ()
    stdin: str = ""


HUB = "FramePack/hf_download/hub"
F1 = shlex.quote(str(SNAPSHOT / "transformer_f1"))
VIDEO, BOTH = ("*.mp4",), ("*.mp4", "*_latent.safetensors")
IGNORED = "has no effect with --f1"
ROWS = {
    "one video": Row(ONE_VIDEO, f"{SMALL_VIDEO} --video_seconds 0.3", BOTH),
    "F1": Row(
        f"{ONE_VIDEO} --f1 --latent_paddings 0,0,0,0 --end_image_path path/to/start_image.jpg",
        f"{SMALL_VIDEO} --video_sections 1 --dit {F1} --output_type latent",
        ("*_latent.safetensors",),
        (f"--latent_paddings {IGNORED}", f"--end_image_path {IGNORED}"),
    ),
    "memory and guidance": Row(
        f"{ONE_VIDEO} --fp8_llm --embedded_cfg_scale 10.0 --guidance_scale 1.0 --guidance_rescale 0"
        " --bulk_decode --sample_solver unipc --blocks_to_swap 38 --include_patterns attn"
        " --exclude_patterns single --lycoris --custom_system_prompt 'Describe it.'"
        " --rope_scaling_timestep_threshold 800 --rope_scaling_factor 0.5",
        f"{SMALL_VIDEO} --video_sections 1 --output_type latent_images",
        ("*_latent.safetensors", "*/*_*.png"),
    ),
    "merged": Row(
        f"{ONE_VIDEO} --save_merged_model merged.safetensors",
        "--dtype bf16",
        ("merged.safetensors",),
    ),
    "sections": Row(SECTIONS, SMALL_VIDEO + " --video_sections 3", VIDEO),
    "of a local FramePack": Row(
        ONE_VIDEO,
        f"""{SMALL_VIDEO} --video_sections 1 --output_type latent
        --dit {HUB}/models--lllyasviel--FramePackI2V_HY/snapshots/abc
        --vae {HUB}/models--hunyuanvideo-community--HunyuanVideo/snapshots/abc
        --text_encoder1 {HUB}/models--hunyuanvideo-community--HunyuanVideo/snapshots/abc
        --text_encoder2 {HUB}/models--hunyuanvideo-community--HunyuanVideo/snapshots/abc
        --image_encoder {HUB}/models--lllyasviel--flux_redux_bfl/snapshots/abc""",
        ("*_latent.safetensors",),
    ),
    "a file of prompts": Row(
        f"{GENERATE} --from_file prompts.txt {MODELS} --save_path output_directory",
        f"{SMALL_VIDEO} --video_sections 1",
        ("*.mp4", "*.mp4"),
    ),
    "typed prompts": Row(
        f"{GENERATE} --interactive {MODELS} --save_path output_directory",
        f"{SMALL_VIDEO} --video_sections 1",
        ("*.mp4", "*.mp4"),
        stdin=PROMPTS,
    ),
}


def in_small(text: str) -> str:
    """A prompt file with small numbers and paths that are there."""
    for there, here in SHORT_FILE.items():
        text = text.replace(there, here)
    text = re.sub(r"(?<=--[wh] )\d+", lambda number: SMALL_FILE[number[0]], text)
    text = text.replace("path/to/another_start.jpg", "img_catching.png")
    return text.replace("path/to/start_image.jpg", "start.png")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    names = ("start", "img_start_running", "img_catching", "img_running_back", "img_returned")
    for seed, name in enumerate(names):
        picture(tmp_path / f"{name}.png", seed)
    (tmp_path / "prompts.txt").write_text(f"# two videos\n\n{in_small(PROMPTS)}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def hub(folder: Path) -> None:
    """The models as the official FramePack downloads them."""
    kept = {
        "lllyasviel--FramePackI2V_HY": (SNAPSHOT / "transformer").iterdir(),
        "lllyasviel--flux_redux_bfl": [SNAPSHOT / "image_encoder"],
        "hunyuanvideo-community--HunyuanVideo": [
            SNAPSHOT / name
            for name in ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
        ],
    }
    for name, paths in kept.items():
        snapshot = folder / HUB / f"models--{name}" / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        for path in paths:
            (snapshot / path.name).symlink_to(path)


@pytest.fixture
def clips(folder: Path) -> Path:
    (folder / "clips").mkdir()
    for name, frames in (("a", 5), ("b", 9)):
        make_clip(folder / "clips" / f"{name}.mp4", frames)
        (folder / "clips" / f"{name}.txt").write_text(f"clip {name}")
    (folder / "data.toml").write_text(DATA)
    return folder / "clips"


def pasted(command: str, more: str = "") -> list[str]:
    """The words of a command for `main`: its script by name, and paths that are there."""
    words = shlex.split(command.replace("\\\n", " "))
    first = next(i for i, word in enumerate(words) if word.startswith("src/musubi_tuner/"))
    options = [str(PLACES.get(word, " ".join(word.split()))) for word in words[first + 1 :]]
    return [Path(words[first]).stem, *options, *shlex.split(more), "--device", "cpu"]


def made() -> list[str]:
    """Files of the output folder, and what is in its folders, but for the ledger."""
    found = [path for path in Path().glob("out/**/*") if path.is_file()]
    return sorted(str(path) for path in found if ".ledger" not in path.parts)


@pytest.mark.parametrize("name", ROWS)
def test_a_video(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = ROWS[name]
    monkeypatch.setattr("sys.stdin", io.StringIO(in_small(row.stdin)))
    assert main(pasted(row.command, row.more)) == 0
    errors = capsys.readouterr().err
    assert [line for line in row.says if line not in errors] == []
    for pattern in row.files:
        root = Path() if pattern.startswith("merged") else Path("out")
        assert len(list(root.glob(pattern))) >= row.files.count(pattern)
    assert len([p for p in made() if p.endswith(".mp4")]) == row.files.count("*.mp4")


def test_caching_and_another_mode(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names hold the section; with --f1 and nothing skipped the files are overwritten."""
    assert main(pasted(CACHE_LATENTS)) == 0
    cache = clips.parent / "cache"
    names = [f"{n}-{i:04d}_0032x0032_fp.safetensors" for n, i in
             (("a_00000-005", 0), ("b_00000-009", 0), ("b_00000-009", 1))]  # fmt: skip
    assert sorted(path.name for path in cache.iterdir()) == names
    assert main(pasted(CACHE_TEXT, "--fp8_llm")) == 0
    assert (cache / "a_fp_te.safetensors").is_file()
    assert main(pasted(CACHE_LATENTS, "--f1")) == 0
    assert {cached_mode(cache / name) for name in names} == {"f1"}
    assert main(pasted(CACHE_LATENTS, "--skip_existing")) == 2
    assert "is a cache for the mode f1, not framepack" in capsys.readouterr().err


def test_training_with_samples(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command and the sampling document's options and file; both prompts lack --i there."""
    shutil.copytree(SNAPSHOT / "vae", "vae")
    weights = Path("vae/diffusion_pytorch_model.safetensors")
    torch.save(load_file(weights), "vae/pytorch_model.pt")
    weights.unlink()
    latents = pasted(CACHE_LATENTS, "--vae vae/pytorch_model.pt")
    assert main(latents) == 0 and main(pasted(CACHE_TEXT)) == 0
    file = Path("prompt_file.txt")
    options = shlex.join(str(PLACES.get(word, word)) for word in SAMPLING.split())
    file.write_text(SAMPLES, encoding="utf-8")
    small = f"{options} --max_train_epochs 1 --optimizer_type adamw"
    assert main(pasted(TRAIN, small)) == 0
    assert capsys.readouterr().err.count("has no start image (--i) and is passed over") == 2
    assert made() == [f"out/name-of-lora{end}" for end in ("-log.jsonl", ".safetensors", ".state")]
    lora = open_weights("out/name-of-lora.safetensors")
    about = ("ss_network_dim", "ss_network_alpha", "ss_seed", "ss_max_train_steps")
    assert [lora.metadata[name] for name in about] == ["32", "1.0", "42", "3"]

    lines = in_small(SAMPLES).splitlines()
    file.write_text("\n".join(f"{x} --i start.png" if "--w" in x else x for x in lines))
    more = f"{small} --max_train_epochs 2 --blocks_to_swap 36 --split_attn --output_name again"
    assert main(pasted(TRAIN, f"{more} --fp8 --fp8_scaled --latent_window_size 1")) == 0
    output = capsys.readouterr()
    assert "is passed over" not in output.err
    samples = [
        f"out/sample/again_{step:06d}_{end}"
        for step in (0, 3, 6)
        for end in ("00_1.mp4", "01_2.png")
    ]
    assert [path for path in made() if "sample" in path] == samples
    frames, _ = read_video(Path(samples[0]))
    assert frames.shape == (5, 32, 48, 3)  # 4 asked for, in a whole section
    assert "out/again-000001.safetensors" in made()


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_the_documented_optimizer_asks_for_its_package(
    clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(pasted(CACHE_LATENTS)) == 0 and main(pasted(CACHE_TEXT)) == 0
    assert main(pasted(TRAIN)) == 2
    assert "needs the package bitsandbytes" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("accelerate") is None, reason="accelerate is not installed")
def test_training_under_accelerate(clips: Path) -> None:
    assert main(pasted(CACHE_LATENTS)) == 0 and main(pasted(CACHE_TEXT)) == 0
    launch, _, options = TRAIN.replace("\\\n", " ").partition("src/musubi_tuner/")
    script, *words = pasted(f"src/musubi_tuner/{options}", "--max_train_epochs 1")
    _, _, *given = shlex.split(launch)  # without `accelerate launch`, which may not be on the path
    command = [sys.executable, "-m", "accelerate.commands.launch", *given]
    done = subprocess.run(
        [*command, "-m", "framepack_core.cli", script, *words, "--optimizer_type", "adamw"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "out/name-of-lora.safetensors"
