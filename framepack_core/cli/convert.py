"""`framepack convert`: a workflow of the wrapper packs into one for this pack's nodes."""

from __future__ import annotations

import json

from ..parsing.json_toml import parse_json
from ..runtime.display import say
from ..runtime.files import atomic_path, free_path, read_text
from ..workflows import convert
from .commands import Convert


def run(command: Convert) -> None:
    """Write the converted workflow beside the given one, and say what has no equal here."""
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
