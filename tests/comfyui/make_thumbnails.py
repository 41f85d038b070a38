"""Run the toyworld_* workflows and write what they made as pictures: [NAME...].

Those are the thumbnails of all workflows and the picture of the README, or with names such as
toyworld_i2v the thumbnails of these workflows and of their twins.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from comfy_host import PACK, Server, find_comfyui, make_base, serve
from PIL import Image, ImageDraw, ImageFont
from templates import NAMES, template
from workflow import to_api

sys.path.append(str(PACK))

from framepack_core.runtime.images import load_image
from framepack_core.runtime.video import read_video

FRAMES, COLUMNS, SIDE, GAP = 6, 3, 128, 4
BACKGROUND = (32, 32, 36)
PICTURE, SHOWN = PACK / "js" / "docs" / "toyworld.jpg", 6
# What a workflow's picture says below what Toy World made with it, and on what colour.
BANDS = {
    "toyworld": ("Toy World: runs at once", (46, 125, 80)),
    "framepack": ("FramePack, shown with Toy World", (47, 90, 160)),
}
BAND = 34  # pixels
CAPTIONS = {
    "toyworld_i2v": 'start image and "a red circle moves right"',
    "toyworld_sections": "start and end image, and a prompt for each section: right, down, left",
    "toyworld_end_image": 'start image, end image and "a blue triangle moves"',
    "toyworld_extend": 'a rendered clip, extended by F1 with "a blue square moves down"',
}


def main() -> None:
    chosen = sys.argv[1:] or [name for name in NAMES if name.startswith("toyworld")]
    comfy = find_comfyui()
    if isinstance(comfy, str):
        raise SystemExit(comfy)
    made = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(comfy, make_base(Path(folder) / "base")) as server,
    ):
        node_info = server.get("/object_info")
        for name in chosen:
            made[name] = made_by(template(name), server, node_info)
            print(name, flush=True)
    for name, clips in made.items():
        picture = contact_sheet(clips)
        for world, (words, colour) in BANDS.items():
            path = template(name.replace("toyworld", world)).with_suffix(".jpg")
            save(with_band(picture, words, colour), path)
    if made.keys() >= CAPTIONS.keys():
        save(overview(made), PICTURE)


def save(picture: Image.Image, path: Path) -> None:
    picture.save(path, quality=88, optimize=True)


def made_by(path: Path, server: Server, node_info: dict[str, Any]) -> list[list[np.ndarray]]:
    """Frames of every picture and video that a workflow shows, in the order of its nodes."""
    prompt = to_api(json.loads(path.read_text(encoding="utf-8")), node_info)
    outputs = server.run(prompt, seconds=600)
    files = [
        server.base / file["type"] / file["subfolder"] / file["filename"]
        for node in sorted(outputs, key=int)
        for file in outputs[node].get("images", [])
    ]
    return [list(read_video(f)[0]) if f.suffix == ".mp4" else [load_image(f)] for f in files]


def overview(made: dict[str, list[list[np.ndarray]]]) -> Image.Image:
    """The picture of the README: a row of frames with its caption for some of the workflows."""
    font, line = ImageFont.load_default(size=15), 26
    step, width = SIDE + GAP, SHOWN * (SIDE + GAP) - GAP
    sheet = Image.new("RGB", (width, len(CAPTIONS) * (step + line)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (name, caption) in enumerate(CAPTIONS.items()):
        (clip,) = made[name]
        top = row * (step + line)
        draw.text((0, top + 5), caption, "black", font)
        for i in range(SHOWN):
            frame = enlarged(clip[round(i * (len(clip) - 1) / (SHOWN - 1))])
            sheet.paste(frame, (i * step, top + line))
    return sheet


def with_band(picture: Image.Image, words: str, colour: tuple[int, int, int]) -> Image.Image:
    """The picture above a line of words, wide enough for them."""
    font = ImageFont.load_default(size=19)
    width = max(picture.width, round(font.getlength(words)) + 20)
    made = Image.new("RGB", (width, picture.height + BAND), BACKGROUND)
    made.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(made)
    draw.rectangle((0, picture.height, width, picture.height + BAND), fill=colour)
    draw.text((10, picture.height + 5), words, "white", font)
    return made


def enlarged(frame: np.ndarray) -> Image.Image:
    return Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def contact_sheet(clips: list[list[np.ndarray]]) -> Image.Image:
    """Frames evenly spread over each clip, in rows."""
    each = max(1, FRAMES // len(clips))
    chosen = [
        clip[round(i * (len(clip) - 1) / max(1, each - 1))]
        for clip in clips
        for i in range(min(each, len(clip)))
    ]
    columns = each if 1 < len(clips) < FRAMES and each > 1 and len(chosen) > COLUMNS else COLUMNS
    columns = min(columns, len(chosen))
    rows = -(-len(chosen) // columns)
    step = SIDE + GAP
    sheet = Image.new("RGB", (columns * step - GAP, rows * step - GAP), BACKGROUND)
    for i, frame in enumerate(chosen):
        row, column = divmod(i, columns)
        sheet.paste(enlarged(frame), (column * step, row * step))
    return sheet


if __name__ == "__main__":
    main()
