"""`framepack convert`: what other programs save, for this pack's nodes or `framepack batch`."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from ..parsing.json_toml import parse_json
from ..parsing.prompt_lines import prompt_line
from ..parsing.section_spec import format_spec
from ..parsing.shared_sections import SharedSections, read_shared_sections
from ..runtime.display import say, warn
from ..runtime.files import atomic_path, free_path, read_text
from ..workflows import convert
from .commands import Convert

PROMPTS = "prompts.txt"


def run(command: Convert) -> None:
    """Write what is converted beside the given file, and say what has no equal here."""
    if zipfile.is_zipfile(command.file):
        return _convert_sections(command)
    if command.f1:
        warn("--f1 has no effect on a workflow, which says itself what its models are")
    return _convert_workflow(command)


def _convert_workflow(command: Convert) -> None:
    path = command.file
    done = convert(parse_json(read_text(path), f"{path}"), f"{path}")
    output = free_path(command.output or path.with_name(f"{path.stem}_framepack_reel.json"))
    with atomic_path(output) as temporary:
        text = json.dumps(done.workflow, ensure_ascii=False, indent=2)
        temporary.write_text(text + "\n", encoding="utf-8")
    counts = ", ".join(f"{count} {type}" for type, count in sorted(done.replaced.items()))
    say(f"replaced: {counts}")
    for line in done.lost:
        say(f"no equal: {line}")
    if done.others:
        say(f"needs other packs still: {', '.join(done.others)}")
    say(str(output))


def _convert_sections(command: Convert) -> None:
    """The pictures of a zip, and a prompt file that names them."""
    path = command.file
    shared = read_shared_sections(path, f"{path}")
    folder = shared.write_pictures(command.output or path.with_suffix(""))
    with atomic_path(folder / PROMPTS) as temporary:
        line = _prompt_line(shared, folder, forward=command.f1)
        temporary.write_text(f"{line}\n", encoding="utf-8")
    if shared.start is None:
        other = "the video begins with that of a section" if shared.images else "give one by --i"
        say(f"no start picture in it; {other}")
    for lost in shared.lost:
        say(f"not taken over: {lost}; set it by hand")
    say(f"{shared.least} sections, as many as it needs; --vs in {PROMPTS} makes a longer video")
    say(str(folder / PROMPTS))


def _prompt_line(shared: SharedSections, folder: Path, forward: bool) -> str:
    options = {"vs": str(shared.least)}
    if images := shared.image_texts(forward):
        options["i"] = format_spec({key: str(folder / name) for key, name in images.items()})
    if shared.end is not None:
        options["ei"] = str(folder / shared.end)
    if shared.seed is not None:
        options["d"] = str(shared.seed)
    return prompt_line(format_spec(shared.prompt_texts(forward) or {0: ""}), options)
