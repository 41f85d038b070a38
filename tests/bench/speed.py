# ruff: noqa: E402  PyTorch and ComfyUI are set up by what comes before their import
"""How fast the pack is on this machine, beside other implementations: one markdown table.

    python -m tests.bench.speed --rows pass vae train
    python -m tests.bench.speed --comfyui PATH --lllyasviel PATH --musubi_tuner PATH --diffusers
    python -m tests.bench.speed --rows train --train both keep20 --seconds 500
    python -m tests.bench.speed --tiny ...          the same with tiny models, to try it on a CPU

Weights are random numbers at full size (26 GB in --files, kept there for the next time), videos
640x640 in sections of 9 latent frames, prompts 128 tokens. Everything runs in this one process, the
peers on the same weights where they are the same model. PATHs are checkouts; --diffusers needs the
package. A row that fails is told, and the others go on; after --seconds no further one begins.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

if "--comfyui" in sys.argv:  # as ComfyUI sets it, before PyTorch is there
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "backend:cudaMallocAsync")

import torch
from torch import Tensor

BENCH = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCH), str(BENCH.parents[1])]

import speed_comfyui
import speed_peers as peers
from preflight import make_encoders
from speed_timing import Memory, Row, Took, difference, free, synchronize, table, took
from train_full_size import measure
from training_files import (
    DIT,
    FULL_SIZE,
    IMAGE_TOKENS,
    SIZE,
    TINY_SIZE,
    WORDS,
    Size,
    make_sample,
    make_weights,
    sample_of,
)

from framepack_core.headless.execution import Execution
from framepack_core.models.attention import Attention
from framepack_core.models.attention_kernels import AUTO, attention_of
from framepack_core.models.build import load_dit, load_vae
from framepack_core.models.compiling import CompileOptions
from framepack_core.models.dit import DiTInputs, FramePackDiT
from framepack_core.models.offload import place, streamed_blocks
from framepack_core.models.prompt import TextCondition
from framepack_core.runtime.device import default_device
from framepack_core.sampling.flow import FlowDenoiser, Guided
from framepack_core.sampling.generate import SectionTask
from framepack_core.sampling.history import History
from framepack_core.sampling.plan import TIME_SCALE
from framepack_core.sampling.sections import plan_framepack

BOTH = {"keep_attention": True, "compile": True}
# Words and options of trainings by their names for --train.
TRAINING: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("as by default", {}),
    "attention": ("attention outputs kept", {"keep_attention": True}),
    "compile": ("compiled", {"compile": True}),
    "both": ("both", BOTH),
    "offload": (
        "both, inputs of blocks in main memory",
        {**BOTH, "gradient_checkpointing_cpu_offload": True},
    ),
    "keep20": ("both, 20 blocks not checkpointed", {**BOTH, "keep_blocks": 20}),
    "keep40": ("both, 40 blocks not checkpointed", {**BOTH, "keep_blocks": 40}),
}
SWAPPED = (6, 20, 27, 34)  # blocks with which a pass is within 24, 16, 12 and 8 GiB


@dataclass
class Bench:
    """What all rows share: where to compute, the files and the inputs."""

    args: argparse.Namespace
    device: torch.device
    size: Size
    files: Path

    @cached_property
    def inputs(self) -> Inputs:
        return Inputs.random(self.size, self.device)

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The weights on the device."""
        return load_dit(self.files / DIT, dtype=self.size.dtype, device=self.device).state_dict()

    @property
    def weights(self) -> int:
        """Bytes of them."""
        return sum(x.nbytes for x in self.state.values())

    def dit(self, attention: Attention | None = None) -> FramePackDiT:
        """A model on the shared weights."""
        options = {} if attention is None else {"attention": attention}
        dit = FramePackDiT(self.size.config, device="meta", dtype=self.size.dtype, **options)
        dit.load_state_dict(self.state, assign=True)
        return dit.eval().requires_grad_(False)

    def drop_weights(self) -> None:
        self.__dict__.pop("state", None)
        free()

    @cached_property
    def host(self) -> speed_comfyui.Host:
        return speed_comfyui.Host(self)

    @cached_property
    def encoders(self) -> Path:
        return make_encoders(self.files, self.size)


