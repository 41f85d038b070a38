"""A ComfyUI checkout as a test subject: where it is, and how to run this pack inside it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

PACK = Path(__file__).resolve().parents[2]
PACK_NAME = "comfyui-framepack-reel"  # the folder
REGISTRY_ID = "framepack-reel"
FETCHED = PACK / ".comfyui"  # by fetch.py
NEEDED = ("torch", "aiohttp", "alembic", "av", "einops", "safetensors", "torchsde", "transformers")
ENVIRONMENTS = (".venv", "venv", "../.venv", "../venv")
PYTHONS = ("bin/python", "Scripts/python.exe")
PORTABLE = "../python_embeded/python.exe"  # as ComfyUI's build for Windows spells it
FINISHED = ("execution_success", "execution_error", "execution_interrupted")


@dataclass(frozen=True)
class ComfyUI:
    """A checkout and the Python that runs it."""

    root: Path
    python: Path

    @property
    def version(self) -> tuple[int, ...]:
        text = (self.root / "comfyui_version.py").read_text(encoding="utf-8")
        return tuple(int(n) for n in text.split('"')[1].split("."))


def find_comfyui() -> ComfyUI | str:
    """The checkout to test in, or the reason why there is none."""
    named = os.environ.get("COMFYUI_PATH")
    usual = [Path.home() / "comfy" / "ComfyUI", PACK.parents[1], FETCHED]
    reason = "no ComfyUI checkout; name one with COMFYUI_PATH"
    for root in [Path(named)] if named else usual:
        if (root / "main.py").is_file() and (root / "comfy").is_dir():
            python = find_python(root)
            if python is not None:
                return ComfyUI(root, python)
            reason = f"no Python that can run {root}; name one with COMFYUI_PYTHON"
    return reason


def find_python(root: Path) -> Path | None:
    """COMFYUI_PYTHON, an environment in the checkout or beside it, or this Python.

    None where none of them has what ComfyUI needs.
    """
    named = os.environ.get("COMFYUI_PYTHON")
    own = [root / environment / python for environment in ENVIRONMENTS for python in PYTHONS]
    usual = [*own, root / PORTABLE, Path(sys.executable)]
    has_all = f"from importlib.util import find_spec as f; assert all(map(f, {NEEDED}))"
    for python in [Path(named)] if named else usual:
        if (
            python.is_file()
            and subprocess.run([python, "-c", has_all], stderr=DEVNULL).returncode == 0
        ):
            return python
    return None


def make_base(folder: Path, *, with_pack: bool = True) -> Path:
    """A ComfyUI base directory that holds nothing but this pack, or nothing at all."""
    nodes = folder / "custom_nodes"
    nodes.mkdir(parents=True)
    for name in ("input", "output", "temp", "user", "models"):
        (folder / name).mkdir()
    if with_pack:
        install_pack(nodes)
    return folder


def install_pack(nodes: Path) -> None:
    """Put this pack into a folder of custom nodes."""
    try:
        os.symlink(PACK, nodes / PACK_NAME, target_is_directory=True)
    except OSError:  # Windows without the right to make links
        shutil.copytree(PACK, nodes / PACK_NAME, ignore=shutil.ignore_patterns(".*"))


def host_environment() -> dict[str, str]:
    """The environment of a ComfyUI process: offline, on one thread, as suits tiny models."""
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Server:
    """A running ComfyUI, driven over HTTP."""

    url: str
    base: Path
    log: Path
    process: subprocess.Popen[bytes]

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self.url + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return json.loads(error.read())

    def queue(self, prompt: dict[str, Any]) -> str:
        """Queue a prompt in API form; its id."""
        answer = self.post("/prompt", {"prompt": prompt, "client_id": uuid.uuid4().hex})
        assert "prompt_id" in answer, json.dumps(answer, indent=1)
        return answer["prompt_id"]

    def wait(self, prompt_id: str, seconds: float = 120) -> dict[str, Any]:
        """The history entry of a prompt once it has ended, well or not."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                return entry
            assert self.process.poll() is None, self.tail()
            time.sleep(0.1)
        raise AssertionError(f"prompt {prompt_id} did not end in {seconds} s\n{self.tail()}")

    def run(self, prompt: dict[str, Any], seconds: float = 120) -> dict[str, Any]:
        """What a prompt that must succeed shows: node id -> its ui output."""
        entry = self.wait(self.queue(prompt), seconds)
        assert entry["status"]["status_str"] == "success", self.error(entry)
        return entry["outputs"]

    @staticmethod
    def error(entry: dict[str, Any]) -> str:
        """The message of the exception that ended a prompt."""
        messages = dict(entry["status"]["messages"])
        return messages.get("execution_error", {}).get("exception_message", str(messages))

    def tail(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-4000:]


@contextmanager
def serve(comfy: ComfyUI, base: Path, *options: str) -> Iterator[Server]:
    """A server on a free port, stopped at the end; with further options of ComfyUI's."""
    port, log = free_port(), base / "server.log"
    command = [
        str(comfy.python),
        str(comfy.root / "main.py"),
        "--cpu",
        "--disable-auto-launch",
        *("--port", str(port)),
        *("--base-directory", str(base)),
        *("--database-url", f"sqlite:///{base / 'comfy.db'}"),
        *options,
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=comfy.root, env=host_environment(), stdout=out, stderr=subprocess.STDOUT
        )
    server = Server(f"http://127.0.0.1:{port}", base, log, process)
    try:
        _wait_until_up(server)
        yield server
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_up(server: Server, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.process.poll() is None, server.tail()
        try:
            server.get("/system_stats")
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"ComfyUI did not start in {seconds} s\n{server.tail()}")
