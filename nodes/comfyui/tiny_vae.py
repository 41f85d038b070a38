"""TAEHV, the small VAE that ComfyUI takes for previews: a section as it moves, in a moment.

Facts: ComfyUI finds it in models/vae_approx by the name in its latent formats
(latent_preview.get_previewer), and loads it as a VAE, whose pixels are 0..1 (comfy/sd.py).
"""

from __future__ import annotations

import io
import time
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
from PIL import Image
from torch import Tensor

from ...framepack_core.runtime.display import Display
from ...framepack_core.sampling.plan import FPS
from .model import LATENT_SCALE
from .sockets import to_uint8

FOLDER = "vae_approx"
LARGEST, QUALITY = 256, 75  # of a moving picture: pixels of a side, and of WebP
SHARE = 0.1  # of the time, at most, goes into moving pictures

mm = comfy.model_management


def tiny_vae(patcher: Any) -> Any | None:
    """ComfyUI's small VAE for the latents of a model; None where there is none to use."""
    model, found = patcher.model, None
    with Display("small VAE of previews"):
        name = getattr(model.latent_format, "taesd_decoder_name", None)
        known = getattr(model, "trained_for", None)
        own = known is not None and known.latent_rgb is not None
        files = [] if own or not name else folder_paths.get_filename_list(FOLDER)
        file = next((file for file in files if file.startswith(name)), None)
        if file is not None:
            path = folder_paths.get_full_path(FOLDER, file)
            found = comfy.sd.VAE(comfy.utils.load_torch_file(path))
    return found


class MovingPicture:
    """Sections in progress at the video's own rate, as far as time and memory allow it.

    vae: from `tiny_vae`.
    """

    def __init__(self, vae: Any) -> None:
        self.vae, self._next = vae, time.monotonic()

    def shoot(self, denoised: Tensor) -> bytes | None:
        """Model-ready latents [B, C, T, h, w] as a WebP that plays again and again.

        None where it is too early after the one before, or other models would have to leave the
        device for it.
        """
        began = time.monotonic()
        if began < self._next or not self._fits(denoised):
            return None
        frames = to_uint8(self.vae.decode(denoised[:1] / LATENT_SCALE).flatten(0, 1))
        pictures = [Image.fromarray(frame) for frame in frames]
        for picture in pictures:
            picture.thumbnail((LARGEST, LARGEST))
        data, (first, *others) = io.BytesIO(), pictures
        options = {"save_all": True, "append_images": others, "duration": 1000 // FPS, "loop": 0}
        first.save(data, format="WEBP", quality=QUALITY, method=0, **options)
        ended = time.monotonic()
        self._next = ended + (ended - began) * (1 / SHARE - 1)
        return data.getvalue()

    def _fits(self, latents: Tensor) -> bool:
        """Whether there is memory for a decode besides all that is on the device now."""
        vae = self.vae
        if mm.is_device_cpu(vae.device):
            return True
        needed = vae.memory_used_decode(latents[:1].shape, vae.vae_dtype)
        return needed + vae.patcher.model_size() < mm.get_free_memory(vae.device)
