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


def _file(component: Component, repository: str, path: str, folder: str = "") -> ReleasedFile:
    name = folder + path.rpartition("/")[2]
    return ReleasedFile(component, name, _HUB.format(repository, path))


def _shards(folder: str, count: int = 3) -> tuple[ReleasedFile, ...]:
    ends = (f"{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1))
    return tuple(
        _file("dit", f"lllyasviel/{folder}", f"diffusion_pytorch_model-{end}", f"{folder}/")
        for end in ends
    )


# The files of one model together, the one that a loader names first.
RELEASED: dict[Component, tuple[ReleasedFile, ...]] = {
    "dit": (_file("dit", "Kijai/HunyuanVideo_comfy", "FramePackI2V_HY_bf16.safetensors"),),
    "vae": (_file("vae", _COMFY, "split_files/vae/hunyuan_video_vae_bf16.safetensors"),),
    "llama": (_file("llama", _COMFY, "split_files/text_encoders/llava_llama3_fp16.safetensors"),),
    "clip": (_file("clip", _COMFY, "split_files/text_encoders/clip_l.safetensors"),),
    "image_encoder": (
        _file(
            "image_encoder",
            "Comfy-Org/sigclip_vision_384",
            "sigclip_vision_patch14_384.safetensors",
        ),
    ),
}
# In a folder of their own: the shards of the original model have the same names.
RELEASED_F1 = _shards("FramePack_F1_I2V_HY_20250503")


def released_with(name: str) -> tuple[ReleasedFile, ...]:
    """All files of the published model that a name begins, or none."""
    sets = (*RELEASED.values(), RELEASED_F1)
    return next((files for files in sets if files[0].name == name), ())
