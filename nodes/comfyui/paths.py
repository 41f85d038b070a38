"""Where ComfyUI keeps files: models, inputs, outputs; names that cannot lead out of its folders."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import folder_paths
from comfy.cli_args import args as comfy_args

from ...framepack_core.runtime.errors import FramePackError
from ...framepack_core.runtime.files import check_file_name, natural_key
from ...framepack_core.toyworld import F1_END_LORA, OPPOSITE_LORA, TEXT_LORA
from ...framepack_core.training.config import EARLIER_STATE
from ...framepack_core.weights.files import GGUF
from ...framepack_core.weights.layouts import F1_FOLDER, FOLDERS, SHARD, TITLES, Component
from ...framepack_core.weights.released import COMFYUI_FOLDERS, RELEASED, released_as

SNAPSHOTS = "diffusers"  # where ComfyUI keeps models that are folders
NOTHING = "nothing there yet: run to see what to get"  # in place of a file


def model_choices(component: Component) -> list[str]:
    """Files of a component's folder, a sharded model once, then folders of models/diffusers."""
    files = folder_paths.get_filename_list(_listing(COMFYUI_FOLDERS[component]))
    files = [name for name in files if not _is_later_shard(name)]
    found = [name.replace("\\", "/") for name in files] + _component_folders(component)
    return found or [NOTHING]


def check_choice(component: Component, name: str | None) -> bool | str:
    """True, or what to do about a model that is not there; a name that comes by a link is None."""
    if name is None or (name != NOTHING and name in model_choices(component)):
        return True
    folder = f"models/{COMFYUI_FOLDERS[component]}"
    if name == NOTHING:
        file, problem = RELEASED[component], f"no {TITLES[component]} is in {folder}"
    else:
        file, problem = released_as(name), f"{name} is not in {folder}"
    if file is None:
        return f"{problem} or models/{SNAPSHOTS}; choose another"
    return f"{problem}: download {file.url} into {folder}, then press R and choose it"


def snapshot_choices() -> list[str]:
    """Folders of models/diffusers with a sub-folder for each component."""
    folders = (PurePosixPath(name) for name in _weight_folders())
    return sorted({str(folder.parent) for folder in folders if folder.name in _TRANSFORMERS})


def model_path(component: Component, name: str) -> Path:
    """The file or folder that a choice stands for."""
    return _find(name, COMFYUI_FOLDERS[component], SNAPSHOTS)


def snapshot_path(name: str) -> Path:
    return _find(name, SNAPSHOTS)


def input_folder() -> Path:
    return Path(folder_paths.get_input_directory())


def output_folder() -> Path:
    return Path(folder_paths.get_output_directory())


def temporary_folder() -> Path:
    return Path(folder_paths.get_temp_directory())


def lora_folder() -> Path:
    """Where new LoRAs belong, of all folders where ComfyUI finds some."""
    return Path(folder_paths.get_folder_paths("loras")[0])


def diffusion_models_folder() -> Path:
    return Path(folder_paths.models_dir, "diffusion_models")


def input_files(suffix: str) -> list[str]:
    """Names of the files in ComfyUI's input folder, without those of sub-folders."""
    return sorted((path.name for path in input_folder().glob(f"[!.]*{suffix}")), key=natural_key)


def input_path(name: str) -> Path:
    """A file of ComfyUI's input folder, or with " [output]" behind its name of that folder."""
    folders = input_folder(), output_folder()
    try:
        path = Path(folder_paths.get_annotated_filepath(name))
        inside = any(is_inside(path, folder) for folder in folders)
    except (ValueError, OSError):  # newer versions of ComfyUI refuse it themselves
        inside = False
    if not inside:
        raise FramePackError(f"{name}: outside of ComfyUI's input folder; put the file there")
    return path


def output_names(
    prefix: str, width: int = 0, height: int = 0, root: Path | None = None
) -> tuple[Path, str, int, str]:
    """Folder, start of the name, first free number and sub-folder of new files.

    They are in ComfyUI's output folder, or in another root.
    """
    root = root or output_folder()
    if "\0" in prefix:
        raise FramePackError(f"file name {prefix!r}: no file can have this name; choose another")
    place = root / os.path.dirname(os.path.normpath(prefix))
    if not is_inside(place, root):
        raise FramePackError(f"file name {prefix}: outside of {root}; leave the folder out")
    check_file_name(f"{os.path.basename(os.path.normpath(prefix))}_00001_.safetensors", "file name")
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            prefix, str(root), width, height
        )
    except OSError as error:
        raise FramePackError(f"file name {prefix}: {error.strerror}; choose another") from None
    return Path(folder), name, counter, subfolder


def is_inside(path: Path, folder: Path | str) -> bool:
    """Whether a path is below a folder, wherever symbolic links lead."""
    return path.resolve().is_relative_to(Path(folder).resolve())


def _listing(folder: str) -> str:
    """ComfyUI's name for a folder of models in which GGUF files are listed too."""
    roots, extensions = folder_paths.folder_names_and_paths[folder]
    key = f"framepack_{folder}"
    listed = {*extensions, *GGUF} if extensions else extensions  # none lists all
    folder_paths.folder_names_and_paths[key] = (roots, listed)
    return key


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
            if os.path.exists(path) and path.is_relative_to(root):
                return path
    raise FramePackError(f"{name} is not in models/{' or models/'.join(folders)}")


OPPOSITE, F1_END = "Toy World: opposite (built in)", "Toy World F1: end image (built in)"
TEXT = "Toy World: text to video (built in)"
BUILT_IN_LORAS = {OPPOSITE: OPPOSITE_LORA, F1_END: F1_END_LORA, TEXT: TEXT_LORA}


def lora_choices() -> list[str]:
    """Files of models/loras, named alike on all systems; not the states of trainings."""
    names = folder_paths.get_filename_list("loras")
    return [name.replace("\\", "/") for name in names if not name.endswith(EARLIER_STATE)]


def lora_path(name: str) -> Path:
    """The file that a choice, or a line of more_loras, stands for."""
    if name in BUILT_IN_LORAS:
        return BUILT_IN_LORAS[name]
    wanted = PurePath(name)
    outside = wanted.anchor or ".." in wanted.parts
    path = None if outside else folder_paths.get_full_path("loras", name)
    if path is None:
        raise FramePackError(f"{name} is not in models/loras; choose another file")
    return Path(path)


def trained_path(path: str) -> Path:
    """The file of a training run, which lies where FramePack Train LoRA writes."""
    folders = [*folder_paths.get_folder_paths("loras"), output_folder()]
    if not any(is_inside(Path(path), folder) for folder in folders):
        raise FramePackError(
            f"trained: {path} is neither in models/loras nor in ComfyUI's output folder; connect "
            "the path of FramePack Train LoRA"
        )
    return Path(path)


def metadata_of(values: Mapping[str, Any]) -> dict[str, str]:
    """The workflow and prompt of a node as ComfyUI writes them into files, so that a dropped file
    brings them back; nothing where a user has turned that off.
    """
    if comfy_args.disable_metadata:
        return {}
    return {name: json.dumps(value) for name, value in values.items() if value is not None}
