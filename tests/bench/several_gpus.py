"""One video on several GPUs against one of them, in one run: a line of JSON for each finding.

    torchrun --nproc_per_node 2 tests/bench/several_gpus.py --seconds 540
    torchrun --nproc_per_node 2 tests/bench/several_gpus.py --tiny       on a CPU, to try it

Seconds a pass of process 0 alone and of all, how far their results are apart, memory with whole
weights and with sharded ones, and a video of 5 seconds with decoding. Weights are random numbers of
full size, made on the GPU: no files, no packages beyond PyTorch, einops, safetensors and tqdm. What
does not fit into --seconds is left out and told.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from framepack_core.models.attention_kernels import AUTO, attention_of
from framepack_core.models.dit import DiTConfig, DiTInputs, FramePackDiT
from framepack_core.models.offload import blocks_of
from framepack_core.models.packing import Context
from framepack_core.models.prompt import TextCondition
from framepack_core.models.sharded import sharded_forwards
from framepack_core.models.shared import share_blocks
from framepack_core.models.vae import AutoencoderKL, VAEConfig
from framepack_core.runtime.distributed import Crew, Team, launched_count
from framepack_core.sampling.decode import SharedDecode, decode_sections
from framepack_core.sampling.schedule import dynamic_shift, flow_sigmas
from framepack_core.sampling.unipc import sample_unipc

GIB = 2**30
WORDS, IMAGE_TOKENS, SECTIONS = 128, 729, 4
OF_HEADS = ("norm_q.weight", "norm_k.weight", "norm_added_q.weight", "norm_added_k.weight")
ALONE = Team()


@dataclass(frozen=True)
class Size:
    """How large the models and the video are."""

    dit: DiTConfig
    vae: VAEConfig
    side: int
    window: int
    dtype: torch.dtype
    vae_dtype: torch.dtype
    steps: int
    repeats: int


FULL = Size(DiTConfig(), VAEConfig(), 640, 9, torch.bfloat16, torch.float16, 25, 5)
TINY_DIT = DiTConfig(
    num_attention_heads=3,
    attention_head_dim=16,
    num_layers=2,
    num_single_layers=2,
    num_refiner_layers=1,
    text_embed_dim=32,
    pooled_projection_dim=16,
    image_proj_dim=24,
    rope_axes_dim=(4, 6, 6),
)
TINY_VAE = VAEConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4)
TINY = Size(TINY_DIT, TINY_VAE, 48, 1, torch.float32, torch.float32, 2, 2)


def randomise(module: nn.Module, device: torch.device) -> Any:
    """Small random numbers for weights, the same in every process; norms of heads are 1."""
    module = module.to_empty(device=device).eval().requires_grad_(False)
    draws = torch.Generator(device).manual_seed(0)
    for name, parameter in module.named_parameters():
        if name.endswith(OF_HEADS):
            parameter.fill_(1)
        else:
            parameter.normal_(0, 0.02, generator=draws)
    return module


class Bench:
    """What all measurements share: models, inputs and clocks."""

    def __init__(self, size: Size, crew: Crew, end: float) -> None:
        self.size, self.crew, self.device, self.end = size, crew, crew.device, end
        dit = FramePackDiT(size.dit, attention=attention_of(AUTO), device="meta", dtype=size.dtype)
        self.dit = randomise(dit, self.device)
        draws, side = torch.Generator().manual_seed(1), size.side // 8

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draws).to(self.device)

        self.noise = random(1, 16, size.window, side, side)
        self.context = Context(
            random(1, 16, 2, side, side),
            torch.tensor([[0, 10]]),
            random(1, 16, 2, side, side),
            torch.tensor([[11, 12]]),
            random(1, 16, 16, side, side),
            torch.arange(13, 29)[None],
        )
        config = size.dit
        text = random(1, WORDS, config.text_embed_dim), random(1, config.pooled_projection_dim)
        self.text = TextCondition(*(x.to(size.dtype) for x in text))
        self.image = random(1, IMAGE_TOKENS, config.image_proj_dim).to(size.dtype)

    @torch.no_grad()
    def velocity(self, x: Tensor | None = None, sigma: float = 0.5) -> Tensor:
        """One pass."""
        x = self.noise if x is None else x
        timestep, guidance = torch.tensor([[1000 * sigma], [10000.0]], device=self.device)
        indices = torch.arange(1, 1 + self.size.window)[None]
        inputs = DiTInputs(
            x.to(self.size.dtype), timestep, self.text, guidance, self.image, indices, self.context
        )
        return self.dit(inputs)

    @property
    def attention(self) -> Any:
        return blocks_of(self.dit)[0].attn.attention  # type: ignore[union-attr]

    def took(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Median seconds of some calls after one that warms up, and what the last one returned."""
        found, times = work(), []
        for _ in range(self.size.repeats):
            self.synchronize()
            start = time.perf_counter()
            found = work()
            self.synchronize()
            times.append(time.perf_counter() - start)
        return statistics.median(times), found

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak(self) -> list[float]:
        """The most GiB of every process since this was called before."""
        found = 0.0
        if self.device.type == "cuda":
            found = torch.cuda.max_memory_allocated(self.device) / GIB
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        mine = torch.tensor([[[found]]])
        return self.crew.whole.gather(mine, [1] * self.crew.count).flatten().tolist()

    def alone(self, work: Callable[[], Any]) -> Any:
        """Work of process 0, for which the others wait; None there."""
        found = work() if self.crew.leads else None
        self.crew.meet()
        return found

    def agreed(self, number: float) -> float:
        """Process 0's."""
        told = torch.tensor([number], dtype=torch.float64)
        torch.distributed.broadcast(told, 0)
        return float(told)

    def time_for(self, what: str, seconds: float) -> bool:
        """Whether so many seconds are left; says what is left out where not."""
        left = self.agreed(self.end - time.monotonic())
        if left < seconds:
            self.say(f"left out: {what}", seconds_left=left, needed=seconds)
        return left >= seconds

    def say(self, what: str, **found: Any) -> None:
        if self.crew.leads:
            print(
                json.dumps({"what": what, **{k: _short(v) for k, v in found.items()}}), flush=True
            )


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return [_short(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def difference(found: Tensor, expected: Tensor) -> float:
    found, expected = found.float(), expected.float()
    return float((found - expected).norm() / expected.norm())


@dataclass(frozen=True)
class OneGPU:
    """What one GPU took for a pass, and what it found."""

    seconds: float
    memory: float
    velocity: Tensor | None


def one_gpu(bench: Bench) -> OneGPU:
    """A pass of process 0 alone, and how far another exact kernel is from it."""
    bench.peak()
    found = bench.alone(lambda: bench.took(bench.velocity))
    memory, *_ = bench.peak()
    seconds, velocity = found or (0.0, None)
    seconds = bench.agreed(seconds)
    bench.say("a pass of one GPU", seconds=seconds, peak_gib=memory)

    def other_kernel() -> float:
        kept, other = bench.attention, attention_of("sdpa")
        for attention in (other, kept):
            for block in blocks_of(bench.dit):
                block.attn.attention = attention  # type: ignore[union-attr]
            if attention is other:
                away = difference(bench.velocity(), velocity)
        return away

    away = bench.alone(other_kernel)
    bench.say("the same with PyTorch's choice of attention", error=away)
    return OneGPU(seconds, memory, velocity)


def together(bench: Bench, one: OneGPU, what: str) -> float:
    """A pass of all processes as they are set up."""
    bench.peak()
    seconds, found = bench.took(bench.velocity)
    peaks = bench.peak()
    bench.say(
        what,
        seconds=seconds,
        ratio=seconds / one.seconds,
        error=None if one.velocity is None else difference(found, one.velocity),
        peak_gib=peaks,
        ratio_of_memory=max(peaks) / one.memory if one.memory else None,
    )
    return bench.agreed(seconds)


@torch.no_grad()
def pieces(bench: Bench) -> None:
    """Where the time of attention in a shared block goes."""
    crew, config = bench.crew, bench.size.dit
    heads, size, side = config.num_attention_heads, config.attention_head_dim, bench.size.side // 16
    own = ((bench.size.window + 3) * side**2 + WORDS + IMAGE_TOKENS) // crew.count
    few = heads // crew.count

    def random(tokens: int, heads: int) -> list[Tensor]:
        shape = (1, tokens, heads, size)
        numbers = (torch.randn(shape, device=bench.device) for _ in range(3))
        return [x.to(bench.size.dtype).transpose(1, 2) for x in numbers]

    inner = attention_of(AUTO)
    for name, count in (("all heads", heads), ("the heads of one process", few)):
        given = random(own * crew.count, count)
        seconds, _ = bench.took(partial(inner, *given, None))
        bench.say(f"attention of {name}", ms=1000 * seconds, heads=count, tokens=own * crew.count)
    sent = torch.cat([x.flatten() for x in random(own, few * crew.count)])
    parts = [sent.numel() // crew.count] * crew.count
    seconds, _ = bench.took(lambda: crew.whole.exchange(sent, parts, parts)())
    bench.say("exchange of q, k and v", ms=1000 * seconds, mib=sent.nbytes / 2**20)
    bench.attention.lengths = [own] * crew.count
    mine = random(own, heads)
    seconds, _ = bench.took(lambda: bench.attention(*mine, None))
    bench.say("attention with packing and both exchanges", ms=1000 * seconds)
    x = torch.randn((1, own, config.dim), device=bench.device).to(bench.size.dtype)
    lengths = [own] * crew.count
    seconds, _ = bench.took(lambda: crew.whole.gather(x, lengths))
    bench.say("bringing the latent tokens together, once a pass", ms=1000 * seconds)


def video(bench: Bench, vae: AutoencoderKL, crew: Crew | None) -> tuple[float, float]:
    """Seconds of sampling four sections and of decoding them; crew: None for process 0 alone."""
    size, device = bench.size, bench.device
    sigmas = flow_sigmas(size.steps, dynamic_shift(*bench.noise.shape[2:]))
    share_blocks(bench.dit, ALONE if crew is None else crew.whole)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return x - sigma.view(-1, 1, 1, 1, 1) * bench.velocity(x, float(sigma))

    @torch.no_grad()
    def decode(latents: Tensor) -> Tensor:
        return vae.decode(latents)

    start = time.perf_counter()
    made = [sample_unipc(denoise, bench.noise, sigmas) for _ in range(SECTIONS)]
    bench.synchronize()
    sampled = time.perf_counter()
    latents = torch.cat([made[0][:, :, :1], *made], dim=2).to(device, size.vae_dtype)
    shared = SharedDecode(decode, crew, size.vae_dtype)
    if crew is None or crew.leads:
        for _ in decode_sections(shared, latents, size.window):
            pass
        if crew is not None:
            crew.send(None)
    else:
        while (slices := crew.receive()) is not None:
            shared.follow(slices)
    return sampled - start, time.perf_counter() - sampled


def videos(bench: Bench, one: OneGPU, shared: float) -> None:
    """A video of 5 seconds, of one process and of all."""
    size, crew = bench.size, bench.crew
    passes = SECTIONS * size.steps
    if not bench.time_for("whole videos", passes * (one.seconds + shared) * 1.1 + 60):
        return
    vae = randomise(AutoencoderKL(size.vae, device="meta", dtype=size.vae_dtype), bench.device)
    with torch.no_grad():  # the first use of its kernels
        vae.decode(torch.zeros_like(bench.noise, dtype=size.vae_dtype))
    sampling, decoding = video(bench, vae, crew)
    both = sampling + decoding
    bench.say("a video of all GPUs", seconds=both, sampling=sampling, decoding=decoding)
    found = bench.alone(lambda: video(bench, vae, None))
    if found is not None:
        sampling, decoding = found
        ratios = {"ratio": both / sum(found)}
        bench.say("of one GPU", seconds=sum(found), sampling=sampling, decoding=decoding, **ratios)


def run(args: argparse.Namespace, crew: Crew) -> None:
    start = time.monotonic()
    bench = Bench(TINY if args.tiny else FULL, crew, start + args.seconds)
    cuda = crew.device.type == "cuda"
    bench.synchronize()
    bench.say(
        f"{crew.count} x {torch.cuda.get_device_name(crew.device) if cuda else 'CPU'}",
        pytorch=torch.__version__,
        seconds_to_make_weights=time.monotonic() - start,
    )
    one = one_gpu(bench)
    share_blocks(bench.dit, crew.whole)
    whole = together(bench, one, f"a pass of {crew.count} GPUs")
    pieces(bench)
    if not args.no_video:
        videos(bench, one, whole)
        share_blocks(bench.dit, crew.whole)
    if bench.time_for("sharded weights", 15 * one.seconds + 20):
        blocks = blocks_of(bench.dit)
        forwards = sharded_forwards(blocks, bench.device, crew.weights)
        for block, forward in zip(blocks, forwards, strict=True):
            block.forward = forward
        del forwards
        together(bench, one, f"a pass of {crew.count} GPUs with sharded weights")


def end_one(crew: Crew) -> None:
    """Process 1 ends without a word, amid work together; the others have to end with one."""
    with crew.connected():
        for number in range(10**6):
            if crew.rank == 1 and number == 1000:
                print(json.dumps({"what": "process 1 dies", "time": time.time()}), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            crew.whole.gather(torch.ones((1, 8, 8), device=crew.device), [8] * crew.count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=540, help="to stop after")
    parser.add_argument("--tiny", action="store_true", help="on the CPU")
    parser.add_argument("--no_video", action="store_true", help="only passes")
    parser.add_argument("--die", action="store_true", help="at last let process 1 die")
    args = parser.parse_args()
    device = "cpu" if args.tiny else f"cuda:{os.environ['LOCAL_RANK']}"
    if launched_count() == 1:
        raise SystemExit("launch it with torchrun --nproc_per_node 2")
    crew = Crew.join(torch.device(device))
    run(args, crew)
    if args.die:
        end_one(crew)
    crew.leave()


if __name__ == "__main__":
    main()
