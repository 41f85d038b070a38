"""Make the virtual environment of the Makefile: `python setup_venv.py DIR STAMP`.

The file STAMP in it is made once all is installed, and names the version of Python: what another
version installed is made anew.

PyTorch comes first and by its exact version, so that a machine without an NVIDIA GPU gets the CPU
build (from PyTorch's own index where that answers) instead of several gigabytes of CUDA libraries.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import venv
from pathlib import Path

TORCH = "torch==2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
ROOT = Path(__file__).resolve().parents[1]


def cpu_index() -> list[str]:
    """The pip options for CPU builds, where they are wanted and can be had."""
    if shutil.which("nvidia-smi") or platform.system() == "Darwin":
        return []
    try:
        urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=5).close()
    except (urllib.error.URLError, OSError):
        return []
    return ["--extra-index-url", CPU_INDEX]


def main() -> None:
    if sys.version_info < (3, 10):  # noqa: UP036 (it may be started by any Python)
        sys.exit(f"error: Python 3.10 or newer is needed, this is {platform.python_version()}")
    target, stamp = (Path(argument) for argument in sys.argv[1:])
    print(f"setting up {target} (once; PyTorch is the large part)", flush=True)
    of_another_python = set(target.glob(".installed*")) - {stamp}
    venv.create(target, clear=bool(of_another_python), with_pip=True)
    python = target / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    pip += ["--no-compile"]  # what is imported is compiled then, which is a small part of it
    for step, packages in (
        ("pip", ["--upgrade", "pip"]),  # that of an older Python takes twice as long for the rest
        ("PyTorch", [*cpu_index(), TORCH]),
        ("this project and its test tools", ["-e", f"{ROOT}[test,verify]"]),
    ):
        print(f"installing {step}", flush=True)
        subprocess.run([*pip, *packages], check=True)
    stamp.touch()


if __name__ == "__main__":
    main()
