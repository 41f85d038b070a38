"""Training of the two toy DiTs: clips encoded once, then drawn and noised on the device."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from framepack_core.models.build import load_image_encoder, load_text_encoders
from framepack_core.models.dit import DiTConfig, FramePackDiT
from framepack_core.models.image import ImageEncoder
from framepack_core.models.packing import Context
from framepack_core.models.prompt import TextCondition
from framepack_core.models.text import TextEncoders, clip_pooled, llama_states
from framepack_core.models.vae import AutoencoderKL
from framepack_core.sampling.flow import FlowDenoiser, Guided
from framepack_core.sampling.sections import Mode
from framepack_core.toyworld import render
from framepack_core.weights.layouts import FOLDERS

from .pretrain_layouts import (
    BANK,
    BOUNDARY,
    PARTS,
    SECTIONS,
    ZERO,
    Group,
    LayoutTable,
    groups,
    layouts,
)
from .pretrain_loop import (
    Budget,
    LossMeter,
    Step,
    recorded,
    resume,
    save_state,
    state_file,
    train,
)
from .pretrain_optimizer import Optimizer

DIT = DiTConfig(
    num_attention_heads=2,
    attention_head_dim=64,
    rope_axes_dim=(16, 24, 24),
    num_layers=2,
    num_single_layers=6,
    num_refiner_layers=1,
    mlp_ratio=3.0,  # at 4 the snapshot would pass 20 MB
    text_embed_dim=64,
    pooled_projection_dim=64,
    image_proj_dim=48,
)
SHIFT = 2.5  # of the training times
HISTORY_NOISE = 0.2  # at most, on half of the samples: generated history is never quite clean
CAPTION_DROPOUT = 0.04  # an empty prompt, which real CFG needs
PLAIN_CAPTION = 0.4  # share of captions in the first variant; the rest is spread over all
MOTION_COUNT = len(render.MOTIONS) + 1


@dataclass(frozen=True)
class Settings:
    """Sizes of a run: clips in memory, samples a step, the peak rate, compiled blocks or not."""

    clips: int = 16384
    batch: int = 512
    peak: float = 2e-3
    compile: bool = True
    dit: DiTConfig = DIT


SMOKE = Settings(
    clips=24,
    batch=16,
    compile=False,
    dit=replace(
        DIT,
        attention_head_dim=16,
        rope_axes_dim=(4, 6, 6),
        num_layers=1,
        num_single_layers=1,
    ),
)


@dataclass(frozen=True)
class Data:
    """All that is drawn from, on the device.

    bank [N, BANK, C, h, w]: the latents of each clip by row; image_embeds [N, boundaries, P, C];
    captions [N, sections, 2]: caption number without and with "then" of the first variant;
    text [K, L, C], mask [K, L], pooled [K, C]: all captions, the empty one last; ranges: the clips
    of each group, first and past the last.
    """

    bank: Tensor
    image_embeds: Tensor
    captions: Tensor
    text: Tensor
    mask: Tensor
    pooled: Tensor
    ranges: dict[Group, tuple[int, int]]


def run(
    mode: Mode,
    budget: Budget,
    device: torch.device,
    vae: AutoencoderKL,
    snapshot: Path,
    out: Path,
    earlier: Path | None,
    settings: Settings,
    seed: int = 0,
) -> FramePackDiT:
    """Train a DiT, save its state under `out`, and return the averaged model in fp32.

    `earlier`: the folder of a run to continue.
    """
    torch.manual_seed(seed)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    data = make_data(mode, settings.clips, vae, snapshot, device, seed)
    model = FramePackDiT(settings.dit, dtype=dtype, device=device)
    initialise(model)
    optimizer = Optimizer(model, _muon_names(model))
    if earlier is not None:
        resume(earlier, _state_to_resume(earlier, mode), optimizer)
    if settings.compile:
        for block in _blocks(model):
            block.compile()
    meter = LossMeter(("loss",), device)
    step = recorded(_step(mode, model, optimizer, data, settings.batch, dtype, meter), device)
    train(
        budget,
        lambda progress, number: step,
        optimizer.set_rate,
        optimizer.track_average,
        meter,
        settings.peak,
    )
    info = {"steps": budget.steps, "config": settings.dit.to_dict()}
    save_state(out, f"dit-{mode}", optimizer.state(), info)
    return averaged(settings.dit, optimizer.state()["ema"], device)


def averaged(config: DiTConfig, weights: dict[str, Tensor], device: torch.device) -> FramePackDiT:
    """A DiT for inference, fp32, with the given weights."""
    model = FramePackDiT(config, device=device)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def initialise(model: FramePackDiT) -> None:
    """Every block starts as the identity and the output as zero (adaLN-zero, arXiv 2212.09748)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and _starts_at_zero(name):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def _starts_at_zero(name: str) -> bool:
    return name == "proj_out" or (".norm" in f".{name}" and name.endswith(".linear"))


