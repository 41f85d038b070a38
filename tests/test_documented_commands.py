"""The command lines of musubi-tuner's FramePack documentation; only paths and sizes differ."""

from __future__ import annotations

import io
import shlex
from pathlib import Path

import pytest
from cli_runs import picture

from framepack_core.cli import main
from framepack_core.toyworld import OPPOSITE_LORA, SNAPSHOT

MODELS = f"""
    --dit {SNAPSHOT}/transformer --vae {SNAPSHOT}/vae --text_encoder1 {SNAPSHOT}/text_encoder
    --text_encoder2 {SNAPSHOT}/text_encoder_2 --image_encoder {SNAPSHOT}/image_encoder
    --save_path out
"""
SMALLER = "--video_size 32 48 --latent_window_size 1 --infer_steps 1 --video_sections 3"
ONE_VIDEO = f"""
    --image_path start.png --prompt "A cat walks on the grass, realistic style."
    --video_size 512 768 --video_seconds 5 --fps 30 --infer_steps 25 --attn_mode sdpa --fp8_scaled
    --vae_chunk_size 32 --vae_spatial_tile_sample_min_size 128 --output_type both --seed 1234
    --lora_multiplier 1.0 --lora_weight {OPPOSITE_LORA}
"""
SECTIONS = """
    --prompt "0:A dog runs towards a thrown ball, catches it, and runs back;;;1:The dog catches the
    ball and then runs back towards the viewer;;;2:The dog runs back towards the viewer"
    --image_path "0:./start.png;;;1:./catching.png;;;2:./back.png" --end_image_path ./end.png
"""
PROMPTS = """\
# one prompt a line

A beautiful sunset over mountains --w 48 --h 32 --f 0.2 --d 42 --s 1 --i start.png
A busy city street at night --w 32 --h 48 --i back.png
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for seed, name in enumerate(("start", "catching", "back", "end")):
        picture(tmp_path / f"{name}.png", seed)
    (tmp_path / "prompts.txt").write_text(PROMPTS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(options: str) -> list[str]:
    """The endings of the files that a command of `framepack generate` makes."""
    words = shlex.split(f"generate {MODELS} {options} {SMALLER} --device cpu")
    assert main([" ".join(word.split()) for word in words]) == 0
    return sorted(path.suffix for path in Path("out").iterdir() if path.is_file())


def test_one_video() -> None:
    assert made(ONE_VIDEO) == [".mp4", ".safetensors"]


def test_a_prompt_and_an_image_for_each_section() -> None:
    assert made(f"{SECTIONS} --latent_paddings 0,0,0") == [".mp4"]


def test_a_file_of_prompts() -> None:
    assert made("--from_file prompts.txt") == [".mp4", ".mp4"]


def test_typed_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(PROMPTS))
    assert made("--interactive") == [".mp4", ".mp4"]
