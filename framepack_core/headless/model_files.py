"""Which files a run's models and LoRAs are, checked before anything large is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..lora.apply import LoraUse, open_loras
from ..models.build import dit_config, dit_shapes
from ..runtime.display import say, warn
from ..runtime.errors import FramePackError
from ..runtime.files import is_folder
from ..toyworld import SNAPSHOT
from ..weights.files import TORCH, open_weights
from ..weights.layouts import F1_FOLDER, TITLES, TOKENIZERS, Component, find_component
from ..weights.names import UNKNOWN_KIND, guess_kind
from ..weights.tokenizers import find_tokenizer
from .options import FLAGS, TOYWORLD, LoraOptions, TransformerOptions


def find_models(
    options: TransformerOptions, needed: Sequence[Component], f1: bool = False
) -> dict[Component, Path]:
    """The path of every component needed: its own option, or a part of the snapshot.

    f1: the snapshot's F1 transformer, if it has one. Raises FramePackError for what is missing,
    incomplete or another kind of model, by the headers of the files alone.
    """
    named, snapshot = options.named, options.root
    root = SNAPSHOT if snapshot == TOYWORLD else Path(snapshot) if snapshot else None
    missing = [f"--{FLAGS[c]}" for c in needed if not (c in named or root)]
    if missing:
        raise FramePackError(f"{', '.join(missing)} missing; name it, or give a --snapshot")
    paths: dict[Component, Path]
    paths = {c: path for c in needed if (path := named.get(c) or root)}
    own_dit = "dit" in needed and "dit" not in named
    if own_dit and f1 and root is not None and is_folder(root / F1_FOLDER):
        paths["dit"] = root / F1_FOLDER
    for component, path in paths.items():
        _check_files(component, path)
    return paths


def check_tokenizers(paths: Mapping[Component, Path], offline: bool) -> None:
    """Have the tokenizers of the text encoders on this machine before anything large is read.

    Raises FramePackError with the command that gets them.
    """
    for component in TOKENIZERS:
        if component in paths:
            find_tokenizer(paths[component], component, fetch=None if offline else say)


_LORA_LISTS = ("lora_multiplier", "include_patterns", "exclude_patterns")


def read_loras(options: LoraOptions, dit: Path) -> list[LoraUse]:
    """The LoRAs of the options for a transformer, of which only names and sizes are read.

    Raises FramePackError for a file that does not fit, and for values that belong to no file.
    """
    paths = options.lora_weight
    values = [getattr(options, name) for name in _LORA_LISTS]
    for name, given in zip(_LORA_LISTS, values, strict=True):
        if given and not paths:
            warn(f"--{name} has no effect without --lora_weight")
        elif len(given) > len(paths):
            raise FramePackError(
                f"--{name}: {len(given)} values for {len(paths)} files of --lora_weight; give at "
                "most one for each"
            )
    if not paths:
        return []
    uses = open_loras(list(paths), dit_shapes(dit_config(dit)), *map(list, values))
    for use in uses:
        say(f"{use.lora.path.name}: {_summary(use)}")
    return uses


def _summary(use: LoraUse) -> str:
    report = use.lora.report
    left = len(report.unmatched) + len(report.misfit)
    more = f"; {left} more do not fit, see `framepack lora inspect`" if left else ""
    return f"{len(use.lora.modules)} modules at strength {use.strength:g}{more}"


def _check_files(component: Component, path: Path) -> None:
    """Refuse an incomplete or mistaken model by its headers, before any other is loaded."""
    weights = find_component(path, component).weights
    if weights[0].suffix.lower() in TORCH:
        return  # it has no header: to look into it is to load it
    kind, title = guess_kind(open_weights(weights)), TITLES[component]
    if kind != UNKNOWN_KIND and not kind.startswith(title):
        raise FramePackError(
            f"--{FLAGS[component]} {path} is a {kind}, not a {title}; give another file"
        )