def _blocks(model: FramePackDiT) -> list[nn.Module]:
    refiner = model.context_embedder.token_refiner.refiner_blocks
    return [*model.transformer_blocks, *model.single_transformer_blocks, *refiner]


def _muon_names(model: FramePackDiT) -> set[str]:
    """The matrices inside the blocks, modulation apart."""
    return {
        name
        for name, weight in model.named_parameters()
        if "_blocks." in name and weight.ndim == 2 and "norm" not in name
    }


def _state_to_resume(folder: Path, mode: Mode) -> str:
    """F1 may start from the original model, whose context it only has to learn to read anew."""
    own = state_file(folder, f"dit-{mode}", "weights").is_file()
    return f"dit-{mode}" if own else "dit-framepack"


# The step


def _step(
    mode: Mode,
    model: FramePackDiT,
    optimizer: Optimizer,
    data: Data,
    batch: int,
    dtype: torch.dtype,
    meter: LossMeter,
) -> Step:
    sampler = Sampler(mode, data, batch)
    denoiser = FlowDenoiser(model, dtype)

    def step() -> None:
        x0, guided, latent_indices, context = sampler.draw()
        noise = torch.randn_like(x0)
        sigma = draw_sigma(len(x0), x0.device)
        losses = denoiser.loss(
            x0, noise, sigma, guided, latent_indices=latent_indices, context=context
        )
        loss = losses.mean()
        optimizer.step(torch.autograd.grad(loss, optimizer.params))
        meter.add("loss", loss)

    return step


def draw_sigma(count: int, device: torch.device) -> Tensor:
    """Logit-normal times under the shift of Flux (arXiv 2403.03206)."""
    t = torch.sigmoid(torch.randn(count, device=device))
    return SHIFT * t / (1 + (SHIFT - 1) * t)


class Sampler:
    """Draws batches; each group of clips has its fixed share."""

    def __init__(self, mode: Mode, data: Data, batch: int) -> None:
        self.data = data
        device = data.bank.device
        shares = groups(mode)
        counts = [round(share * batch) for share in shares.values()]
        counts[0] += batch - sum(counts)
        self.groups = [
            (data.ranges[group], LayoutTable.of(layouts(mode, group), device), count)
            for group, count in zip(shares, counts, strict=True)
        ]

    def draw(self) -> tuple[Tensor, Guided, Tensor, Context]:
        """x0 [B, C, W, h, w], what steers it, its indices [B, W] and its context."""
        parts = [self._draw_group(*group) for group in self.groups]
        clip, rows, indices, boundary, section, then = (
            torch.cat(column) for column in zip(*parts, strict=True)
        )
        latents = self.data.bank[clip[:, None], rows].float()
        latents = rearrange(latents, "b t c h w -> b c t h w")
        x0, clean, clean_2x, clean_4x = latents.split(PARTS, dim=2)
        i0, i1, i2, i4 = indices.split(PARTS, dim=1)
        near = torch.cat((clean[:, :, 1:], clean_2x, clean_4x), dim=2)
        near = self._disturb(near, rows[:, PARTS[0] + 1 :])
        clean = torch.cat((clean[:, :, :1], near[:, :, :1]), dim=2)
        clean_2x, clean_4x = near[:, :, 1:].split(PARTS[2:], dim=2)
        context = Context(clean, i1, clean_2x, i2, clean_4x, i4)
        image = self.data.image_embeds[clip, boundary]
        return x0, Guided(self._text(clip, section, then), image), i0, context

    def _draw_group(
        self, clips: tuple[int, int], table: LayoutTable, count: int
    ) -> tuple[Tensor, ...]:
        clip = torch.randint(*clips, (count,), device=table.rows.device)
        chosen = table.draw(count)
        return (
            clip,
            table.rows[chosen],
            table.indices[chosen],
            table.boundary[chosen],
            table.section[chosen],
            table.then[chosen],
        )

    def _disturb(self, history: Tensor, rows: Tensor) -> Tensor:
        level = (torch.rand(len(rows), 1, device=rows.device) - 0.5).clamp(min=0) * 2
        level = (HISTORY_NOISE * level).expand_as(rows).masked_fill(rows == ZERO, 0)
        return history + level[:, None, :, None, None] * torch.randn_like(history)

    def _text(self, clip: Tensor, section: Tensor, then: Tensor) -> TextCondition:
        data, count, device = self.data, len(clip), clip.device
        says_then = (torch.rand(count, device=device) < then).long()
        variant = torch.randint(render.CAPTION_VARIANTS, (count,), device=device)
        variant = variant.masked_fill(torch.rand(count, device=device) < PLAIN_CAPTION, 0)
        caption = data.captions[clip, section, says_then] + 2 * variant
        dropped = torch.rand(count, device=device) < CAPTION_DROPOUT
        caption = caption.masked_fill(dropped, len(data.text) - 1)
        return TextCondition(data.text[caption], data.pooled[caption], data.mask[caption])


