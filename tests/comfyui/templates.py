"""The example workflows by the names that tests call them; files carry the titles users see.

ComfyUI shows the file's name as title and description of a template, and offers no other order
than that of names.
"""

from __future__ import annotations

from pathlib import Path

from comfy_host import PACK

FOLDER = PACK / "example_workflows"
TITLES = {
    "i2v": "Image to video",
    "f1": "Image to video with F1",
    "end_image": "Start and end image",
    "sections": "A prompt for each section (timeline)",
    "extend": "Extend a video",
    "one_frame": "Edit a picture (one frame)",
    "kisekaeichi": "Other clothes from a reference (kisekaeichi)",
    "1f_mc": "One picture from several (1f-mc)",
    "batch": "Many videos from a prompt file",
    "lora": "Video with a LoRA",
    "train": "Train a LoRA",
    "train_one_frame": "Train a LoRA for edits of pictures",
    "anchor": "Long video with F1 (drift anchor)",
    "f1_end": "Start and end image with F1 (LoRA)",
    "variants": "Several seeds, then one (variants)",
    "hand_on": "Another scene from the last frame",
    "loop": "A video that loops",
    "text": "Text to video",
    "draft": "A draft, then the video",
}
WORLDS = {"framepack": "", "toyworld": " - Toy World"}
NAMES = [f"{world}_{name}" for name in TITLES for world in WORLDS]


def template(name: str) -> Path:
    """The file of a workflow such as "toyworld_i2v"."""
    world, _, topic = name.partition("_")
    number = list(TITLES).index(topic) + 1
    return FOLDER / f"{number:02} {TITLES[topic]}{WORLDS[world]}.json"
