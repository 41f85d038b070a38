# ruff: noqa: E402  PyTorch and ComfyUI are set up by what comes before their import
"""What quantised models take and keep on this machine: a JSON line for each thing measured.

    python -m tests.bench.quantised --stages files passes caches train --lllyasviel PATH
    python -m tests.bench.quantised --stages files comfy --comfyui PATH
    python -m tests.bench.quantised --stages curves effects distances lines
    python -m tests.bench.quantised --tiny ...      the same with tiny models, to try it on a CPU

The first two are of random weights at full size (a bf16 file of 26 GB in --files and one quantised
one beside it), 640x640 in sections of 9 latent frames; the third is of Toy World. A stage that
fails is told, and the others go on; nothing begins later than --until seconds after the start.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if "--comfyui" in sys.argv:  # as ComfyUI sets it, before PyTorch is there
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "backend:cudaMallocAsync")

import torch
from torch import Tensor

BENCH = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCH), str(BENCH.parents[1]), str(BENCH.parent)]

import speed
import speed_comfyui
import speed_peers as peers
from speed_timing import GIB, Clock, difference, free, synchronize, took
from toyworld import quantised as toy
from toyworld.evaluate import Toy, evaluate
from train_full_size import measure
from training_files import DIT, FULL_SIZE, TINY_SIZE, sample_of

from framepack_core.models import products
from framepack_core.models.attention_kernels import AUTO, attention_of
from framepack_core.models.build import load_dit, open_dit
from framepack_core.models.dit import FramePackDiT
from framepack_core.models.merge import save_dit
from framepack_core.models.products import choose_products
from framepack_core.models.quantise import quantise_layers
from framepack_core.runtime.device import default_device
from framepack_core.sampling.flow import FlowDenoiser
from framepack_core.sampling.generate import SamplerConfig, unipc_sampler
from framepack_core.sampling.step_cache import OFFERED, StepCacheFactory
from framepack_core.toyworld import SNAPSHOT
from framepack_core.weights.precisions import STATED, Precision
from framepack_core.weights.quantised_linear import QuantisedLinear, QuantisedOps

FP8: Precision = "float8_e4m3fn"
WRITTEN: tuple[Precision, ...] = ("gguf_q8_0", FP8)  # at full size, the last one stays
LEFT = 8  # GiB
STEPS = 25
BEGUN = time.monotonic()
Line = dict[str, Any]


class Bench(speed.Bench):
    """The bench of speed with quantised models."""

    @property
    def file(self) -> Path:
        return self.files / f"{FP8}.safetensors"

    def quantised(self, precision: Precision) -> FramePackDiT:
        """A model whose layers are made from the shared weights; dequantised until it is chosen."""
        attention = attention_of(AUTO)
        dit = FramePackDiT(
            self.size.config,
            device="meta",
            dtype=self.size.dtype,
            attention=attention,
            ops=QuantisedOps,
        )
        dit.load_state_dict(self.state, assign=True)
        dit.eval().requires_grad_(False)
        quantise_layers(dit, precision)
        return dit

    def choose(self, dit: FramePackDiT) -> FramePackDiT:
        """The model multiplying as is the fastest."""
        choose_products(dit, self.device, self.size.dtype)
        return dit

    def velocity(self, dit: FramePackDiT) -> Callable[[], Tensor]:
        """A pass at a middle noise level."""
        task, sigma = self.inputs.task, torch.tensor([0.5], device=self.device)
        denoiser, guided = FlowDenoiser(dit, self.size.dtype), self.inputs.guided
        return lambda: denoiser.velocity(
            task.noise, sigma, guided, task.latent_indices, task.context
        )


# --- random weights at full size ------------------------------------------------------------------


@contextmanager
def main_memory() -> Iterator[list[int]]:
    """The most main memory of this process meanwhile, over what it was; files are not counted."""
    done = threading.Event()

    def used() -> int:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("RssAnon:")[2].split()[0])

    before, most = used(), [0]

    def watch() -> None:
        while not done.wait(0.01):
            most[0] = max(most[0], used() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def files_stage(bench: Bench) -> Iterator[Line]:
    """The size of each file, and what making some of them takes."""
    for precision in ("full", *STATED):
        _, state = open_dit(bench.files / DIT, dtype=torch.bfloat16, precision=precision)
        size = sum(info.nbytes for info in state.infos().values())
        yield {"format": precision, "GiB": size / GIB}
    for precision in WRITTEN:
        suffix = "gguf" if precision.startswith("gguf") else "safetensors"
        path, begin = bench.files / f"{precision}.{suffix}", time.perf_counter()
        path.unlink(missing_ok=True)
        with main_memory() as memory:
            save_dit(bench.files / DIT, path, precision=precision, device=bench.device)
        line = {"made": precision, "seconds": time.perf_counter() - begin}
        yield line | {"main memory, GiB": memory[0] / GIB, "file, GiB": path.stat().st_size / GIB}
        if path != bench.file:
            path.unlink()


@torch.no_grad()
def passes_stage(bench: Bench) -> Iterator[Line]:
    """A pass in each format beside bf16 and lllyasviel's eager one."""
    weights = bench.weights
    plain, expected = took(bench.velocity(bench.dit(attention_of(AUTO))), kept=weights)
    yield {"pass": "bf16", "seconds": plain.seconds, "GiB": plain.memory / GIB}
    if bench.args.lllyasviel:
        run = peers.lllyasviel_pass(bench, torch.tensor([0.5], device=bench.device))
        theirs, found = took(run, kept=weights)
        line = {"pass": "lllyasviel's, eager", "seconds": theirs.seconds}
        yield line | {"GiB": theirs.memory / GIB, "difference": difference(found, expected)}
        del run
    for precision in STATED:
        dit = bench.choose(bench.quantised(precision))
        size = sum(x.nbytes for x in (*dit.parameters(), *dit.buffers()))
        layers = [x for x in dit.modules() if isinstance(x, QuantisedLinear) and x.encoding]
        if not layers:  # of a tiny model none may fit
            continue
        used = next((x.product for x in layers if x.product is not None), None)
        ways: dict[str, Any] = {getattr(used, "name", "dequantising"): used, "dequantising": None}
        able = next((p for p in products.PRODUCTS if p.takes(layers[0])), None)
        if used is None and able is not None and not products._needs_gpu(bench.device):
            ways[f"{able.name}, not chosen"] = able
        for name, product in ways.items():
            for layer in layers:
                layer.product = product
            here, found = took(bench.velocity(dit), repeats=3, kept=size)
            line = {"pass": precision, "by": name, "seconds": here.seconds}
            yield line | {"GiB": here.memory / GIB, "difference": difference(found, expected)}
        del dit, layers, found
        free()


