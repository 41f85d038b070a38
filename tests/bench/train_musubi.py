"""The same measurement of musubi-tuner's own trainer, from a checkout of it.

    python tests/bench/train_musubi.py DIR CHECKOUT --precision full

DIR is of `training_files.py`. Its whole training command runs, with a clock at each update.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from training_files import DIT, size_of

RANK, WARMUP = 32, 2
GIB = 2**30
DATASET = """
[general]
resolution = [{side}, {side}]
caption_extension = ".txt"
batch_size = 1
num_repeats = 64
enable_bucket = true

[[datasets]]
video_directory = "{folder}"
cache_directory = "{folder}"
target_frames = [{frames}]
frame_extraction = "head"
fp_latent_window_size = {window}
"""


def options(args: argparse.Namespace, folder: Path, output: Path) -> list[str]:
    size = size_of(folder)
    dataset = output / "dataset.toml"
    values = {"side": size.side, "window": size.window, "frames": 1 + 4 * size.window}
    dataset.write_text(DATASET.format(folder=folder, **values), encoding="utf-8")
    given = [
        *("--dit", str(folder / DIT), "--dataset_config", str(dataset), "--sdpa"),
        *(
            "--mixed_precision",
            "bf16",
            "--timestep_sampling",
            "shift",
            "--weighting_scheme",
            "none",
        ),
        *("--discrete_flow_shift", "3.0", "--optimizer_type", "adamw", "--learning_rate", "2e-4"),
        *("--network_module", "networks.lora_framepack", "--network_dim", str(RANK)),
        *("--network_alpha", str(RANK), "--max_train_steps", str(WARMUP + args.steps)),
        *("--output_dir", str(output), "--output_name", "bench", "--seed", "42"),
        *("--gradient_checkpointing", "--max_data_loader_n_workers", "2"),
        "--persistent_data_loader_workers",
    ]
    if args.precision == "fp8_scaled":
        given += ["--fp8_base", "--fp8_scaled"]
    if args.swapped:
        given += ["--blocks_to_swap", str(args.swapped)]
    return given


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of training_files.py")
    parser.add_argument("checkout", type=Path, help="of musubi-tuner")
    parser.add_argument("--precision", choices=["full", "fp8_scaled"], default="full")
    parser.add_argument("--swapped", type=int, default=0)
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args()
    sys.path.insert(0, str(args.checkout / "src"))
    from musubi_tuner import fpack_train_network as musubi
    from musubi_tuner.hv_train_network import setup_parser_common

    times: list[float] = []

    class Timed(musubi.FramePackNetworkTrainer):
        def on_train_start(self, *given: Any) -> None:
            torch.cuda.reset_peak_memory_stats()
            super().on_train_start(*given)

        def on_post_optimizer_step(self, *given: Any) -> Any:
            torch.cuda.synchronize()
            times.append(time.perf_counter())
            return super().on_post_optimizer_step(*given)

    with tempfile.TemporaryDirectory() as output:
        parser = musubi.framepack_setup_parser(setup_parser_common())
        given = parser.parse_args(options(args, args.folder.resolve(), Path(output)))
        # What its own main() sets before it trains.
        given.vae_dtype, given.dit_dtype, given.sample_solver = "float16", "bfloat16", "unipc"
        Timed().train(given)
    seconds = (times[-1] - times[WARMUP - 1]) / args.steps
    memory = torch.cuda.max_memory_allocated() / GIB
    print(
        f"musubi-tuner {args.precision:<11} {args.swapped:>2} blocks on the CPU  {seconds:7.3f} s "
        f"a step  {memory:6.2f} GiB"
    )


if __name__ == "__main__":
    main()
