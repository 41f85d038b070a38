"""The tokenizers of the text encoders, which files from ComfyUI's model folders come without."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..runtime.errors import FramePackError
from .layouts import TOKENIZERS, Component, find_component, is_tokenizer

REPOSITORY = "hunyuanvideo-community/HunyuanVideo"
COMFYUI: dict[Component, Path] = {
    "llama": Path("comfy", "text_encoders", "llama_tokenizer"),
    "clip": Path("comfy", "sd1_tokenizer"),
}
"""Where a ComfyUI folder has them."""


def find_tokenizer(
    path: Path | str,
    component: Component,
    *,
    spare: Path | None = None,
    fetch: Callable[[str], None] | None = None,
) -> Path:
    """The folder of an encoder's tokenizer.

    Looked for beside or above the weights, in `spare`, in the ComfyUI whose models folder they are
    in, that COMFYUI_PATH names or that this package is installed in, and in the local Hugging Face
    cache. With `fetch` it is then downloaded, and `fetch` is told so in one line. Raises
    FramePackError with the command that gets it.
    """
    beside = find_component(path, component).tokenizer
    if beside is not None:
        return beside
    hosts = (root / COMFYUI[component] for root in _comfyui_roots(Path(path).expanduser()))
    for folder in (*([spare] if spare else []), *hosts):
        if is_tokenizer(folder):
            return folder
    return _of_hub(path, component, fetch)


def download_command(components: Sequence[Component]) -> str:
    """What a user types to have tokenizers in the local Hugging Face cache."""
    names = " ".join(f'"{TOKENIZERS[component]}/*"' for component in components)
    return f"hf download {REPOSITORY} --include {names}"


def _comfyui_roots(path: Path) -> Iterator[Path]:
    named = os.environ.get("COMFYUI_PATH")
    yield from [Path(named)] if named else []
    yield from path.absolute().parents
    yield from Path(__file__).absolute().parents


def _of_hub(path: Path | str, component: Component, fetch: Callable[[str], None] | None) -> Path:
    name = TOKENIZERS[component]
    found = _snapshot(name, local=True)
    if found is None and fetch is not None:
        fetch(f"fetching {name}/ of https://huggingface.co/{REPOSITORY}, which {path} lacks")
        found = _snapshot(name, local=False)
    if found is None:
        raise FramePackError(
            f"{path} has no tokenizer; get it with: {download_command(list(TOKENIZERS))}"
        )
    return found


def _snapshot(name: str, *, local: bool) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        root = snapshot_download(REPOSITORY, allow_patterns=[f"{name}/*"], local_files_only=local)
    except (OSError, ValueError):  # not in the cache, or no network
        return None
    return Path(root, name) if is_tokenizer(Path(root, name)) else None
