"""What the Comfy registry and ComfyUI-Manager get: the archive, requirements, one id everywhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# What the registry's scanner flags, and what a node pack has no use for.
UNWANTED = re.compile(
    r"^\s*(?:import|from) (?:subprocess|socket|requests|urllib|http|ftplib|paramiko|pip)\b"
    r"|\bos\.(?:system|popen|exec\w*|spawn\w*)\(|(?<![\w.])(?:eval|exec)\(",
    re.MULTILINE,
)


def tracked(*options: str) -> set[str]:
    try:
        done = subprocess.run(
            ["git", "ls-files", "-z", *options], cwd=ROOT, capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return set(filter(None, done.stdout.decode().split("\0")))


@pytest.fixture(scope="module")
def archive() -> set[str]:
    """The files that are published: those of git without what .comfyignore names."""
    return tracked() - tracked("-ci", "--exclude-from=.comfyignore")


def test_archive_has_what_users_need_and_no_more(archive: set[str]) -> None:
    assert {"__init__.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"} <= archive
    tops = {name.partition("/")[0] for name in archive if "/" in name}
    folders = {"nodes", "framepack_core", "example_workflows", "subgraphs", "js", "locales"}
    assert tops == folders
    assert not [x for x in archive if x.startswith(".") or re.search(r"\btests?\b|test_", x)]


def test_archive_starts_no_programs_and_talks_to_nobody(archive: set[str]) -> None:
    found = {
        name: UNWANTED.findall((ROOT / name).read_text(encoding="utf-8"))
        for name in archive
        if name.endswith((".py", ".js"))
    }
    assert {name: words for name, words in found.items() if words} == {}


def test_the_scanner_would_find_something() -> None:
    lines = ["import subprocess", "    from urllib.request import x", "os.system('a')", "eval(x)"]
    assert all(UNWANTED.search(line) for line in lines)
    assert not UNWANTED.search("model.eval()\nfrom .requests_of import y")


def test_requirements_are_those_of_the_project_without_torch() -> None:
    """The Manager installs them into ComfyUI's Python, where torch is not ours to replace."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    listed = [line for line in text.splitlines() if line and not line.startswith("#")]
    hosts = ("torch", "comfyui-frontend-package")
    declared = [
        d for d in PROJECT["project"]["dependencies"] if re.split(r"[><=]", d)[0] not in hosts
    ]
    assert listed == declared


def test_one_id_everywhere() -> None:
    """With the version that workflows were written by; releasing writes them anew."""
    name = PROJECT["project"]["name"]
    files = [*(ROOT / "example_workflows").glob("*.json"), *(ROOT / "subgraphs").glob("*.json")]
    ids = {
        (node["properties"]["cnr_id"], node["properties"]["ver"])
        for path in files
        for node in nodes(json.loads(path.read_text(encoding="utf-8")))
        if node["type"].startswith("FPReel")
    }
    assert ids == {(name, PROJECT["project"]["version"])}
    assert f"comfy node install {name}\n" in (ROOT / "README.md").read_text(
        encoding="utf-8"
    ).replace("`", "")


def nodes(graph: dict[str, Any]) -> list[dict[str, Any]]:
    inner = graph.get("definitions", {}).get("subgraphs", [])
    return [*graph["nodes"], *(node for each in inner for node in nodes(each))]


def test_project_page_has_all_it_shows() -> None:
    project, comfy = PROJECT["project"], PROJECT["tool"]["comfy"]
    assert {"Repository", "Documentation", "Bug Tracker"} <= project["urls"].keys()
    systems = {c.split(" :: ")[1] for c in project["classifiers"] if c.startswith("Operating")}
    assert systems == {"OS Independent", "Microsoft", "POSIX", "MacOS"}
    for key in ("Icon", "Banner"):
        assert (ROOT / comfy[key].partition("/main/")[2]).is_file()
