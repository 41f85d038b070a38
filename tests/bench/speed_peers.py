"""Other implementations at the same work and weights: lllyasviel's, diffusers', musubi-tuner's.

Nothing of theirs is imported before it is asked for, and what they change of PyTorch and accelerate
for all is taken back, so that nobody is measured with it.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from speed_timing import Memory, Took, synchronize
from torch import Tensor, nn
from train_full_size import RANK, WARMUP
from training_files import DIT

from framepack_core.models.vae import AutoencoderKL

if TYPE_CHECKING:
    from speed import Bench

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


@contextlib.contextmanager
def _unpatched() -> Iterator[None]:
    from accelerate import accelerator

    kept = nn.LayerNorm.forward, accelerator.convert_outputs_to_fp32
    try:
        yield
    finally:
        nn.LayerNorm.forward, accelerator.convert_outputs_to_fp32 = kept


def _packed(bench: Bench, kind: type[nn.Module], **options: Any) -> Any:
    """Another's DiT, with parameters of the same names, on the shared weights."""
    with torch.device("meta"):
        dit = kind(**bench.size.config.to_dict(), **options)
    dit.load_state_dict(bench.state, assign=True)
    return dit.eval().requires_grad_(False)


def lllyasviel_dit(bench: Bench) -> Any:
    sys.path.append(str(bench.args.lllyasviel))
    with _unpatched():
        from diffusers_helper.models.hunyuan_video_packed import (
            HunyuanVideoTransformer3DModelPacked,
        )
    dit = _packed(bench, HunyuanVideoTransformer3DModelPacked)
    dit.high_quality_fp32_output_for_inference = True
    dit.initialize_teacache(enable_teacache=False)
    return dit


def _history(bench: Bench) -> dict[str, Tensor]:
    """A section's own arguments as lllyasviel's model names them."""
    task = bench.inputs.task
    context = task.context
    return {
        "latent_indices": task.latent_indices,
        "clean_latents": context.clean,
        "clean_latent_indices": context.clean_indices,
        "clean_latents_2x": context.clean_2x,
        "clean_latent_2x_indices": context.clean_2x_indices,
        "clean_latents_4x": context.clean_4x,
        "clean_latent_4x_indices": context.clean_4x_indices,
        "image_embeddings": bench.inputs.guided.image_embeds,
    }


def lllyasviel_pass(bench: Bench, sigma: Tensor) -> Callable[[], Tensor]:
    """The pass of `pass_rows` by lllyasviel's model."""
    dit, (text, *_), task = lllyasviel_dit(bench), bench.inputs.guided, bench.inputs.task
    mask = torch.ones(text.text.shape[:2], dtype=torch.long, device=bench.device)
    guidance = torch.tensor([1000 * bench.inputs.guided.guidance], device=bench.device)

    @torch.no_grad()
    def run() -> Tensor:
        return dit(
            hidden_states=task.noise.to(bench.size.dtype),
            timestep=1000 * sigma,
            encoder_hidden_states=text.text,
            encoder_attention_mask=mask,
            pooled_projections=text.pooled,
            guidance=guidance,
            return_dict=False,
            **_history(bench),
        )[0]

    return run


def lllyasviel_section(bench: Bench, steps: int) -> Callable[[], Tensor]:
    """A section of so many steps by lllyasviel's sampler."""
    dit, (text, *_), side = lllyasviel_dit(bench), bench.inputs.guided, bench.size.side
    from diffusers_helper.pipelines.k_diffusion_hunyuan import sample_hunyuan

    mask = torch.ones(text.text.shape[:2], dtype=torch.long, device=bench.device)
    prompts = {"embeds": text.text, "embeds_mask": mask, "poolers": text.pooled}
    negative = {f"negative_prompt_{n}": torch.zeros_like(x) for n, x in prompts.items()}
    positive = {f"prompt_{n}": x for n, x in prompts.items()}
    return lambda: sample_hunyuan(
        transformer=dit,
        width=side,
        height=side,
        frames=4 * bench.size.window - 3,
        real_guidance_scale=1.0,
        distilled_guidance_scale=bench.inputs.guided.guidance,
        num_inference_steps=steps,
        generator=torch.Generator("cpu").manual_seed(0),
        device=bench.device,
        dtype=bench.size.dtype,
        **positive,
        **negative,
        **_history(bench),
    )