@dataclass(frozen=True)
class Inputs:
    """A middle section of a video: noise to start from, its history and what guides it."""

    task: SectionTask
    start: Tensor
    guided: Guided

    @classmethod
    def random(cls, size: Size, device: torch.device) -> Inputs:
        draws, config, side = torch.Generator().manual_seed(0), size.config, size.side // 8

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draws).to(device)

        plan = plan_framepack(speed_comfyui.SECTIONS, size.window)
        start = random(1, 16, 1, side, side)
        history, (first, section, *_) = History(plan, start), plan.sections
        history.append(first, random(1, 16, size.window, side, side))
        noise = random(1, 16, size.window, side, side)
        task = SectionTask(
            section, 1, noise, history.latent_indices(section), history.context(section)
        )
        text = TextCondition(
            random(1, WORDS, config.text_embed_dim).to(size.dtype),
            random(1, config.pooled_projection_dim).to(size.dtype),
        )
        image = random(1, IMAGE_TOKENS, config.image_proj_dim).to(size.dtype)
        return cls(task, start, Guided(text, image))


def a_pass(bench: Bench, dit: FramePackDiT) -> Callable[[], Tensor]:
    """One pass of a DiT at a middle noise level."""
    task, guided = bench.inputs.task, bench.inputs.guided
    sigma = torch.tensor([0.5], device=bench.device)
    denoiser = FlowDenoiser(dit, bench.size.dtype)
    return lambda: denoiser.velocity(task.noise, sigma, guided, task.latent_indices, task.context)


@torch.no_grad()
def pass_rows(bench: Bench) -> Iterator[Row]:
    """One pass of the DiT, in eager mode and with compiled blocks."""
    task, guided = bench.inputs.task, bench.inputs.guided
    sigma = torch.tensor([0.5], device=bench.device)
    guidance = torch.tensor([TIME_SCALE * guided.guidance], device=bench.device)
    inputs = DiTInputs(
        task.noise.to(bench.size.dtype),
        TIME_SCALE * sigma,
        guided.text,
        guidance,
        guided.image_embeds,
        task.latent_indices,
        task.context,
    )

    theirs, expected = None, None
    if bench.args.lllyasviel:
        run = peers.lllyasviel_pass(bench, sigma)
        theirs, expected = took(run, kept=bench.weights)
        del run
    for work, compiled in (("not compiled", False), ("blocks compiled", True)):
        dit = bench.dit(attention_of(AUTO))
        if not compiled:
            before, _ = took(lambda dit=dit: dit.embed(inputs), kept=bench.weights)
        else:
            Execution(compilation=CompileOptions().compilation).prepare(dit, bench.device)
        here, found = took(a_pass(bench, dit), kept=bench.weights)
        error = None if expected is None else difference(found, expected)
        yield Row(f"pass of the DiT, {work}", here, theirs, "lllyasviel's code, eager", error)
        del dit, found
    yield Row("of it before the blocks: packing, rotary tables, text, image", before)


@torch.no_grad()
def swap_rows(bench: Bench) -> Iterator[Row]:
    """One pass with blocks that wait in main memory, beside one with all weights on the device."""
    resident, expected = took(a_pass(bench, bench.dit(attention_of(AUTO))), kept=bench.weights)
    bench.drop_weights()
    for swapped, pin in (*((number, True) for number in SWAPPED), (SWAPPED[0], False)):
        attention = attention_of(AUTO)
        dit = load_dit(bench.files / DIT, dtype=bench.size.dtype, attention=attention)
        dit.eval().requires_grad_(False)
        Execution(swapped).prepare(dit, bench.device)
        memory, start = Memory(), time.perf_counter()
        place(dit, streamed_blocks(dit, swapped), bench.device, pin=pin)
        synchronize()
        placed = time.perf_counter() - start
        here, found = took(a_pass(bench, dit))
        way = f"{'pinned' if pin else 'pageable'}, put there in {placed:.1f} s"
        work = f"pass of the DiT, {swapped} blocks swapped, {way}"
        took_here = Took(here.seconds, memory.peak)
        yield Row(work, took_here, resident, "none swapped", difference(found, expected))
        del dit, found
        free()


