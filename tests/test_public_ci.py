"""Workflows and forms of the public repository: what they name is here; schemas: `make lint`."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
PROJECT = (ROOT / "pyproject.toml").read_text("utf-8")


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text("utf-8"))


def jobs(path: Path) -> dict[str, Any]:
    return read(path)["jobs"]


def entries(job: str) -> list[dict[str, str]]:
    """The matrix of a job of the tests."""
    return jobs(GITHUB / "workflows" / "tests.yml")[job]["strategy"]["matrix"]["include"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_commands_name_files_and_targets_that_are_here(path: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    commands = [
        step["run"] for job in jobs(path).values() for step in job.get("steps", ()) if "run" in step
    ]
    assert commands
    for command in commands:
        files = re.findall(r"(?:\.ci|tests)/[\w./-]+", command)
        assert not [name for name in files if not (ROOT / name).exists()], command
        assert set(re.findall(r"\bmake ([\w-]+)", command)) <= targets, command


def test_comfyui_is_tested_as_the_oldest_and_the_newest_that_is_supported() -> None:
    oldest = re.search(r'requires-comfyui = ">=([\d.]+)"', PROJECT)[1]
    newest = re.search(r'NEWEST = "(v[\d.]+)"', (ROOT / "tests/comfyui/fetch.py").read_text())[1]
    assert [entry["comfyui"] for entry in entries("comfyui")] == [f"v{oldest}", newest]


def test_comfyui_gets_torchvision_of_the_build_of_torch_that_is_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PyPI's does not load beside the CPU build that `.ci/setup_venv.py` takes."""
    monkeypatch.syspath_prepend(ROOT / "tests" / "comfyui")
    build_index = importlib.import_module("fetch").build_index
    cpu = re.search(r'CPU_INDEX = "(.+)"', (ROOT / ".ci/setup_venv.py").read_text("utf-8"))[1]
    assert build_index("2.13.0+cpu") == ["--extra-index-url", cpu]
    assert build_index("2.13.0") == []


def test_pythons_are_the_oldest_and_the_newest_on_linux_and_windows() -> None:
    oldest = re.search(r'requires-python = ">=([\d.]+)"', PROJECT)[1]
    tested = {(entry["os"], entry["python"], entry["packages"]) for entry in entries("unit")}
    for system in ("ubuntu-latest", "windows-latest"):
        assert (system, oldest, "lowest") in tested
        assert any(t[0] == system and t[1] > oldest and t[2] == "newest" for t in tested)


def test_only_a_new_version_is_published_after_the_tests() -> None:
    publish = jobs(GITHUB / "workflows" / "publish.yml")
    assert publish["tests"]["needs"] == "version" and publish["publish"]["needs"] == "tests"
    assert "changed == 'true'" in publish["tests"]["if"]


@pytest.mark.parametrize("change", [True, False])
def test_a_changed_version(change: bool, tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci" / "version_changed.py"
    script.write_bytes((ROOT / ".ci" / "version_changed.py").read_bytes())
    project = tmp_path / "pyproject.toml"
    project.write_text(PROJECT, "utf-8")

    def git(*words: str) -> str:
        return output("git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words)

    def changed(commit: str) -> str:
        return output(sys.executable, str(script), commit)

    def output(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "before")
    before = git("rev-parse", "HEAD")
    text = PROJECT.replace('version = "', 'version = "9.') if change else f"# more\n{PROJECT}"
    project.write_text(text, "utf-8")
    git("commit", "-qam", "after")
    assert changed(before) == f"changed={str(change).lower()}"
    assert changed("0" * 40) == "changed=true"  # GitHub's name for no commit


def test_issue_forms_ask_for_what_is_needed() -> None:
    for path in (GITHUB / "ISSUE_TEMPLATE").glob("[!c]*.yml"):
        form = read(path)
        assert form["name"] and form["description"]
        fields = [part for part in form["body"] if part["type"] != "markdown"]
        assert all(part["attributes"]["label"] for part in fields)
        assert len({part["id"] for part in fields}) == len(fields)
        assert any(part.get("validations", {}).get("required") for part in fields)
