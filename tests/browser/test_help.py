"""A node's help, where ComfyUI shows it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from comfy_page import ComfyPage, read
from templates import template

TRAIN = template("toyworld_train")
PICTURE = "img[src$='/docs/FPReelDataset.png']"


@pytest.mark.parametrize(
    ("locale", "mistakes"),
    [("en", "Common mistakes"), ("zh", "常见错误"), ("ko", "Common mistakes")],
)
def test_help_shows_the_node_and_its_mistakes(
    open_page: Callable[..., ComfyPage], locale: str, mistakes: str
) -> None:
    """In the language of the page, or in English."""
    page = open_page(locale)
    page.load(read(TRAIN))
    page.show("FPReelDataset")
    page.node("FPReelDataset", "app.canvas.selectItems([node])")
    page.page.click("[data-testid=info-button]")
    page.page.wait_for_function(f'() => document.querySelector("{PICTURE}")?.naturalWidth > 300')
    page.page.wait_for_selector(f"h2:has-text('{mistakes}')", state="attached")
