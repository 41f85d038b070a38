"""Decoding a section of full size under a limit on GPU memory, with random weights.

python tests/bench/decode_small_gpu.py [--limit 6] [--side 640]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from framepack_core.headless.models import Models
from framepack_core.models.vae import AutoencoderKL, VAEConfig
from framepack_core.sampling.decode import decode_sections
from framepack_core.weights.files import save_weights

GIB, WINDOW, SECTIONS = 2**30, 9, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=float, default=6.0, metavar="GIB")
    parser.add_argument("--side", type=int, default=640, help="of the video")
    args = parser.parse_args()
    device, latent = torch.device("cuda", 0), args.side // 8
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vae.safetensors"
        shapes = AutoencoderKL(VAEConfig(), device="meta").state_dict()
        state = {n: 0.02 * torch.randn(x.shape).half() for n, x in shapes.items()}
        save_weights(path, state, {})
        latents = torch.randn(1, 16, 1 + WINDOW * SECTIONS, latent, latent)
        total = torch.cuda.get_device_properties(device).total_memory
        for limit in (None, args.limit):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.set_per_process_memory_fraction(limit * GIB / total if limit else 1.0)
            models = Models({"vae": path}, device, torch.bfloat16)
            start, frames = time.perf_counter(), 0
            with models.decoder() as decode:
                for clip in decode_sections(decode, latents, WINDOW):
                    assert clip.isfinite().all()
                    frames += clip.shape[2]
            print(
                f"{'no limit' if limit is None else f'{limit:g} GiB'}: {frames} frames of "
                f"{args.side}x{args.side} in {time.perf_counter() - start:.1f} s, at most "
                f"{torch.cuda.max_memory_allocated() / GIB:.2f} GiB, {decode.memory}",
                flush=True,
            )


if __name__ == "__main__":
    main()
