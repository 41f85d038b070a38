"""A zip of sections as FramePack-eichi saves it, with pictures of one colour each."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from PIL import Image

LIST = """\
default_prompt: it waits
SEED: 42
lora_settings: {lora_files: [a.safetensors]}
section_info:
- {section: 0, prompt: it sleeps}
- section: 2
  prompt: "it wakes --slowly: #1"
- {section: 1, prompt: ''}
"""
PICTURES = {"sections/000.png": (10, 0, 0), "sections/002_b.PNG": (20, 0, 0)}
ENDS = {"start.png": (30, 0, 0), "end_frame.png": (40, 0, 0)}


def picture(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return file.getvalue()


def write_zip(
    path: Path,
    text: str | bytes = LIST,
    pictures: dict[str, tuple[int, int, int]] | None = None,
    name: str = "sections.yaml",
) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, text)
        for picture_name, colour in (
            {**PICTURES, **ENDS} if pictures is None else pictures
        ).items():
            file.writestr(picture_name, picture(colour))
    return path
