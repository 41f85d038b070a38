"""A ComfyUI for the tests where this machine has none: `python tests/comfyui/fetch.py [TAG]`.

It goes to .comfyui and its requirements to this Python's environment. Prints nothing if the tests
have a ComfyUI, else the one line that says why they have none.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from comfy_host import FETCHED, PACK, ComfyUI, find_comfyui

REPOSITORY = "https://github.com/comfyanonymous/ComfyUI"
BUILDS = "https://download.pytorch.org/whl"  # an index for each build
NEWEST = "v0.33.0"  # that the pack supports
PATIENCE = 5  # seconds until a server that says nothing counts as unreachable
NAME_ONE = "name a checkout with COMFYUI_PATH"


def fetch(tag: str = NEWEST) -> ComfyUI | str:
    """The ComfyUI that is here, or one that is fetched; else why there is none."""
    found = find_comfyui()
    if isinstance(found, ComfyUI) or "COMFYUI_PATH" in os.environ:
        return found
    try:
        if not FETCHED.is_dir():
            _clone(tag)
        _install(FETCHED / "requirements.txt")
    except urllib.error.URLError as error:
        return f"no ComfyUI, and {error.filename} cannot be reached ({error.reason}): {NAME_ONE}"
    except OSError as error:
        return f"no ComfyUI, and {tag} cannot be fetched ({error}): {NAME_ONE}"
    except subprocess.SubprocessError as error:
        return f"no ComfyUI, and {tag} cannot be installed ({error}): {NAME_ONE}"
    return find_comfyui()


def _clone(tag: str) -> None:
    """Whole or not at all."""
    _reach(REPOSITORY)  # git itself waits for minutes
    print(f"fetching ComfyUI {tag}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=PACK, prefix=".comfyui_") as folder:
        checkout = Path(folder) / "ComfyUI"
        command = ["git", "clone", "--quiet", "--depth", "1", "--branch", tag, REPOSITORY]
        subprocess.run([*command, str(checkout)], check=True, timeout=600)
        shutil.move(checkout, FETCHED)


def _reach(url: str) -> None:
    """Raise what names the URL unless its server answers."""
    try:
        urllib.request.urlopen(url, timeout=PATIENCE).close()
    except urllib.error.URLError as error:
        raise urllib.error.URLError(error.reason, url) from error


def _install(requirements: Path) -> None:
    """ComfyUI asks for any torch; the one that is here stays, with torchvision of its build."""
    torch = importlib.metadata.version("torch")
    index = build_index(torch)
    for url in index[1:]:
        _reach(f"{url}/torchvision/")
    print("installing ComfyUI's requirements", file=sys.stderr, flush=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command = [*pip, *index, "-r", str(requirements), f"torch=={torch}"]
    subprocess.run(command, check=True, stdout=sys.stderr)


def build_index(torch: str) -> list[str]:
    """The pip options for the builds that go with a version of torch such as 2.13.0+cpu.

    PyPI's torchvision and torchaudio load only beside PyPI's torch, which has no such label.
    """
    build = torch.partition("+")[2]
    return ["--extra-index-url", f"{BUILDS}/{build}"] if build else []


if __name__ == "__main__":
    outcome = fetch(*sys.argv[1:2])
    if isinstance(outcome, str):
        print(outcome)
