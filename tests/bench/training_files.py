"""The files that benches of training share: weights of random numbers and one cached section.

    python tests/bench/training_files.py DIR            full size, 26 GB
    python tests/bench/training_files.py DIR --tiny     for trying the benches on a CPU

musubi-tuner's trainer reads the same files, so that both train the same model on the same section.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from framepack_core.models.dit import DiTConfig, FramePackDiT
from framepack_core.models.prompt import TextCondition
from framepack_core.runtime.device import default_device
from framepack_core.training.batches import Sample
from framepack_core.training.cache import section_tensors, text_tensors
from framepack_core.training.cache_files import IMAGE, save_latent_cache, save_text_cache
from framepack_core.weights.files import save_weights

WORDS, IMAGE_TOKENS = 128, 729
DIT, SIZE = "framepack.safetensors", "size.json"
LATENTS, TEXT = "noise_00000-037-000_{0:04d}x{0:04d}_fp.safetensors", "noise_fp_te.safetensors"
TINY = DiTConfig(
    num_attention_heads=2,
    attention_head_dim=16,
    num_layers=2,
    num_single_layers=2,
    num_refiner_layers=1,
    text_embed_dim=32,
    pooled_projection_dim=16,
    image_proj_dim=24,
    rope_axes_dim=(4, 6, 6),
)


@dataclass(frozen=True)
class Size:
    """How large a model and its clips are."""

    config: DiTConfig
    side: int
    window: int
    dtype: torch.dtype


FULL_SIZE = Size(DiTConfig(), side=640, window=9, dtype=torch.bfloat16)
TINY_SIZE = Size(TINY, side=64, window=2, dtype=torch.float32)


def size_of(folder: Path) -> Size:
    """The size that a folder was made for."""
    return TINY_SIZE if json.loads((folder / SIZE).read_text())["tiny"] else FULL_SIZE


def sample_of(folder: Path) -> Sample:
    """The cached section of a folder."""
    latents = folder / LATENTS.format(size_of(folder).side)
    return Sample(Path("noise"), latents, folder / TEXT, folder / TEXT)


def make_weights(size: Size, path: Path) -> None:
    """Small random numbers, so that nothing overflows in a model that was never trained."""
    device = default_device()
    shapes = FramePackDiT(size.config, device="meta").state_dict()
    state = {
        name: (0.02 * torch.randn(x.shape, device=device, dtype=size.dtype)).cpu()
        for name, x in shapes.items()
    }
    save_weights(path, state, {"config": json.dumps(size.config.to_dict())})


def make_sample(size: Size, folder: Path) -> None:
    """One section of noise with a caption of noise."""
    config, latent = size.config, size.side // 8
    condition = TextCondition(
        torch.randn(1, WORDS, config.text_embed_dim),
        torch.randn(1, config.pooled_projection_dim),
    )
    save_text_cache(folder / TEXT, text_tensors(condition, "noise"), "noise", "")
    latents = torch.randn(1, 16, 1 + size.window, latent, latent).half()
    [(_, tensors)] = section_tensors("framepack", latents, size.window)
    tensors[IMAGE] = torch.randn(IMAGE_TOKENS, config.image_proj_dim).half()
    about = {"size": (size.side, size.side), "digest": "", "mode": "framepack"}
    frames = 1 + 4 * size.window
    save_latent_cache(folder / LATENTS.format(size.side), tensors, **about, frame_count=frames)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    size = TINY_SIZE if args.tiny else FULL_SIZE
    torch.manual_seed(0)
    args.folder.mkdir(parents=True, exist_ok=True)
    make_weights(size, args.folder / DIT)
    make_sample(size, args.folder)
    (args.folder / SIZE).write_text(json.dumps({"tiny": args.tiny}))


if __name__ == "__main__":
    main()
