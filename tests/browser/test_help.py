"""A node's help, where ComfyUI shows it."""

from __future__ import annotations

from comfy_page import ComfyPage, read
from templates import template

TRAIN = template("toyworld_train")
PICTURE = "img[src$='/docs/FPReelDataset.png']"


def test_help_shows_the_node_and_its_mistakes(page: ComfyPage) -> None:
    page.load(read(TRAIN))
    page.show("FPReelDataset")
    page.node("FPReelDataset", "app.canvas.selectItems([node])")
    page.page.click("[data-testid=info-button]")
    page.page.wait_for_function(f'() => document.querySelector("{PICTURE}")?.naturalWidth > 300')
    page.page.wait_for_selector("h2:has-text('Common mistakes')", state="attached")