@torch.no_grad()
def vae_rows(bench: Bench) -> Iterator[Row]:
    """The VAE over one section and the start image, as lllyasviel's code decodes the first."""
    bench.drop_weights()
    dtype = torch.float16 if bench.device.type == "cuda" else torch.float32
    side = bench.size.side
    vae = load_vae(bench.encoders / "vae", dtype=dtype, device=bench.device)
    draws = torch.Generator().manual_seed(0)
    shape = (1, 16, 1 + bench.size.window, side // 8, side // 8)
    latents = torch.randn(shape, generator=draws).to(bench.device, dtype)
    frames = 4 * shape[2] - 3
    video = torch.rand((1, 3, frames, side, side), generator=draws).to(bench.device, dtype) * 2 - 1
    theirs = peers.DiffusersVAE(vae) if bench.args.diffusers else None
    kept = sum(x.nbytes for x in vae.state_dict().values())
    for name, given in (("decode", latents), ("encode", video)):
        here, found = took(partial(getattr(vae, name), given), kept=kept)
        beside, error = None, None
        if theirs is not None:
            found = found.cpu()
            beside, _ = took(partial(getattr(theirs, name), given), kept=kept)
            with theirs.whole():
                error = difference(found, getattr(theirs, name)(given))
        yield Row(f"VAE, {name}, {shape[2]} latent frames", here, beside, "diffusers", error)
        del found


def train_rows(bench: Bench) -> Iterator[Row]:
    """A training step, rank 32 on all layers, with gradient checkpointing."""
    sample, theirs = sample_of(bench.files), None
    if bench.args.musubi_tuner:
        theirs = peers.musubi_training(bench)
        free()
    blocks, expected = bench.size.config.num_layers + bench.size.config.num_single_layers, None
    for name in bench.args.train:
        words, options = TRAINING[name]
        if "keep_blocks" in options:  # of a tiny model fewer
            options = options | {"keep_blocks": min(options["keep_blocks"], blocks - 1)}
        here = measure(bench.dit(), bench.size, sample, bench.device, bench.args.steps, **options)
        took_here, losses = Took(here.seconds, here.memory), torch.tensor(here.losses)
        error = None if expected is None else difference(losses, expected)
        expected = losses if expected is None else expected
        work = f"a training step, {words}"
        yield Row(work, took_here, theirs, "musubi-tuner's trainer; difference of losses", error)
        torch._dynamo.reset()
        free()


# In this order: once the pack is in ComfyUI, its copy of the core has the attention operation.
ROWS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "pass": pass_rows,
    "train": train_rows,
    "swap": swap_rows,
    "vae": vae_rows,
    "decode": speed_comfyui.decode_rows,
    "comfy": speed_comfyui.step_rows,
    "left12": speed_comfyui.left_rows,
    "video": speed_comfyui.video_rows,
}
IN_COMFYUI = ("decode", "comfy", "left12", "video")


def make_files(folder: Path, size: Size) -> None:
    """Weights and one cached section, where they are not there already."""
    tiny = size is TINY_SIZE
    if (folder / SIZE).is_file() and json.loads((folder / SIZE).read_text())["tiny"] == tiny:
        return
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    make_weights(size, folder / DIT)
    make_sample(size, folder)
    (folder / SIZE).write_text(json.dumps({"tiny": tiny}))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", nargs="+", choices=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    parser.add_argument("--comfyui", type=Path, metavar="PATH", help="for the rows in ComfyUI")
    parser.add_argument("--lllyasviel", type=Path, metavar="PATH", help="of FramePack")
    parser.add_argument("--musubi_tuner", type=Path, metavar="PATH")
    parser.add_argument("--diffusers", action="store_true")
    parser.add_argument("--files", type=Path, metavar="DIR", help="of the weights; kept")
    parser.add_argument("--steps", type=int, default=6, help="of each training and sampling")
    parser.add_argument(
        "--train",
        nargs="+",
        choices=list(TRAINING),
        default=list(TRAINING),
        metavar="HOW",
        help=f"how to train: {', '.join(TRAINING)}",
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no row after")
    parser.add_argument("--video_steps", type=int, default=25)
    parser.add_argument(
        "--their_sections",
        type=int,
        default=speed_comfyui.SECTIONS,
        help="of the video that lllyasviel's code makes",
    )
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if args.rows is None:
        args.rows = [name for name in ROWS if args.comfyui or name not in IN_COMFYUI]
    if not args.comfyui and set(args.rows) & set(IN_COMFYUI):
        parser.error(f"--comfyui is missing: {', '.join(IN_COMFYUI)} run in it")
    return args


def main() -> None:
    args, device = read_arguments(), default_device()
    end = time.monotonic() + args.seconds
    size = TINY_SIZE if args.tiny else FULL_SIZE
    with tempfile.TemporaryDirectory() as temporary:
        files = (args.files or Path(temporary)).resolve()
        for name in ("comfyui", "lllyasviel", "musubi_tuner"):
            if getattr(args, name) is not None:
                setattr(args, name, getattr(args, name).resolve())
        if set(args.rows) & set(IN_COMFYUI):  # before anything is on the device
            speed_comfyui.start(args.comfyui, Path(temporary) / "base")
        bench, rows, failed = Bench(args, device, size, files), [], []
        make_files(files, size)
        for name, make in ROWS.items():
            if name in args.rows and time.monotonic() <= end:
                try:
                    for row in make(bench):
                        print(row, flush=True)
                        rows.append(row)
                        if time.monotonic() > end:
                            break
                except Exception:  # the other rows are worth their time all the same
                    traceback.print_exc()
                    failed.append(name)
                free()
    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"\n{card}, PyTorch {torch.__version__}, {size.side}x{size.side}\n\n{table(rows)}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
