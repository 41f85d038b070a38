"""The host's side of a run: model folders, pictures and latents as sockets carry them, progress."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import latent_preview
import numpy as np
import torch
from PIL import Image
from server import PromptServer
from torch import Tensor

from ...framepack_core.runtime.display import Display, stops_a_run
from ...framepack_core.runtime.errors import FramePackError
from ...framepack_core.weights.layouts import F1_FOLDER, FOLDERS, SHARD, Component
from .model import LATENT_SCALE

# In ComfyUI before 0.33 it is an Exception like any other, and would be taken for a failed display.
stops_a_run(comfy.model_management.InterruptProcessingException)

LATENT_CHANNELS = 16
PREVIEW_FRAMES = 3
SNAPSHOTS = "diffusers"  # where ComfyUI keeps models that are folders
WINDOW_KEY = "framepack_window"

Preview = tuple[str, Image.Image, int]  # file format, picture and the largest side to show it with

FILE_FOLDERS: dict[Component, str] = {
    "dit": "diffusion_models",
    "vae": "vae",
    "llama": "text_encoders",
    "clip": "text_encoders",
    "image_encoder": "clip_vision",
}


# Model folders


def model_choices(component: Component) -> list[str]:
    """Files of a component's folder, a sharded model once, then folders of models/diffusers."""
    files = folder_paths.get_filename_list(FILE_FOLDERS[component])
    files = [name for name in files if not _is_later_shard(name)]
    return [name.replace("\\", "/") for name in files] + _component_folders(component)


def snapshot_choices() -> list[str]:
    """Folders of models/diffusers with a sub-folder for each component."""
    folders = (PurePosixPath(name) for name in _weight_folders())
    return sorted({str(folder.parent) for folder in folders if folder.name in _TRANSFORMERS})


def model_path(component: Component, name: str) -> Path:
    """The file or folder that a choice stands for."""
    return _find(name, FILE_FOLDERS[component], SNAPSHOTS)


def snapshot_path(name: str) -> Path:
    return _find(name, SNAPSHOTS)


def input_path(name: str) -> Path:
    """A file of ComfyUI's input folder, or with " [output]" behind its name of that folder."""
    folders = folder_paths.get_input_directory(), folder_paths.get_output_directory()
    try:
        path = Path(folder_paths.get_annotated_filepath(name))
        inside = any(is_inside(path, folder) for folder in folders)
    except (ValueError, OSError):  # newer versions of ComfyUI refuse it themselves
        inside = False
    if not inside:
        raise FramePackError(f"{name}: outside of ComfyUI's input folder; put the file there")
    return path


def output_names(
    prefix: str, width: int = 0, height: int = 0, root: str | None = None
) -> tuple[Path, str, int, str]:
    """Folder, start of the name, first free number and sub-folder of new files.

    They are in ComfyUI's output folder, or in another root.
    """
    root = root or folder_paths.get_output_directory()
    place = Path(root) / os.path.dirname(os.path.normpath(prefix))
    if "\0" in prefix or not is_inside(place, root):
        raise FramePackError(f"file name {prefix}: outside of {root}; leave the folder out")
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, root, width, height
    )
    return Path(folder), name, counter, subfolder


def is_inside(path: Path, folder: Path | str) -> bool:
    """Whether a path is below a folder, wherever symbolic links lead."""
    return path.resolve().is_relative_to(Path(folder).resolve())


_TRANSFORMERS = (FOLDERS["dit"], F1_FOLDER)
_OTHERS = set(FOLDERS.values()) - {FOLDERS["dit"]}


def _is_later_shard(name: str) -> bool:
    shard = SHARD.fullmatch(Path(name).stem)
    return shard is not None and int(shard["number"]) > 1


def _component_folders(component: Component) -> list[str]:
    """Of models/diffusers; a DiT may lie in a folder of any name, the others have their own."""
    folders = [PurePosixPath(name) for name in _weight_folders()]
    if component == "dit":
        return [str(folder) for folder in folders if folder.name not in _OTHERS]
    return [str(folder) for folder in folders if folder.name == FOLDERS[component]]


def _weight_folders() -> list[str]:
    """Folders below models/diffusers that hold weights, through ComfyUI's cached listing."""
    key = "framepack_diffusers"
    if key not in folder_paths.folder_names_and_paths:
        roots = folder_paths.get_folder_paths(SNAPSHOTS)
        folder_paths.folder_names_and_paths[key] = (roots, folder_paths.supported_pt_extensions)
    files = folder_paths.get_filename_list(key)
    parents = {PurePosixPath(name.replace("\\", "/")).parent for name in files}
    return sorted(str(parent) for parent in parents if parent.name)


def _find(name: str, *folders: str) -> Path:
    """A name cannot climb out of its folder; links that a user has put there are followed."""
    for folder in folders:
        for root in map(os.path.abspath, folder_paths.get_folder_paths(folder)):
            path = Path(os.path.normpath(os.path.join(root, name)))
            if path.exists() and path.is_relative_to(root):
                return path
    raise FramePackError(f"{name} is not in models/{' or models/'.join(folders)}")


