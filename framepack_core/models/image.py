"""The SigLIP image encoder (arXiv:2303.15343), run through transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .text import make_position_ids

if TYPE_CHECKING:  # slow to import, and ComfyUI has an encoder of its own
    from transformers import SiglipVisionConfig

# The released encoder, for files that come without a config.json.
SIGLIP_CONFIG: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 384,
    "patch_size": 14,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
# Checkpoints hold a pooling head under this name; the DiT reads the patches, so it is not built.
HEAD_PREFIX = "vision_model.head."


class SiglipVision(nn.Module):
    """SigLIP's vision transformer: pixels [B, 3, S, S] to one normed vector a patch [B, N, C]."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        from transformers import SiglipVisionModel

        super().__init__()
        model = SiglipVisionModel(config)
        # transformers 4 has the transformer one level down, under the checkpoint's own name.
        self.vision_model = getattr(model, "vision_model", model)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.vision_model(pixels).last_hidden_state


def siglip_model(config: Mapping[str, Any]) -> SiglipVision:
    """A SigLIP of this config.json: parameters on the meta device, buffers real, no head."""
    from transformers import SiglipVisionConfig

    with torch.device("meta"):
        model = SiglipVision(SiglipVisionConfig.from_dict({**config, "vision_use_head": False}))
    make_position_ids(model.vision_model.embeddings)
    return model.eval()


def preprocess(image: np.ndarray, size: int) -> Tensor:
    """uint8 [H, W, 3] to float32 [1, 3, size, size] in -1..1, by PIL's antialiased bicubic."""
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(resized, dtype=np.float32) / 255)
    return (pixels.permute(2, 0, 1)[None] - 0.5) / 0.5


@dataclass(frozen=True)
class ImageEncoder:
    """SigLIP with its picture size; it runs in the dtype and on the device it is on."""

    model: SiglipVision
    image_size: int

    @torch.no_grad()
    def encode(self, image: np.ndarray) -> Tensor:
        """One vector a patch, [1, 729, 1152], of a uint8 picture [H, W, 3] of any size."""
        weight = next(self.model.parameters())
        return self.model(preprocess(image, self.image_size).to(weight))
