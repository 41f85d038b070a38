"""Where the published files of each component are, and the folder of ComfyUI each belongs in."""

from __future__ import annotations

from dataclasses import dataclass

from .layouts import Component

_HUB = "https://huggingface.co/{}/resolve/main/{}"
_COMFY = "Comfy-Org/HunyuanVideo_repackaged"

COMFYUI_FOLDERS: dict[Component, str] = {
    "dit": "diffusion_models",
    "vae": "vae",
    "llama": "text_encoders",
    "clip": "text_encoders",
    "image_encoder": "clip_vision",
}


@dataclass(frozen=True)
class ReleasedFile:
    """A file by its name below a folder of ComfyUI's models, and where it is downloaded."""

    component: Component
    name: str
    url: str

    @property
    def folder(self) -> str:
        return COMFYUI_FOLDERS[self.component]


def _file(component: Component, repository: str, path: str) -> ReleasedFile:
    name = path.rpartition("/")[2]
    return ReleasedFile(component, name, _HUB.format(repository, path))


# Single files: ComfyUI offers those that a widget names, and never the further shards of a model.
RELEASED: dict[Component, ReleasedFile] = {
    "dit": _file("dit", "Kijai/HunyuanVideo_comfy", "FramePackI2V_HY_bf16.safetensors"),
    "vae": _file("vae", _COMFY, "split_files/vae/hunyuan_video_vae_bf16.safetensors"),
    "llama": _file("llama", _COMFY, "split_files/text_encoders/llava_llama3_fp16.safetensors"),
    "clip": _file("clip", _COMFY, "split_files/text_encoders/clip_l.safetensors"),
    "image_encoder": _file(
        "image_encoder", "Comfy-Org/sigclip_vision_384", "sigclip_vision_patch14_384.safetensors"
    ),
}
# In one file; the three shards of lllyasviel's have the names of the original model's.
RELEASED_F1 = _file(
    "dit",
    "kabachuha/FramePack_F1_I2V_HY_20250503_comfy",
    "FramePack_F1_I2V_HY_20250503.safetensors",
)


def released_as(name: str) -> ReleasedFile | None:
    """The published file of a name."""
    return next((file for file in (*RELEASED.values(), RELEASED_F1) if file.name == name), None)
