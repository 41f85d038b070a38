"""Fixtures that run the pack inside a real ComfyUI; without a checkout these tests are skipped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
NONE = "not in ComfyUI: "
CHECKS_TIMEOUT = 1800  # seconds for all checks inside ComfyUI, on a busy machine
sys.path.insert(0, str(HERE))

from comfy_host import (  # noqa: E402
    ComfyUI,
    Server,
    find_comfyui,
    host_environment,
    make_base,
    serve,
)


def pytest_itemcollected(item: pytest.Item) -> None:
    fixtures = getattr(item, "fixturenames", ())
    if "comfy" in fixtures:
        item.add_marker(pytest.mark.comfy)
    if "inside" in fixtures:  # the first one waits for all checks
        item.add_marker(pytest.mark.timeout(CHECKS_TIMEOUT + 60))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where there is no ComfyUI pytest's summary says so in one line, not in one for each test."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple) and NONE in report.longrepr[2]:
        report.longrepr = (str(HERE), None, report.longrepr[2])
    return report


@pytest.fixture(scope="session")
def comfy() -> ComfyUI:
    found = find_comfyui()
    if isinstance(found, str):
        pytest.skip(f"{NONE}{os.environ.get('COMFYUI_MISSING') or found}")
    return found


@pytest.fixture(scope="session")
def server(comfy: ComfyUI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that talk HTTP."""
    with serve(comfy, make_base(tmp_path_factory.mktemp("server") / "base")) as running:
        yield running


@pytest.fixture(scope="session")
def node_info(server: Server) -> dict[str, Any]:
    return server.get("/object_info")


@pytest.fixture(scope="session")
def inside(
    comfy: ComfyUI, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[str, dict[str, Any]]:
    """Outcomes of the checks that will be asked for, run once in ComfyUI's own Python."""
    folder = tmp_path_factory.mktemp("inside")
    base, report = make_base(folder / "base"), folder / "report.json"
    command = [comfy.python, HERE / "run_checks.py", comfy.root, base, report]
    items = [item for item in request.session.items if not item.get_closest_marker("skip")]
    wanted = [item.callspec.params["check"] for item in items if "inside" in item.fixturenames]
    with (folder / "log").open("w+", encoding="utf-8", errors="replace") as log:
        try:
            end = subprocess.run(
                [str(part) for part in [*command, *wanted]],
                cwd=comfy.root,
                env=host_environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=CHECKS_TIMEOUT,
            ).returncode
        except subprocess.TimeoutExpired:
            end = f"stopped after {CHECKS_TIMEOUT} s"
        log.seek(0)
        said = log.read()[-6000:]
    assert report.is_file(), said
    outcomes = json.loads(report.read_text(encoding="utf-8"))
    # In the order of the checks, so that the first of these is the one that was running.
    left = {"ok": False, "error": f"ComfyUI ended before this check did ({end}):\n{said}"}
    return {check: left for check in wanted} | outcomes