def forced(make: StepCacheFactory, pattern: list[bool]) -> StepCacheFactory:
    """A step cache that does its sums and then computes the steps of a pattern."""

    def factory(sigmas: Tensor) -> Any:
        step_cache: Any = make(sigmas)
        decide = step_cache._must_compute

        def decided(*given: Any) -> bool:
            decide(*given)
            return pattern[given[-1]]

        step_cache._must_compute = decided
        return step_cache

    return factory


@torch.no_grad()
def caches_stage(bench: Bench) -> Iterator[Line]:
    """25 steps with each step cache, computing the steps that it computes of Toy World's."""
    dit = bench.choose(bench.quantised(FP8))
    bench.drop_weights()
    denoiser, task = FlowDenoiser(dit, bench.size.dtype), bench.inputs.task
    patterns, without = toy.computed_steps(bench.device, STEPS), 0.0
    patterns = {"none": [True] * STEPS} | patterns
    for name, pattern in patterns.items():
        factory = None if name == "none" else forced(OFFERED[name]().factory(), pattern)
        sample = unipc_sampler(
            denoiser, bench.inputs.guided, SamplerConfig(STEPS, None, "bh1", factory)
        )
        if not without:
            bench.velocity(dit)()  # kernels are chosen in the first pass
        synchronize()
        begin = time.perf_counter()
        sample(task)
        synchronize()
        seconds = time.perf_counter() - begin
        without = without or seconds
        line = {"steps with": name, "computed": sum(pattern), "seconds": seconds}
        yield line | {"of the time without": seconds / without}


def train_stage(bench: Bench) -> Iterator[Line]:
    """A training step on fp8 weights, rank 32 on all layers, with gradient checkpointing."""
    sample, steps = sample_of(bench.files), bench.args.steps
    for own in (False, True):
        dit = bench.quantised(FP8)
        bench.drop_weights()
        here = measure(dit, bench.size, sample, bench.device, steps, quantized_matmul=own)
        line = {"training on": FP8, "own numbers": own, "seconds": here.seconds}
        yield line | {"GiB": here.memory / GIB}
        del dit
        free()


@torch.inference_mode()  # as ComfyUI's executor does
def comfy_stage(bench: Bench) -> Iterator[Line]:
    """Steps of the fp8 file in ComfyUI, beside headless ones and with little of the card left."""
    bench.drop_weights()
    if not bench.file.is_file():
        save_dit(bench.files / DIT, bench.file, precision=FP8, device=bench.device)
    load = {"dtype": bench.size.dtype, "device": bench.device, "attention": attention_of(AUTO)}
    dit, clock = load_dit(bench.file, **load), Clock()
    bench.choose(dit)
    denoiser, steps = FlowDenoiser(dit, bench.size.dtype), bench.args.steps
    sample = unipc_sampler(denoiser, bench.inputs.guided, SamplerConfig(steps), on_step=clock.tick)
    expected = sample(bench.inputs.task)
    headless = clock.seconds
    yield {"fp8 step": "headless", "seconds": headless}
    del sample, denoiser, dit
    free()
    host = bench.host
    host.model = host.inside.pack("nodes.comfyui.model").load_model(bench.file)
    resident, found = host.step(steps)
    line = {"fp8 step": "ComfyUI", "seconds": resident.seconds, "GiB": resident.memory / GIB}
    line |= {"over headless": resident.seconds / headless}
    yield line | {"difference": difference(found, expected)}
    host.unload()
    others = None
    if torch.cuda.is_available():
        unused, _ = torch.cuda.mem_get_info()
        others = torch.empty(max(0, unused - LEFT * GIB), dtype=torch.uint8, device=bench.device)
    here, again = host.step(steps)
    del others
    line = {"fp8 step": f"ComfyUI, {LEFT} GiB left", "seconds": here.seconds}
    line |= {"over residency": here.seconds / resident.seconds}
    yield line | {"difference": difference(again, found)}
    host.unload()


