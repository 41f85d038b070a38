"""Train Toy World: the autoencoder, then the original DiT, then F1 from it. One GPU, minutes a run.

    python tests/toyworld pretrain vae --minutes 5 --out STATE
    python tests/toyworld pretrain dit --minutes 4 --vae STATE --out STATE
    python tests/toyworld pretrain dit --mode f1 --minutes 3 --vae STATE \\
        --resume STATE --out STATE
    python tests/toyworld pretrain export --state STATE --snapshot SNAPSHOT

`--resume STATE` continues from the weights and averages of an earlier run, with fresh moments and a
short warm-up: so a run's state is small, two files of less than 16 MiB a model. F1 without a state
of its own starts from the original model's. Text and image encoders are those of the snapshot, and
stay as they are: retrain the DiTs when they change.

Log of what was tried
- A probe before this code (AdamW 1.5e-3, batch 512, four minutes): 28.9 dB, motions 59 to 81 %.
- On a CPU, autoencoder, two five-frame clips a step: Muon reaches loss 1.0 after 130 steps where
  AdamW at the same 2e-3 has 2.7; Muon at 6e-3 is worse than at 2e-3 (0.75 against 0.60 after 300).
- On a CPU, DiT, 24 samples a step, loss after 150 steps: AdamW 0.29 at 1.5e-3 and above 0.30 at
  4e-3; Muon 0.31 at 2e-3, 0.21 at 5e-3, 0.16 at 1e-2 and 2e-2. Higher peaks are still to be tried
  on a GPU.
- Autoencoder on an H100, 4 minutes at 57 to 61 ms a step, both halves of the optimiser at 3e-3:
  40.5 dB on 73 frames, 40.3 dB on 145, as many as training never saw at once. cuDNN needs 14 s to
  choose its kernels for the first step, 9 s for clips of 73 frames.
- The first DiT run died in cuDNN's attention backward under a key mask; attention avoids it now.
- Original DiT, 6.6 minutes, 17,360 steps of 22.8 ms as one CUDA graph (22,000 samples a second),
  loss 0.0137: every measure at 100 %.
- F1, 2 minutes from the original's weights: loss 0.19 at once, 0.0105 at the end, 98 to 100 %.
- Untrained but there: one frame at index 1, 3, 5, 9 moves the prompted way (0.4, 2, 6, 17 px for
  "moves right"; less far without the 2x and 4x blanks). With all paddings 0 every section follows
  its own prompt, but the first three frames after a cut are blurred: the autoencoder has only seen
  motion without cuts.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from framepack_core.models.build import load_image_encoder, load_text_encoders
from framepack_core.models.dit import FramePackDiT
from framepack_core.models.vae import AutoencoderKL, VAEConfig
from framepack_core.runtime.device import default_device, parse_device
from framepack_core.runtime.errors import FramePackError
from framepack_core.sampling.sections import Mode
from framepack_core.toyworld import SNAPSHOT
from framepack_core.weights.layouts import F1_FOLDER, FOLDERS

from . import pretrain_dit, pretrain_vae
from .evaluate import Toy, evaluate, vae_psnr
from .make import write_model
from .pretrain_loop import Budget, load_state, state_file

DIT_FOLDERS: dict[Mode, str] = {"framepack": FOLDERS["dit"], "f1": F1_FOLDER}
SHARDS = 2  # as the released DiTs: so the loaders are tried on shards too

CARD = """\
---
license: apache-2.0
pipeline_tag: image-to-video
---

# Toy World

The FramePack architecture at toy size, trained from scratch on a rendered world: a complete
snapshot (two DiTs, video autoencoder, text and image encoders, tokenizers) in the layout of the
released models. It runs on a CPU in seconds and really follows its prompts, so it shows whether an
install works, and tests judge features by it.

## What it knows

64x64 pixels at 30 fps: one shape (circle, square, triangle, cross) in one colour (red, yellow,
green, cyan, blue, magenta) on a plain, gradient, checkered or striped background. The start image
shows shape and background; the prompt names them and says how the shape moves, for instance "a red
circle moves right": left, right, up, down, in a circle ("goes around"), grows, shrinks, stands
still. A shape slows down before the edge of the frame and stays inside. `transformer/` (original,
last section first) also goes to a given end image; `transformer_f1/` works forward in time.

It knows nothing else: other pictures, sizes and words give nonsense.

## How it was made

By `tests/toyworld/pretrain.py` on one GPU, with this repository's own model, packing and
loss, from clips of `framepack_core/toyworld/render.py`. The text and image encoders are random and
were never trained; the DiTs learned to read them. Weights are bf16 averages (EMA).

## Measured

On seeds that training never saw, by `python tests/toyworld evaluate`:

```
{table}
```
"""


def train_vae(args: argparse.Namespace, device: torch.device) -> None:
    """Train the autoencoder and print its PSNR."""
    settings = pretrain_vae.SMOKE if args.smoke else pretrain_vae.Settings()
    settings = _override(settings, args, ("clips", "peak"))
    budget = Budget(args.minutes, args.max_steps)
    with fast_convolutions():
        vae = pretrain_vae.run(budget, device, args.out, args.resume, settings, args.seed)
    toy = _toy(args.snapshot, vae, {}, device)
    for sections in (1, 2, 4) if args.cases else ():
        psnr = vae_psnr(toy, args.cases, sections)
        print(f"PSNR of {args.cases} held-out clips of {36 * sections + 1} frames: {psnr:.2f} dB")


def train_dit(args: argparse.Namespace, device: torch.device) -> None:
    """Train one of the DiTs and print what its averaged weights can do."""
    vae = load_vae(args.vae, device)
    settings = pretrain_dit.SMOKE if args.smoke else pretrain_dit.Settings()
    settings = _override(settings, args, ("clips", "peak", "compile"))
    budget = Budget(args.minutes, args.max_steps)
    places = (vae, args.snapshot, args.out, args.resume)
    with fast_convolutions():
        dit = pretrain_dit.run(args.mode, budget, device, *places, settings, args.seed)
    toy = _toy(args.snapshot, vae, {args.mode: dit}, device)
    for measure in evaluate(toy, args.cases, [args.mode]) if args.cases else ():
        print(measure, flush=True)


def export(args: argparse.Namespace, device: torch.device) -> None:
    """Put the averaged weights of a state, as bf16, in place of a snapshot's VAE and DiTs."""
    weights, info = load_state(args.state, "vae", "final")
    config = {"_class_name": "AutoencoderKLHunyuanVideo", **info["config"]}
    _replace_model(args.snapshot / FOLDERS["vae"], config, weights)
    for mode, folder in DIT_FOLDERS.items():
        if not state_file(args.state, f"dit-{mode}", "ema").is_file():
            print(f"no state of {mode}: its transformer stays as it is")
            continue
        weights, info = load_state(args.state, f"dit-{mode}", "ema")
        config = {"_class_name": "HunyuanVideoTransformer3DModelPacked", **info["config"]}
        _replace_model(args.snapshot / folder, config, weights, SHARDS)
    table = args.table.read_text(encoding="utf-8").strip() if args.table else "not measured yet"
    (args.snapshot / "README.md").write_text(CARD.format(table=table), encoding="utf-8")
    size = sum(path.stat().st_size for path in args.snapshot.rglob("*") if path.is_file())
    print(f"{args.snapshot}: {size / 1e6:.2f} MB")


def fast_convolutions() -> AbstractContextManager[None]:
    """Let cuDNN time its kernels for each shape, which pays where shapes repeat."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True)


def load_vae(state: Path, device: torch.device) -> AutoencoderKL:
    """The finished autoencoder of a training state, fp32."""
    weights, info = load_state(state, "vae", "final")
    model = AutoencoderKL(VAEConfig.from_dict(info["config"]), device=device)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def _replace_model(
    folder: Path, config: dict[str, object], weights: dict[str, Tensor], shards: int = 1
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    write_model(folder, "diffusion_pytorch_model", config, weights, shards)


def _toy(
    snapshot: Path, vae: AutoencoderKL, dits: dict[Mode, FramePackDiT], device: torch.device
) -> Toy:
    """Models just trained, in the dtype they are shipped in, with the snapshot's encoders."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    placed = {"dtype": dtype, "device": device}
    shipped = AutoencoderKL(vae.config, **placed)
    shipped.load_state_dict(vae.state_dict())
    return Toy(
        dits={mode: _shipped(dit, **placed) for mode, dit in dits.items()},
        vae=shipped.eval(),
        text_encoders=load_text_encoders(
            snapshot / FOLDERS["llama"], snapshot / FOLDERS["clip"], **placed
        ),
        image_encoder=load_image_encoder(snapshot / FOLDERS["image_encoder"], **placed),
        **placed,
    )


def _shipped(dit: FramePackDiT, dtype: torch.dtype, device: torch.device) -> FramePackDiT:
    model = FramePackDiT(dit.config, dtype=dtype, device=device)
    model.load_state_dict(dit.state_dict())
    return model.eval()


def _override(settings, args: argparse.Namespace, names: Sequence[str]):
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return replace(settings, **given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=str)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in (("vae", train_vae), ("dit", train_dit)):
        command = commands.add_parser(name, help=function.__doc__.splitlines()[0])
        command.set_defaults(run=function)
        command.add_argument("--minutes", type=float, required=True, help="of training proper")
        command.add_argument("--max-steps", type=int, help="stop by steps instead")
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--resume", type=Path, help="a folder that an earlier run wrote")
        command.add_argument("--snapshot", type=Path, default=SNAPSHOT, help="for its encoders")
        command.add_argument("--seed", type=int, default=0, help="another one for another run")
        command.add_argument("--clips", type=int, help="kept in memory")
        command.add_argument("--peak", type=float, help="highest learning rate")
        command.add_argument(
            "--cases", type=int, default=64, help="of the evaluation at the end; 0 none"
        )
        command.add_argument("--smoke", action="store_true", help="tiny sizes")
    dit = commands.choices["dit"]
    dit.add_argument("--mode", choices=get_args(Mode), default="framepack")
    dit.add_argument("--vae", type=Path, required=True, help="the folder of a VAE's state")
    dit.add_argument("--compile", action=argparse.BooleanOptionalAction)
    command = commands.add_parser("export", help=export.__doc__.splitlines()[0])
    command.set_defaults(run=export)
    command.add_argument("--state", type=Path, required=True)
    command.add_argument("--snapshot", type=Path, required=True)
    command.add_argument("--table", type=Path, help="what evaluate printed, for the model card")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = _parser()
    args = parser.parse_args(argv)
    torch.set_float32_matmul_precision("high")
    try:
        device = parse_device(args.device) if args.device else default_device()
        args.run(args, device)
    except FramePackError as error:
        parser.exit(2, f"error: {error}\n")
