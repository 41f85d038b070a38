"""Training of the toy video autoencoder, on clips rendered beforehand on the device."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from framepack_core.models.vae import AutoencoderKL, VAEConfig
from framepack_core.toyworld import render

from .pretrain_loop import (
    Budget,
    LossMeter,
    Step,
    milliseconds,
    recorded,
    resume,
    save_state,
    train,
)
from .pretrain_optimizer import Optimizer

VAE = VAEConfig(block_out_channels=(16, 32, 48, 56), layers_per_block=1, norm_num_groups=8)
LATENT_NOISE = 0.05  # of each channel's deviation: makes the decoder forgive the DiT's errors
LATENT_PENALTY = 1e-4
SECTIONS = 2


@dataclass(frozen=True)
class Settings:
    """Sizes of a run: clips in memory, clips a step by their number of frames, the peak rate.

    Short clips come first, since they cost least; long ones must follow, because the norms take
    their statistics over all frames.
    """

    clips: int = 6144
    batches: dict[int, int] = field(default_factory=lambda: {1: 96, 17: 32, 37: 16, 73: 8})
    short: tuple[int, ...] = (17, 17, 17, 17, 17, 1)
    long: tuple[int, ...] = (37, 73, 37, 73, 37, 1)
    short_share: float = 0.5
    peak: float = 3e-3
    channels: tuple[int, ...] = VAE.block_out_channels

    def length(self, progress: float, step: int) -> int:
        """Frames of the clips of a step."""
        lengths = self.short if progress < self.short_share else self.long
        return lengths[step % len(lengths)]


SMOKE = Settings(
    clips=16,
    batches={1: 4, 5: 2, 9: 1},
    short=(5, 1),
    long=(9, 5),
    channels=(8, 8, 16, 16),
)


def run(
    budget: Budget,
    device: torch.device,
    out: Path,
    earlier: Path | None,
    settings: Settings,
    seed: int = 0,
) -> AutoencoderKL:
    """Train, save the state under `out`, and return the averaged model with unit latents.

    `earlier`: the folder of a run to continue.
    """
    torch.manual_seed(seed)
    config = replace(VAE, block_out_channels=settings.channels)
    model = AutoencoderKL(config, dtype=torch.float32, device=device)
    model.to(torch.bfloat16 if device.type == "cuda" else torch.float32)
    optimizer = Optimizer(model, _muon_names(model), weight_decay=0.0)
    if earlier is not None:
        resume(earlier, "vae", optimizer)
    pool = make_pool(settings.clips, device, seed)
    print(f"VAE of {_millions(model):.2f} M parameters, {len(pool)} clips in memory", flush=True)

    meter = LossMeter(tuple(f"{frames}f" for frames in settings.batches), device)
    steps: dict[int, Step] = {}
    for frames, batch in settings.batches.items():
        steps[frames] = recorded(_step(model, optimizer, pool, frames, batch, meter), device)
        print(f"{batch} clips of {frames} frames: {milliseconds(steps[frames]):.1f} ms", flush=True)

    def next_step(progress: float, step: int) -> Step:
        return steps[settings.length(progress, step)]

    train(budget, next_step, optimizer.set_rate, optimizer.track_average, meter, settings.peak)
    model = finished(config, optimizer.state()["ema"], pool)
    state = {**optimizer.state(), "final": model.state_dict()}
    save_state(out, "vae", state, {"steps": budget.steps, "config": asdict(config)})
    return model


def make_pool(count: int, device: torch.device, seed: int) -> Tensor:
    """Clips of 73 frames, uint8 [N, F, 3, 64, 64], half of them changing, a fifth travelling."""
    parts = []
    first = seed * 1_000_000
    kinds: dict[render.Kind, float] = {"steady": 0.3, "changing": 0.5, "travel": 0.2}
    for kind, share in kinds.items():
        clips = render.draw(range(first, first + max(1, int(share * count))), SECTIONS, kind)
        first += len(clips)
        for start in range(0, len(clips), 128):
            pixels = render.render(clips[start : start + 128], device=device)
            pixels = pixels.add_(1).mul_(127.5).round_().to(torch.uint8)
            parts.append(rearrange(pixels, "n c f h w -> n f c h w").contiguous())
    return torch.cat(parts)


def _step(
    model: AutoencoderKL,
    optimizer: Optimizer,
    pool: Tensor,
    frames: int,
    batch: int,
    meter: LossMeter,
) -> Step:
    device = pool.device
    window = torch.arange(frames, device=device)

    def step() -> None:
        rows = torch.randint(len(pool), (batch,), device=device)
        start = torch.randint(pool.shape[1] - frames + 1, (batch,), device=device)
        pixels = pool[rows[:, None], start[:, None] + window]
        pixels = rearrange(pixels, "b f c h w -> b c f h w").float() / 127.5 - 1
        loss = _loss(model, pixels)
        optimizer.step(torch.autograd.grad(loss, optimizer.params))
        meter.add(f"{frames}f", loss)

    return step


def _loss(model: AutoencoderKL, pixels: Tensor) -> Tensor:
    """L1 for flat areas and squared error for edges, of a decoding of slightly noisy means."""
    weight = model.quant_conv.weight
    mean, logvar = model.moments(pixels.to(weight.dtype)).chunk(2, dim=1)
    deviation = mean.detach().float().std(dim=(0, 2, 3, 4), keepdim=True)
    noise = LATENT_NOISE * deviation * torch.randn_like(mean, dtype=torch.float32)
    decoded = model.decoder(model.post_quant_conv(mean + noise.to(mean.dtype)))
    error = decoded.float() - pixels
    penalty = mean.float().square().mean() + 0 * logvar.float().mean()  # gives logvar a gradient
    return error.abs().mean() + 20 * error.square().mean() + LATENT_PENALTY * penalty


@torch.no_grad()
def finished(config: VAEConfig, weights: dict[str, Tensor], pool: Tensor) -> AutoencoderKL:
    """The model with latents of mean 0 and deviation 1 after the scaling factor.

    The affine map is folded into the 1x1 convolutions on both sides of the latents, and the
    log-variance becomes that of the noise which the decoder was trained with.
    """
    device = pool.device
    model = AutoencoderKL(config, dtype=torch.float32, device=device)
    model.load_state_dict({k: v.to(device) for k, v in weights.items()})
    mean, deviation = _latent_statistics(model, pool)
    deviation = deviation * config.scaling_factor
    channels = config.latent_channels
    to, back = model.quant_conv, model.post_quant_conv
    back.bias += back.weight[:, :, 0, 0, 0] @ mean
    back.weight *= deviation[None, :, None, None, None]
    to.weight[:channels] /= deviation[:, None, None, None, None]
    to.bias[:channels] = (to.bias[:channels] - mean) / deviation
    to.weight[channels:] = 0
    to.bias[channels:] = 2 * torch.log(torch.tensor(LATENT_NOISE / config.scaling_factor))
    return model.eval().requires_grad_(False)


def _latent_statistics(model: AutoencoderKL, pool: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [C] of the unscaled latents over a sample of the pool."""
    means = []
    sample = pool[:: max(1, len(pool) // 256)]
    for pixels in sample.split(16):
        pixels = rearrange(pixels, "b f c h w -> b c f h w").float() / 127.5 - 1
        means.append(model.moments(pixels).chunk(2, dim=1)[0])
    stacked = rearrange(torch.cat(means), "b c t h w -> c (b t h w)")
    return stacked.mean(dim=1), stacked.std(dim=1)


def _muon_names(model: AutoencoderKL) -> set[str]:
    """The matrices between the first and the last convolution of encoder and decoder."""
    return {
        name
        for name, weight in model.named_parameters()
        if weight.ndim >= 2
        and name.split(".")[0] in ("encoder", "decoder")
        and name.split(".")[1] not in ("conv_in", "conv_out")
    }


def _millions(model: torch.nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6