# --- Toy World ------------------------------------------------------------------------------------


def curves_stage(bench: Bench) -> Iterator[Line]:
    """What a LoRA learns in 200 steps on each base."""
    few = {"updates": 4, "cases": 2, "steps": 2} if bench.args.tiny else {}
    for base in toy.TRAINED:
        yield toy.learned(base, bench.device, **few)


def effects_stage(bench: Bench) -> Iterator[Line]:
    """What is left of a LoRA's effect in each format."""
    for base in toy.every_base():
        yield toy.effect(base, bench.device, clips=2 if bench.args.tiny else toy.CLIPS)


def distances_stage(bench: Bench) -> Iterator[Line]:
    """How far each format's latents are from bf16's, without and with each step cache."""
    few = {"cases": 2, "steps": 4} if bench.args.tiny else {}
    yield from toy.distances(bench.device, **few)


def lines_stage(bench: Bench) -> Iterator[Line]:
    """Toy World's evaluation in each format: all lines, and those that are missed."""
    cases, steps = (2, 2) if bench.args.tiny else (16, STEPS)
    for base in toy.JUDGED:
        models = Toy.load(SNAPSHOT, bench.device, base.precision, base.quantized_matmul)
        modes = ("framepack",) if bench.args.tiny else ("framepack", "f1")
        measures = list(evaluate(models, cases, modes, steps))
        missed = [str(measure) for measure in measures if not measure.met]
        yield {"lines of": base.name, "held": len(measures) - len(missed), "missed": missed}


STAGES: dict[str, Callable[[Bench], Iterator[Line]]] = {
    "files": files_stage,
    "passes": passes_stage,
    "caches": caches_stage,
    "train": train_stage,
    "curves": curves_stage,
    "effects": effects_stage,
    "distances": distances_stage,
    "lines": lines_stage,
    "comfy": comfy_stage,  # last: the pack's copy of the core then has the attention operation
}
FULL = ("files", "passes", "caches", "train", "comfy")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--comfyui", type=Path, metavar="PATH", help="for the stage in ComfyUI")
    parser.add_argument("--lllyasviel", type=Path, metavar="PATH", help="of FramePack")
    parser.add_argument("--files", type=Path, metavar="DIR", help="of the weights; kept")
    parser.add_argument("--steps", type=int, default=8, help="of each sampling in ComfyUI")
    parser.add_argument("--until", type=float, default=570, help="seconds; no line begins later")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if "comfy" in args.stages and not args.comfyui:
        args.stages.remove("comfy")
    return args


def main() -> None:
    args, device = read_arguments(), default_device()
    size = TINY_SIZE if args.tiny else FULL_SIZE
    with tempfile.TemporaryDirectory() as temporary:
        files = (args.files or Path(temporary)).resolve()
        for name in ("comfyui", "lllyasviel"):
            if getattr(args, name) is not None:
                setattr(args, name, getattr(args, name).resolve())
        if "comfy" in args.stages:  # before anything is on the device
            speed_comfyui.start(args.comfyui, Path(temporary) / "base")
        bench = Bench(args, device, size, files)
        card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
        tell({"card": card, "PyTorch": torch.__version__})
        if set(args.stages) & set(FULL):
            speed.make_files(files, size)
        for name, stage in STAGES.items():
            if name in args.stages:
                run(name, stage, bench)
                free()


def run(name: str, stage: Callable[[Bench], Iterator[Line]], bench: Bench) -> None:
    """The lines of a stage, until the time is over."""
    lines = stage(bench)
    while time.monotonic() - BEGUN < bench.args.until:
        try:
            tell({"stage": name, **next(lines)})
        except StopIteration:
            return
        except Exception:  # the other stages are worth their time all the same
            traceback.print_exc()
            tell({"stage": name, "failed": traceback.format_exc().splitlines()[-1]})
            return
    tell({"stage": name, "stopped": "the time is over"})


def tell(line: Line) -> None:
    rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in line.items()}
    print(json.dumps(rounded | {"at": round(time.monotonic() - BEGUN)}), flush=True)


if __name__ == "__main__":
    main()
