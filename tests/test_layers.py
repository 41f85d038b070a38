"""The imports of the core point one way, leave the host alone and do nothing when they happen."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "framepack_core"
ORDER = (
    "runtime",
    "parsing",
    "weights",
    "lora",
    "models",
    "sampling",
    "training",
    "toyworld",
    "workflows",
    "headless",
    "cli",
)
WORKSHOP = ("tests", "toyworld")  # how Toy World was made and is measured: of the repository only
INTERNALS = (
    *("comfy", "comfy_api", "comfy_config", "comfy_execution", "comfy_extras", "app", "utils"),
    *("execution", "folder_paths", "latent_preview", "main", "node_helpers", "server"),
)
HOSTS = (*INTERNALS, "nodes")


def imported_modules(path: Path) -> list[str]:
    """Absolute dotted names of all that a file imports, relative imports resolved."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [f"{module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda p: str(p.relative_to(CORE)))
def test_imports_point_down(path: Path) -> None:
    layer = path.relative_to(CORE).parts[0]
    for name in imported_modules(path):
        parts = name.split(".")
        assert parts[0] not in HOSTS, f"{path}: imports {name}"
        if parts[0] == "framepack_core" and len(parts) > 1 and path.parent != CORE:
            target = parts[1]
            allowed = ORDER[: ORDER.index(layer) + 1]
            assert target in allowed, f"{path}: {layer} must not import {target}"


def test_one_folder_of_the_nodes_knows_the_internals_of_comfyui() -> None:
    """The others are schemas and `execute`: all that they import of a host is its public API."""
    nodes = ROOT / "nodes"
    for path in nodes.rglob("*.py"):
        inside = path.is_relative_to(nodes / "comfyui")
        for name in imported_modules(path):
            if name.startswith("nodes."):
                schemas = not name.startswith("nodes.comfyui.")
                assert not (inside and schemas), f"{path}: imports {name}"
            elif name.split(".")[0] in INTERNALS:
                public = name.startswith("comfy_api.latest.")
                assert inside or public, f"{path}: imports {name}"


def test_nothing_that_users_run_imports_the_workshop() -> None:
    for path in (*CORE.rglob("*.py"), *(ROOT / "nodes").rglob("*.py")):
        workshop = [n for n in imported_modules(path) if n.split(".")[0] in WORKSHOP]
        assert not workshop, f"{path}: imports {workshop}"


def test_relative_imports_lead_to_a_file() -> None:
    """Also where only ComfyUI could import the importing one."""
    for path in (*CORE.rglob("*.py"), *(ROOT / "nodes").rglob("*.py")):
        for name in imported_modules(path):
            parts = name.split(".")
            if (ROOT / parts[0]).is_dir():
                module, own = ROOT.joinpath(*parts[:-1]), parts[-1]
                found = (module, module.with_suffix(".py"), module / own)
                assert any(place.exists() for place in found), f"{path}: imports {name}"
            assert "framepack_core" not in parts[1:], f"{path}: imports {name}"


def test_import_does_nothing() -> None:
    """Importing the core reads no weights, asks for no device and loads no heavy library."""
    code = (
        "import sys; sys.path.append('.'); import framepack_core; "
        "import framepack_core.sampling.generate, framepack_core.models.dit; import torch; "
        "assert not torch.cuda.is_initialized(); "
        "heavy = {'transformers', 'av', 'accelerate', 'diffusers'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert not result.stdout
