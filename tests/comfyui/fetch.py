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
        return f"no ComfyUI, and {REPOSITORY} cannot be reached ({error.reason}): {NAME_ONE}"
    except OSError as error:
        return f"no ComfyUI, and {tag} cannot be fetched ({error}): {NAME_ONE}"
    except subprocess.SubprocessError as error:
        return f"no ComfyUI, and {tag} cannot be installed ({error}): {NAME_ONE}"
    return find_comfyui()


def _clone(tag: str) -> None:
    """Whole or not at all."""
    urllib.request.urlopen(REPOSITORY, timeout=PATIENCE).close()  # git itself waits for minutes
    print(f"fetching ComfyUI {tag}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=PACK, prefix=".comfyui_") as folder:
        checkout = Path(folder) / "ComfyUI"
        command = ["git", "clone", "--quiet", "--depth", "1", "--branch", tag, REPOSITORY]
        subprocess.run([*command, str(checkout)], check=True, timeout=600)
        shutil.move(checkout, FETCHED)


def _install(requirements: Path) -> None:
    """ComfyUI asks for any torch; the one that is here stays."""
    torch = f"torch=={importlib.metadata.version('torch')}"
    print("installing ComfyUI's requirements", file=sys.stderr, flush=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", str(requirements), torch], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    outcome = fetch(*sys.argv[1:2])
    if isinstance(outcome, str):
        print(outcome)