# Sockets and core types


def to_uint8(image: Tensor) -> np.ndarray:
    """IMAGE [N, H, W, C] in 0..1 to uint8 [N, H, W, 3]."""
    levels = (image[..., :3].float() * 255).round().clamp(0, 255)
    return levels.to("cpu", torch.uint8).numpy()


def to_image(pixels: np.ndarray) -> Tensor:
    """uint8 [N, H, W, 3] to IMAGE."""
    return torch.from_numpy(np.array(pixels)).float() / 255


def to_latents(latent: dict[str, Any], name: str) -> Tensor:
    """The model-ready latents [B, 16, T, h, w] of a LATENT; `name` is the input's, for errors."""
    samples = latent["samples"]
    if samples.ndim != 5 or samples.shape[1] != LATENT_CHANNELS:
        raise FramePackError(
            f"{name}: latents of shape {list(samples.shape)} are not a HunyuanVideo VAE's "
            f"[B, {LATENT_CHANNELS}, T, h, w]; encode the image with FramePack Start Frame"
        )
    return samples.float() * LATENT_SCALE


def to_image_latent(latent: dict[str, Any], name: str) -> Tensor:
    """The model-ready latent [B, 16, 1, h, w] of one image; `name` is the input's, for errors."""
    latents = to_latents(latent, name)
    if latents.shape[2] != 1:
        raise FramePackError(
            f"{name}: {latents.shape[2]} latent frames where one is needed; encode a single "
            "image with FramePack Start Frame"
        )
    return latents


def to_latent(latents: Tensor, **extra: Any) -> dict[str, Any]:
    """Model-ready latents as a LATENT."""
    samples = (latents.float() / LATENT_SCALE).to(comfy.model_management.intermediate_device())
    return {"samples": samples, **extra}


# A run


class NodeText:
    """The text on a node while it runs."""

    def __init__(self, node_id: str) -> None:
        self.node_id, self._display = node_id, Display("text on the node")

    def show(self, text: str) -> None:
        """Replace it."""
        server = getattr(PromptServer, "instance", None)
        if server is not None:
            with self._display:
                server.send_progress_text(text, self.node_id)


def show_text(node_id: str, text: str) -> None:
    """Write a line on the node."""
    NodeText(node_id).show(text)


class NodeBar:
    """The progress bar of the node that runs, and its picture."""

    def __init__(self, total: int = 1) -> None:
        self._display, self._bar = Display("progress bar"), None
        with self._display:
            self._bar = comfy.utils.ProgressBar(total)

    def move_to(self, done: int, total: int, preview: Preview | None = None) -> None:
        """So many are done; raises where the user has cancelled the run."""
        if self._bar is not None:
            with self._display:
                self._bar.update_absolute(done, total, preview)
        comfy.model_management.throw_exception_if_processing_interrupted()


class RunProgress:
    """One bar over all sections and steps, with the section being made as its preview."""

    def __init__(self, node_id: str, sections: int, patcher: Any, steps: int) -> None:
        self.sections, self.steps = sections, steps
        self.text, self.bar = NodeText(node_id), NodeBar(sections * steps)
        self._display, self._preview = Display("preview of the section in progress"), None
        with self._display:
            self._preview = section_previewer(patcher)

    def step(self, order: int, step: int, denoised: Tensor) -> None:
        """Report that step 1, 2, ... of section 0, 1, ... is done; raises to stop the run."""
        self.text.show(f"section {order + 1} of {self.sections}, step {step} of {self.steps}")
        preview = None
        if self._preview is not None:
            with self._display:
                preview = self._preview(denoised)
        done = order * self.steps + step
        self.bar.move_to(done, self.sections * self.steps, preview)


def section_previewer(patcher: Any) -> Callable[[Tensor], Preview] | None:
    """Latents [B, C, T, h, w] to a strip of frames, if the user's preview method is not "none"."""
    previewer = latent_preview.get_previewer(patcher.load_device, patcher.model.latent_format)
    if previewer is None:
        return None
    shoot = previewer.decode_latent_to_preview_image

    def preview(latents: Tensor) -> Preview:
        kind, _, largest = shoot("JPEG", latents[:1, :, :1])
        return kind, strip_of(lambda frame: shoot("JPEG", frame)[1], latents), largest

    return preview


def strip_of(shoot: Callable[[Tensor], Image.Image], latents: Tensor) -> Image.Image:
    """First, middle and last frame of latents [B, C, T, h, w] beside each other."""
    last = latents.shape[2] - 1
    count = min(PREVIEW_FRAMES, last + 1)
    chosen = [round(i * last / max(1, count - 1)) for i in range(count)]
    return _strip([shoot(latents[:1, :, i : i + 1]) for i in chosen])


def _strip(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one size beside each other, or below each other where they are wide."""
    width, height = pictures[0].size
    right, down = (width, 0) if width <= height else (0, height)
    last = len(pictures) - 1
    strip = Image.new("RGB", (width + right * last, height + down * last))
    for i, picture in enumerate(pictures):
        strip.paste(picture, (right * i, down * i))
    return strip
