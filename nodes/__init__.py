"""The ComfyUI nodes: thin over framepack_core, which knows nothing of ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from ..framepack_core.runtime.errors import FramePackError
from .batch import PromptFile
from .cache import CacheLatents, CacheText
from .check import Check
from .comfyui import shared_sections  # noqa: F401  its route
from .comfyui.replacements import offer_replacements
from .condition import Canvas, StartFrame, TextEncode
from .dataset import FindDataset, ToyWorldClips
from .decode import Decode, LoadLatent, SaveLatent
from .guide import EndFrame, GuideSections, PromptSchedule
from .load import LoadImageEncoder, LoadModel, LoadSnapshot, LoadTextEncoders, LoadVAE
from .lora import ApplyLora, SaveMerged
from .one_frame import ControlImage, MakeOneFrame
from .sample import Sampler
from .save_video import SaveVideo
from .sections import PlanVideo
from .toyworld import ToyWorldScene
from .train import TrainLora
from .train_config import MakeTrainConfig
from .train_samples import SampleWhileTraining

NODES: list[type[io.ComfyNode]] = [
    LoadModel,
    LoadTextEncoders,
    LoadVAE,
    LoadImageEncoder,
    LoadSnapshot,
    ApplyLora,
    SaveMerged,
    TextEncode,
    Canvas,
    StartFrame,
    PlanVideo,
    GuideSections,
    PromptSchedule,
    EndFrame,
    Check,
    Sampler,
    ControlImage,
    MakeOneFrame,
    Decode,
    SaveVideo,
    SaveLatent,
    LoadLatent,
    PromptFile,
    ToyWorldScene,
    FindDataset,
    CacheLatents,
    CacheText,
    MakeTrainConfig,
    SampleWhileTraining,
    TrainLora,
    ToyWorldClips,
]

# ComfyUI puts an exception's module in front of its name, and both in front of the sentence.
FramePackError.__module__ = "builtins"


class FramePackReel(ComfyExtension):
    """What ComfyUI asks for the nodes of this pack."""

    async def on_load(self) -> None:
        await offer_replacements()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
