"""Our VAE, text encoders and image encoder as ComfyUI's own VAE, CLIP and CLIP_VISION objects.

Like the MODEL they are built from ComfyUI's layers and owned by its ModelPatcher.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.model_management
import comfy.ops
import comfy.sd
import torch
from torch import Tensor, nn

from ...framepack_core.models import build
from ...framepack_core.models.image import preprocess
from ...framepack_core.models.text import PromptTokens, TextEncoders, clip_pooled, llama_states
from ...framepack_core.models.vae import AutoencoderKL
from ...framepack_core.weights.layouts import Component
from .model import LATENT_SCALE, managed
from .quantised import EmulatingOps, holds_quantised
from .sockets import to_uint8

mm = comfy.model_management

VAE_CHUNK_FRAMES = 8
COMFY = Path(comfy.sd.__file__).parent
COMFY_TOKENIZERS: dict[Component, Path] = {
    "llama": COMFY / "text_encoders" / "llama_tokenizer",
    "clip": COMFY / "sd1_tokenizer",
}


class UnscaledVAE(nn.Module):
    """Our VAE on the unscaled latents that ComfyUI's LATENT holds."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def encode(self, pixels: Tensor) -> Tensor:
        return self.vae.encode(pixels) / LATENT_SCALE

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents * LATENT_SCALE)


