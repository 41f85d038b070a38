"""The ComfyUI nodes: thin over framepack_core, which knows nothing of ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .batch import PromptFile
from .condition import Canvas, StartFrame, TextEncode
from .decode import Decode, LoadLatent, SaveLatent
from .guide import EndFrame, GuideSections, PromptSchedule
from .load import LoadImageEncoder, LoadModel, LoadSnapshot, LoadTextEncoders, LoadVAE
from .one_frame import ControlImage, MakeOneFrame
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
    GuideSections,
    PromptSchedule,
    EndFrame,
    Sampler,
    ControlImage,
    MakeOneFrame,
    Decode,
    SaveLatent,
    LoadLatent,
    PromptFile,
    ToyWorldScene,
]


class FramePackReel(ComfyExtension):
    """What ComfyUI asks for the nodes of this pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