# The data


@torch.no_grad()
def make_data(
    mode: Mode, count: int, vae: AutoencoderKL, snapshot: Path, device: torch.device, seed: int
) -> Data:
    """Render, encode and caption the clips of a mode."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    vae = _copy_in(vae, dtype)
    image_encoder = load_image_encoder(snapshot / FOLDERS["image_encoder"], dtype=dtype)
    image_encoder.model.to(device)
    banks, embeds, captions, ranges = [], [], [], {}
    first, total = seed * 1_000_000 + 500_000_000, 0
    for group, share in groups(mode).items():
        clips = _draw_group(group, range(first, first + max(2, int(share * count))))
        first += len(clips)
        ranges[group] = (total, total + len(clips))
        total += len(clips)
        captions.append(caption_numbers(clips))
        for start in range(0, len(clips), 32):
            bank, embed = _encode(clips[start : start + 32], vae, image_encoder, device, dtype)
            banks.append(bank)
            embeds.append(embed)
    text, mask, pooled = encode_captions(snapshot, device, dtype)
    print(f"{total} clips encoded, {len(text)} captions", flush=True)
    return Data(
        bank=torch.cat(banks),
        image_embeds=torch.cat(embeds),
        captions=torch.cat(captions).to(device),
        text=text,
        mask=mask,
        pooled=pooled,
        ranges=ranges,
    )


def _copy_in(vae: AutoencoderKL, dtype: torch.dtype) -> AutoencoderKL:
    device = next(vae.parameters()).device
    copy = AutoencoderKL(vae.config, dtype=dtype, device=device)
    copy.load_state_dict(vae.state_dict())
    return copy.eval().requires_grad_(False)


def _draw_group(group: Group, seeds: Sequence[int]) -> render.Clips:
    if not group.startswith("travel"):
        return render.draw(seeds, SECTIONS, group)
    return render.draw(seeds, SECTIONS, "travel", legs=SECTIONS // int(group[-1]))


def _encode(
    clips: render.Clips,
    vae: AutoencoderKL,
    image_encoder: ImageEncoder,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The bank [n, BANK, C, h, w] of some clips and the image embeddings of their boundaries."""
    pixels = render.render(clips, device=device)
    latents = vae.encode(pixels.to(dtype))
    pictures = pixels[:, :, :: render.SECTION_FRAMES]
    pictures = rearrange(pictures, "n c s h w -> (n s) c h w")
    alone = vae.encode(pictures[:, :, None].to(dtype))
    bank = latents.new_zeros(len(clips), BANK, *latents.shape[1:2], *latents.shape[3:])
    bank[:, :BOUNDARY] = latents.transpose(1, 2)
    bank[:, BOUNDARY:ZERO] = rearrange(alone[:, :, 0], "(n s) c h w -> n s c h w", n=len(clips))
    size = image_encoder.image_size
    small = nn.functional.interpolate(
        pictures, (size, size), mode="bicubic", antialias=True, align_corners=False
    )
    embeds = image_encoder.model(small.clamp(-1, 1).to(dtype))
    return bank, rearrange(embeds, "(n s) p c -> n s p c", n=len(clips))


