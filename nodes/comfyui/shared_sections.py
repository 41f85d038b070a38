"""A zip of sections that is dropped on a timeline: its pictures go into ComfyUI's input folder."""

from __future__ import annotations

import asyncio
from pathlib import PurePath
from typing import IO, Any

from aiohttp import web
from server import PromptServer

from ...framepack_core.parsing.shared_sections import read_shared_sections
from ...framepack_core.parsing.timeline import MAX_SECTIONS
from ...framepack_core.runtime.errors import FramePackError
from ...framepack_core.runtime.files import check_file_name
from .paths import input_folder

ROUTE = "/fpreel/sections"


def take_over(file: IO[bytes], name: str, count: int, forward: bool, fixed: bool) -> dict[str, Any]:
    """The sections of such a file in order of time, at least `count`, and what else it says.

    forward: as F1 makes them. fixed: a timeline that cannot grow; of more sections than `count`
    no picture is kept. Names of pictures are those in the input folder.
    """
    stem = PurePath(name).stem
    check_file_name(stem, "the zip's name")
    shared = read_shared_sections(file, name)
    sections = shared.in_time(max(count, shared.least), forward)
    taken = bool(shared.pictures) and not (fixed and len(sections) > count)
    folder = shared.write_pictures(input_folder() / stem) if taken else None

    def placed(picture: str | None) -> str | None:
        return None if picture is None or folder is None else f"{folder.name}/{picture}"

    return {
        "sections": [{"prompt": words.prompt, "image": placed(words.image)} for words in sections],
        "start": placed(shared.start),
        "end": placed(shared.end),
        "seed": None if shared.seed is None else str(shared.seed),
        "lost": shared.lost,
    }


async def _answer(request: web.Request) -> web.Response:
    try:
        form = await request.post()
        file, count = form["file"], int(str(form["count"]))
        given = file.file, PurePath(file.filename.replace("\\", "/")).name  # type: ignore[union-attr]
    except (KeyError, ValueError, AttributeError):
        return web.Response(status=400)
    count = max(1, min(count, MAX_SECTIONS))
    forward, fixed = form.get("mode") == "f1", form.get("fixed") == "true"
    try:
        found = await asyncio.to_thread(take_over, *given, count, forward, fixed)
    except FramePackError as error:
        return web.json_response({"error": str(error)}, status=400)
    return web.json_response(found)


if getattr(PromptServer, "instance", None) is not None:  # absent in tests without a server
    PromptServer.instance.routes.post(ROUTE)(_answer)
