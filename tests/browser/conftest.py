"""The interface in a real browser on a real ComfyUI; `pytest -m browser` runs these tests.

COMFYUI_FRONTENDS names further frontends to test with: folders such as 1.58.1, each an unpacked
comfyui-frontend-package, separated as in PATH.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "comfyui")]

from comfy_host import PACK_NAME, Server, find_comfyui, make_base, serve  # noqa: E402
from comfy_page import ComfyPage, PageError, launch  # noqa: E402

TIMEOUT = 600  # seconds for a test with the server's start
OWN = "own"  # the frontend that ComfyUI's environment has


def frontends() -> dict[str, Path]:
    """Static folders by version."""
    roots = map(Path, filter(None, os.environ.get("COMFYUI_FRONTENDS", "").split(os.pathsep)))
    return {root.name: root / "comfyui_frontend_package" / "static" for root in roots}


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.browser)
    item.add_marker(pytest.mark.timeout(TIMEOUT))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "browser" in config.getoption("markexpr"):
        return
    for item in items:
        if item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.skip(reason="a browser test: pytest -m browser"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "frontend" in metafunc.fixturenames:
        chosen = [OWN, *frontends()] if "every_frontend" in metafunc.fixturenames else [OWN]
        metafunc.parametrize("frontend", chosen, scope="session")
    if "renderer" in metafunc.fixturenames:
        metafunc.parametrize("renderer", ["classic", "vue"])


@pytest.fixture
def every_frontend() -> None:
    """Asks for a test to be run with every frontend."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright")
    with playwright.sync_playwright() as running:
        try:
            browser = launch(running)
        except playwright.Error as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server(frontend: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests with one frontend."""
    with started(frontend, make_base(tmp_path_factory.mktemp("browser") / "base")) as running:
        yield running


@contextmanager
def started(frontend: str, base: Path) -> Iterator[Server]:
    """A server with a frontend, on a base directory."""
    comfy = find_comfyui()
    if isinstance(comfy, str):
        pytest.skip(comfy)
    options = [] if frontend == OWN else ["--front-end-root", str(frontends()[frontend])]
    with serve(comfy, base, *options) as running:
        yield running


def open_comfyui(browser: Any, server: Server, renderer: str, locale: str = "en") -> ComfyPage:
    """A page of ComfyUI in a fresh profile."""
    server.post(
        "/settings",
        {
            "Comfy.TutorialCompleted": True,
            "Comfy.VueNodes.Enabled": renderer == "vue",
            "Comfy.Locale": locale,
            "Comfy.Execution.PreviewMethod": "default",
        },
    )
    return ComfyPage(browser.new_context(viewport={"width": 1500, "height": 1000}), server.url)


@pytest.fixture(scope="session")
def frontend_errors(
    frontend: str, browser: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], set[PageError]]:
    """By renderer, the errors that a page has where this pack is not installed."""

    @cache
    def found(renderer: str) -> set[PageError]:
        base = make_base(tmp_path_factory.mktemp("without") / "base", with_pack=False)
        with started(frontend, base) as server:
            assert not any(name.startswith("FPReel") for name in server.get("/object_info"))
            page = open_comfyui(browser, server, renderer)
            page.close()
        return set(page.errors)

    return found


@pytest.fixture
def open_page(
    browser: Any,
    server: Server,
    renderer: str,
    frontend_errors: Callable[[str], set[PageError]],
) -> Iterator[Callable[..., ComfyPage]]:
    """Opens ComfyUI; after the test no page may have had an error that comes with this pack."""
    pages: list[ComfyPage] = []

    def make(locale: str = "en") -> ComfyPage:
        pages.append(open_comfyui(browser, server, renderer, locale))
        return pages[-1]

    yield make
    errors = {error for page in pages for error in page.errors}
    for page in pages:
        page.close()
    ours = {error for error in errors if PACK_NAME in error.stack}
    assert not ours
    if errors:
        assert not errors - frontend_errors(renderer)


@pytest.fixture
def page(open_page: Callable[..., ComfyPage]) -> ComfyPage:
    return open_page()


@pytest.fixture
def element_page(page: ComfyPage, frontend: str, renderer: str) -> ComfyPage:
    """A page that shows elements on nodes, which the first Vue renderers do for no pack."""
    if frontend != OWN and renderer == "vue" and not page.shows_elements():
        pytest.skip(f"the Vue renderer of frontend {frontend} shows no elements on nodes")
    return page