class DiffusersVAE:
    """diffusers' VAE on the weights of ours, taking and giving what ours does."""

    def __init__(self, vae: AutoencoderKL) -> None:
        from diffusers import AutoencoderKLHunyuanVideo

        self.scale = vae.config.scaling_factor
        with torch.device("meta"):
            self.vae = AutoencoderKLHunyuanVideo.from_config(_diffusers_config(vae))
        self.vae.load_state_dict(vae.state_dict(), assign=True)
        self.vae.eval().requires_grad_(False)

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Meanwhile without the pieces of few frames, its default, that blend into one another."""
        vae = self.vae
        vae.use_framewise_encoding = vae.use_framewise_decoding = False
        yield
        vae.use_framewise_encoding = vae.use_framewise_decoding = True

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents / self.scale).sample

    def encode(self, video: Tensor) -> Tensor:
        return self.vae.encode(video).latent_dist.mode() * self.scale


def _diffusers_config(vae: AutoencoderKL) -> dict[str, Any]:
    count = len(vae.config.block_out_channels)
    kinds = {"down": "HunyuanVideoDownBlock3D", "up": "HunyuanVideoUpBlock3D"}
    blocks = {f"{way}_block_types": (kind,) * count for way, kind in kinds.items()}
    return asdict(vae.config) | blocks


def decoded_as_lllyasviel(vae: DiffusersVAE, bench: Bench, latents: Tensor) -> Tensor:
    """Sections from the last one on, each with the one after it, joined in main memory."""
    sys.path.append(str(bench.args.lllyasviel))
    with _unpatched():
        from diffusers_helper.utils import soft_append_bcthw
    window, total = bench.size.window, latents.shape[2]
    pixels = None
    for start in range(total - window, 0, -window):
        first = 0 if start == 1 else start
        clip = vae.decode(latents[:, :, first : start + 2 * window]).cpu()
        pixels = clip if pixels is None else soft_append_bcthw(clip, pixels, 4 * window - 3)
    assert pixels is not None
    return pixels


def musubi_training(bench: Bench) -> Took:
    """A step of musubi-tuner's whole training command, with a clock at each update."""
    sys.path.append(str(bench.args.musubi_tuner / "src"))
    from musubi_tuner import fpack_train_network as musubi
    from musubi_tuner.hv_train_network import setup_parser_common

    times: list[float] = []
    state = {name: x.to(bench.size.dtype) for name, x in bench.state.items()}
    memory = Memory(bench.weights)

    class Timed(musubi.FramePackNetworkTrainer):
        def load_transformer(self, *_: object, **__: object) -> Any:
            kind = musubi.HunyuanVideoTransformer3DModelPacked
            with torch.device("meta"):
                dit = kind(**bench.size.config.to_dict(), attn_mode="torch")
            dit.load_state_dict(state, assign=True)
            return dit

        def on_post_optimizer_step(self, *given: Any) -> Any:
            synchronize()
            times.append(time.perf_counter())
            return super().on_post_optimizer_step(*given)

    with tempfile.TemporaryDirectory() as output:
        parser = musubi.framepack_setup_parser(setup_parser_common())
        given = parser.parse_args(_musubi_options(bench, Path(output)))
        # What its own main() sets before it trains.
        given.vae_dtype, given.dit_dtype, given.sample_solver = "float16", "bfloat16", "unipc"
        Timed().train(given)
    seconds = (times[-1] - times[WARMUP - 1]) / bench.args.steps
    return Took(seconds, memory.peak)


def _musubi_options(bench: Bench, output: Path) -> list[str]:
    size, dataset = bench.size, output / "dataset.toml"
    values = {"side": size.side, "window": size.window, "frames": 1 + 4 * size.window}
    dataset.write_text(DATASET.format(folder=bench.files, **values), encoding="utf-8")
    values = {
        "dit": bench.files / DIT,
        "dataset_config": dataset,
        "mixed_precision": "bf16",
        "timestep_sampling": "shift",
        "weighting_scheme": "none",
        "discrete_flow_shift": 3.0,
        "optimizer_type": "adamw",
        "learning_rate": 2e-4,
        "network_module": "networks.lora_framepack",
        "network_dim": RANK,
        "network_alpha": RANK,
        "max_train_steps": WARMUP + bench.args.steps,
        "max_data_loader_n_workers": 2,
        "output_dir": output,
        "output_name": "bench",
        "seed": 42,
    }
    switches = ("sdpa", "gradient_checkpointing", "persistent_data_loader_workers")
    flags = [text for name, value in values.items() for text in (f"--{name}", str(value))]
    return [*flags, *(f"--{name}" for name in switches)]
