"""What is imported is declared in pyproject.toml, each with a minimum."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml"}  # where a package is imported by another name
NEWER = {"tomllib"}  # of Python itself, but not of all that are supported
OF_TORCH = {"triton"}  # which is there where its GPU builds are, and else does without
OF_COMFYUI = {
    *("comfy", "comfy_api", "comfy_execution", "folder_paths", "latent_preview", "node_helpers"),
    *("server", "aiohttp"),
}


def name_of(requirement: str) -> str:
    """The distribution of a requirement, as all ways to write it are compared."""
    return re.split(r"[<>=!~;\[ ]", requirement)[0].lower().replace("_", "-")


def imported(folder: str) -> set[str]:
    """The distributions that the code of a folder imports, but for Python's own."""
    trees = (ast.parse(p.read_text(encoding="utf-8")) for p in (ROOT / folder).rglob("*.py"))
    modules = {name.split(".")[0] for tree in trees for name in imports(tree)}
    return {
        DISTRIBUTIONS.get(module, module).lower().replace("_", "-")
        for module in modules - NEWER - set(sys.stdlib_module_names)
    }


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def test_the_core_declares_what_it_imports() -> None:
    extras = [each for extra in PROJECT["optional-dependencies"].values() for each in extra]
    declared = {name_of(each) for each in [*PROJECT["dependencies"], *extras]}
    assert "torch" in imported("framepack_core")
    assert imported("framepack_core") - declared == OF_TORCH


def test_nodes_import_only_what_comfyui_or_the_core_brings() -> None:
    declared = {name_of(each) for each in PROJECT["dependencies"]}
    of_comfyui = {name.lower().replace("_", "-") for name in OF_COMFYUI}
    assert imported("nodes") - declared - of_comfyui == set()


@pytest.mark.parametrize("requirement", PROJECT["dependencies"])
def test_every_dependency_has_a_minimum(requirement: str) -> None:
    """Without one it cannot be resolved downwards, and what is tested is unknown."""
    assert ">=" in requirement.split(";")[0]