def caption_number(form: Tensor, colour: Tensor, motion: Tensor) -> Tensor:
    """Where the captions of a section start in the list of `all_captions`."""
    number = (form * len(render.COLOURS) + colour) * MOTION_COUNT + motion
    return number * 2 * render.CAPTION_VARIANTS


def all_captions() -> list[str]:
    """Every caption: by form, colour, motion, variant, and without or with "then"."""
    return [
        render.caption(form, colour, motion, variant=variant, then=then)
        for form, colour, motion, variant, then in itertools.product(
            range(len(render.FORMS)),
            range(len(render.COLOURS)),
            range(MOTION_COUNT),
            range(render.CAPTION_VARIANTS),
            (False, True),
        )
    ]


def caption_numbers(clips: render.Clips) -> Tensor:
    """[N, sections, 2]: the number of each section's caption, without and with "then".

    The second differs only after a change of motion. Of travelling shapes that go one way above
    all, every other clip is captioned with that way.
    """
    motions = _named_motions(clips)
    number = caption_number(clips.form[:, None], clips.colour[:, None], motions)
    return torch.stack((number, number + clips.changed().long()), dim=-1)


def _named_motions(clips: render.Clips) -> Tensor:
    ends = clips.track[:, :: render.SECTION_FRAMES, :2]
    move = ends[:, 1:] - ends[:, :-1]
    sideways = move[..., 0].abs() > move[..., 1].abs()
    left, right, up, down = range(4)
    way = torch.where(
        sideways,
        torch.where(move[..., 0] < 0, left, right),
        torch.where(move[..., 1] < 0, up, down),
    )
    small, large = move.abs().amin(dim=-1), move.abs().amax(dim=-1)
    odd = torch.tensor(clips.seeds)[:, None] % 2 == 1
    clear = (clips.motions == render.TRAVEL) & (small < large / 2) & odd
    return torch.where(clear, way, clips.motions)


@torch.no_grad()
def encode_captions(
    snapshot: Path, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Text [K, L, C], mask [K, L] and pooled [K, C] of all captions and the empty prompt."""
    encoders = load_text_encoders(
        snapshot / FOLDERS["llama"], snapshot / FOLDERS["clip"], dtype=torch.float32, device=device
    )
    prompts = [*all_captions(), ""]
    tokens = [encoders.tokenize(prompt) for prompt in prompts]
    lengths = [t.llama_ids.shape[1] - t.crop for t in tokens]
    longest = -(-max(lengths) // 8) * 8  # attention kernels like multiples of 8
    text = torch.zeros(len(prompts), longest, encoders.llama.config.hidden_size, device=device)
    pooled: list[Tensor] = [torch.empty(0)] * len(prompts)
    by_shape: dict[tuple[int, int], list[int]] = {}
    for i, t in enumerate(tokens):
        by_shape.setdefault((t.llama_ids.shape[1], t.clip_ids.shape[1]), []).append(i)
    for rows in by_shape.values():
        states, vectors = _encode_alike(encoders, [tokens[i] for i in rows], device)
        text[rows, : states.shape[1]] = states
        for i, vector in zip(rows, vectors, strict=True):
            pooled[i] = vector
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return text.to(dtype), mask.to(device), torch.stack(pooled).to(dtype)


def _encode_alike(
    encoders: TextEncoders, tokens: Sequence, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Prompts of one length together, which needs no padding."""
    llama_ids = torch.cat([t.llama_ids for t in tokens]).to(device)
    clip_ids = torch.cat([t.clip_ids for t in tokens]).to(device)
    states = llama_states(encoders.llama, llama_ids, tokens[0].crop)
    return states, clip_pooled(encoders.clip, clip_ids)