class FramePackVAE(comfy.sd.VAE):
    """A VAE of framepack_core where ComfyUI looks for one of its own."""

    def __init__(self, path: Path, dtype: torch.dtype | None = None) -> None:
        with _muted():  # without weights the base class sets its attributes, warns and returns
            super().__init__(sd={})
        self.device = mm.vae_device()
        self.working_dtypes = [torch.float16, torch.bfloat16, torch.float32]
        self.vae_dtype = dtype or mm.vae_dtype(self.device, self.working_dtypes)
        vae = build.load_vae(path, dtype=self.vae_dtype, ops=comfy.ops.manual_cast)
        vae.chunk_size = VAE_CHUNK_FRAMES
        self.first_stage_model = UnscaledVAE(vae)
        self.output_device = mm.intermediate_device()
        self.patcher = managed(self.first_stage_model, self.device, mm.vae_offload_device())
        self._describe(vae)

    def _describe(self, vae: AutoencoderKL) -> None:
        """Sizes and memory, as the base class would set them for a HunyuanVideo VAE."""
        time, space = vae.config.temporal_compression_ratio, vae.config.spatial_compression_ratio
        self.latent_dim, self.latent_channels = 3, vae.config.latent_channels
        self.upscale_ratio = (lambda n: max(0, (n - 1) * time + 1), space, space)
        self.upscale_index_formula = (time, space, space)
        self.downscale_ratio = (lambda n: max(0, (n - 1) // time + 1), space, space)
        self.downscale_index_formula = (time, space, space)
        self.memory_used_encode = _memory_estimate(ENCODE_PEAK, 1, 1)
        self.memory_used_decode = _memory_estimate(DECODE_PEAK, time, space)
        self.size = mm.module_size(self.first_stage_model)

    def get_sd(self) -> dict[str, Tensor]:
        """The checkpoint's own names, which ComfyUI and we both load."""
        return self.first_stage_model.vae.state_dict()


# Numbers held at the peak for each pixel of each frame, counted at the released size.
ENCODE_PEAK = 700
DECODE_PEAK = 1000


def _memory_estimate(peak: int, time: int, space: int) -> Any:
    def estimate(shape: tuple[int, ...], dtype: torch.dtype) -> int:
        frames, height, width = shape[2] * time, shape[3] * space, shape[4] * space
        return frames * height * width * peak * mm.dtype_size(dtype)

    return estimate


@contextmanager
def _muted() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


class PromptTokenizer:
    """Tokenizes a prompt for both encoders; ComfyUI's weight syntax stays plain text."""

    def __init__(self, encoders: TextEncoders) -> None:
        self.encoders = encoders

    def tokenize_with_weights(
        self,
        text: str,
        return_word_ids: bool = False,
        system_prompt: str | None = None,
        **options: Any,
    ) -> PromptTokens:
        return self.encoders.tokenize(text, system_prompt)

    def state_dict(self) -> dict[str, Tensor]:
        return {}


class TextStage(nn.Module):
    """Both text encoders behind the calls that ComfyUI's CLIP makes."""

    def __init__(self, encoders: TextEncoders, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.llama, self.clip = encoders.llama, encoders.clip
        self.dtypes = {dtype}
        self.execution_device = device

    def reset_clip_options(self) -> None:
        """There is none to reset: the layer that FramePack reads is part of the model."""

    def set_clip_options(self, options: Mapping[str, Any]) -> None:
        self.execution_device = options.get("execution_device", self.execution_device)

    def encode_token_weights(self, tokens: PromptTokens) -> tuple[Tensor, Tensor]:
        """The words [1, L, 4096] and the pooled vector [1, 768], in fp32."""
        target = {"device": mm.intermediate_device(), "dtype": torch.float32}
        words, pooled = self.states(tokens)
        return words.to(**target), pooled.to(**target)

    def states(self, tokens: PromptTokens) -> tuple[Tensor, Tensor]:
        device = self.execution_device
        move_buffers(self, device)
        words = llama_states(self.llama, tokens.llama_ids.to(device), tokens.crop)
        return words, clip_pooled(self.clip, tokens.clip_ids.to(device))


def load_clip(llama: Path, clip: Path, dtype: torch.dtype | None = None) -> comfy.sd.CLIP:
    """A CLIP of both text encoders; dtype None is ComfyUI's choice, fp32 on a CPU."""
    device, offload = mm.text_encoder_device(), mm.text_encoder_offload_device()
    dtype = dtype or _encoder_dtype(device)
    encoders = build.load_text_encoders(
        llama, clip, dtype=dtype, ops=EmulatingOps, tokenizers=COMFY_TOKENIZERS
    )
    stage = TextStage(encoders, dtype, device)
    out = comfy.sd.CLIP(no_init=True)
    out.cond_stage_model, out.tokenizer = stage, PromptTokenizer(encoders)
    # Where ComfyUI streams weights by itself, it takes quantised ones for whole numbers.
    out.patcher = managed(stage, device, offload, disable_dynamic=holds_quantised(stage))
    out.patcher.is_clip = True
    out.layer_idx, out.use_clip_schedule = None, False
    out.tokenizer_options, out.apply_hooks_to_conds = {}, None
    return out


def _encoder_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if mm.is_device_cpu(device) else mm.text_encoder_dtype(device)


def move_buffers(module: nn.Module, device: torch.device) -> None:
    """Positions and rotary tables; ComfyUI moves them only with a model that is loaded whole."""
    for child in module.modules():
        for name, buffer in child.named_buffers(recurse=False):
            child._buffers[name] = buffer.to(device)


class FramePackCLIPVision:
    """Our SigLIP behind the one call that ComfyUI makes of a CLIP_VISION."""

    def __init__(self, path: Path, dtype: torch.dtype | None = None) -> None:
        self.load_device = mm.text_encoder_device()
        self.dtype = dtype or _encoder_dtype(self.load_device)
        encoder = build.load_image_encoder(path, dtype=self.dtype, ops=comfy.ops.manual_cast)
        self.model, self.image_size = encoder.model, encoder.image_size
        offload = mm.text_encoder_offload_device()
        self.patcher = managed(self.model, self.load_device, offload)

    def encode_image(self, image: Tensor, crop: bool = True) -> comfy.clip_vision.Output:
        """Patch vectors of IMAGE [N, H, W, 3], squashed to a square unless `crop` cuts one out."""
        mm.load_model_gpu(self.patcher)
        move_buffers(self.model, self.load_device)
        if crop:
            image = _central_square(image)
        pixels = [preprocess(frame, self.image_size) for frame in to_uint8(image)]
        with torch.no_grad():
            hidden = self.model(torch.cat(pixels).to(self.load_device, self.dtype))
        out = comfy.clip_vision.Output()
        out["last_hidden_state"] = hidden.to(mm.intermediate_device(), torch.float32)
        out["image_sizes"] = [(3, self.image_size, self.image_size)] * len(pixels)
        return out


def _central_square(image: Tensor) -> Tensor:
    height, width = image.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[:, top : top + side, left : left + side]
