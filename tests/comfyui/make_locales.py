"""Write locales/*/nodeDefs.json anew: English from the nodes themselves, the others as they were.

What the other languages still lack is printed, and what no node has any more is taken out. The
tables of the help pages follow.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import make_help_tables
from comfy_host import PACK, find_comfyui, make_base, serve

FOLDER = PACK / "locales"
LANGUAGES = ("en", "ja", "zh", "zh-TW", "ko", "ru")
SPECIAL = "{}@|$"  # of vue-i18n, which the interface puts every text through
Words = dict[str, Any]


def english(info: Words) -> Words:
    """The words of a node, from /object_info."""
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    tips = info.get("output_tooltips") or [None] * len(info["output_name"])
    return {
        "display_name": literal(info["display_name"]),
        "description": literal(info["description"]),
        "inputs": {
            name.replace(".", "_"): {"name": name, "tooltip": literal(spec[1]["tooltip"])}
            for name, spec in inputs.items()
        },
        "outputs": {
            str(slot): {"name": name} | ({"tooltip": literal(tip)} if tip else {})
            for slot, (name, tip) in enumerate(zip(info["output_name"], tips, strict=True))
        },
    }


def literal(text: str) -> str:
    """A text in which no character means anything to vue-i18n."""
    return "".join(f"{{'{c}'}}" if c in SPECIAL else c for c in text)


def fitted(words: Words, model: Words) -> Words:
    """What `words` have of the keys of another language; "" where they lack one."""
    return {
        key: fitted(words.get(key, {}), value) if isinstance(value, dict) else words.get(key, "")
        for key, value in model.items()
    }


def missing(words: Words, path: str = "") -> Iterator[str]:
    """Where nothing is written yet."""
    for key, value in words.items():
        place = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            yield from missing(value, place)
        elif not value:
            yield place


def read(path: Path) -> Words:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def node_words(node_info: Words) -> Words:
    names = sorted(name for name in node_info if name.startswith("FPReel"))
    return {name: english(node_info[name]) for name in names}


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(find_comfyui(), make_base(Path(folder) / "base")) as server,
    ):
        model = node_words(server.get("/object_info"))
    for language in LANGUAGES:
        path = FOLDER / language / "nodeDefs.json"
        words = model if language == "en" else fitted(read(path), model)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(words, indent=2, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
        for place in missing(words):
            print(f"{language}: {place}")
    make_help_tables.main()


if __name__ == "__main__":
    main()
