"""The ComfyUI nodes: thin over framepack_core, which knows nothing of ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .condition import Canvas, StartFrame, TextEncode
from .decode import Decode, LoadLatent, SaveLatent
from .load import LoadImageEncoder, LoadModel, LoadSnapshot, LoadTextEncoders, LoadVAE
from .sample import Sampler
from .sections import PlanVideo
from .toyworld import ToyWorldScene

NODES: list[type[io.ComfyNode]] = [
    LoadModel,
    LoadTextEncoders,
    LoadVAE,
    LoadImageEncoder,
    LoadSnapshot,
    TextEncode,
    Canvas,
    StartFrame,
    PlanVideo,
    Sampler,
    Decode,
    SaveLatent,
    LoadLatent,
    ToyWorldScene,
]


class FramePackReel(ComfyExtension):
    """What ComfyUI asks for the nodes of this pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
