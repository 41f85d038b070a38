"""docs/musubi_flags.md: every flag of musubi-tuner's four scripts, every difference that is left.

musubi_flags.json holds its flags with defaults and choices, as its parsers at 30c658c have them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from golden.differences import DIFFERENCES

from framepack_core.cli import SCRIPTS
from framepack_core.cli.commands import Generate
from framepack_core.cli.foreign_options import CACHING, TRAINING, Foreign
from framepack_core.cli.options import default_of, leaf_of_reference, shown_default
from framepack_core.headless.training_options import CacheJob, TrainJob
from framepack_core.runtime.errors import FramePackError
from framepack_core.runtime.options import Leaf, Settings, leaves

FLAGS: dict[str, dict[str, dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "musubi_flags.json").read_text(encoding="utf-8")
)
KINDS: dict[str, tuple[type[Settings], tuple[Foreign, ...]]] = {
    "generate": (Generate, ()),
    "cache": (CacheJob, CACHING),
    "train": (TrainJob, TRAINING),
}
NOTHING = "Changes nothing: "  # in a help, before why
# Where a flag that works elsewhere does not.
SPECIAL = {("fpack_cache_text_encoder_outputs", "batch_size"): "captions are encoded alone"}
# Why a default looks or is another; what is not here has the same.
DEFAULTS = {
    "latent_window_size": "the same, but for latents that say theirs",
    "save_path": "there it has to be given",
    "output_dir": "there it has to be given",
    "output_name": "there it has to be given",
    "network_module": "there it has to be given",
    "optimizer_type": "there it has to be given",
    "batch_size": "there that of the data set",
    "network_dim": "the same: there the network chooses it",
    "save_precision": "the same: there the network is in fp32",
    "max_timestep": "the same",
    "seed": "the same",
}
OF_OUR_DEFAULTS = {"train-default", "attention-measured", "default-later"}
ABOUT = """\
# musubi-tuner's flags, and what differs

The programs `fpack_generate_video`, `fpack_cache_latents`, `fpack_cache_text_encoder_outputs` and
`fpack_train_network` take musubi-tuner's command lines and have its defaults. These are all flags
of its four scripts at commit 30c658c, also in a config file, and at the end what results differ in
on purpose. [Coming from musubi-tuner](../js/docs/coming_from_musubi_tuner.md) is the short form.

*works*: as there. *accepted*: changes nothing here, and one line names all such flags. *refused*:
an error that says what to do instead. *there*, *here*: the defaults; *here* is empty where it is
the same.
"""
HEAD = "\n| Flag | | there | here | |\n| --- | --- | --- | --- | --- |\n"


@dataclass(frozen=True)
class Flag:
    """What becomes of one of musubi-tuner's flags: an option, or one that is none here."""

    script: str
    name: str
    there: Any
    choices: tuple[Any, ...]
    leaf: Leaf | None
    foreign: Foreign | None

    @property
    def verdict(self) -> str:
        if self.foreign is not None:
            return "accepted" if self.foreign.harmless is None else "refused"
        assert self.leaf is not None
        idle = (self.script, self.name) in SPECIAL or NOTHING in self.leaf.option.help
        return "accepted" if idle else "works"

    @property
    def here(self) -> str:
        """Our default, where it is not the same."""
        if self.verdict != "works" or self.leaf is None or self.name in self.leaf.option.switches:
            return ""
        if self.leaf.default is None and self.there is None:
            return ""  # what none means is told where options are
        ours = default_of(self.leaf)
        return "" if _plain(ours) == _plain(_shown(self.there)) else ours

    @property
    def note(self) -> str:
        if self.foreign is not None:
            harmless = self.foreign.harmless
            but = f"{harmless[0]} is accepted; otherwise " if harmless else ""
            return but + self.foreign.reason
        assert self.leaf is not None
        if self.verdict == "accepted":
            why = self.leaf.option.help.partition(NOTHING)[2].rstrip(".")
            return SPECIAL.get((self.script, self.name), why)
        return "; ".join([*self._refused(), *([DEFAULTS.get(self.name, "")] if self.here else [])])

    def _refused(self) -> Iterator[str]:
        """Those of its choices that the option does not take."""
        refused = [str(choice) for choice in self.choices if not self._takes(choice)]
        if refused:
            yield f"refuses {', '.join(refused)}"

    def _takes(self, choice: Any) -> bool:
        assert self.leaf is not None
        try:
            self.leaf.read(choice, self.name)
        except FramePackError:
            return False
        return True


def flags(script: str) -> Iterator[Flag]:
    """All flags of a script, in its order; a KeyError for one that we do not know."""
    kind, foreign = KINDS[SCRIPTS[script][0]]
    options = {n: leaf_of_reference(x) for x in leaves(kind) for n in _names(x)}
    others = {option.name: option for option in foreign}
    for name, about in FLAGS[script].items():
        leaf = options.get(name)
        choices = tuple(about.get("choices", ()))
        other = None if leaf else others[name]
        yield Flag(script, name, about["default"], choices, leaf, other)


def page() -> str:
    """The whole page."""
    return "".join([ABOUT, *(part for script in FLAGS for part in _script(script)), *_results()])


def _script(script: str) -> Iterator[str]:
    yield f"\n## {script}\n{HEAD}"
    for flag in flags(script):
        there, here = _code(_shown(flag.there)), _code(flag.here)
        cells = (f"`--{flag.name}`", flag.verdict, there, here, flag.note.replace("|", "\\|"))
        yield f"| {' | '.join(cells)} |\n".replace("  ", " ")


def _results() -> Iterator[str]:
    yield "\n## Results\n\n*The reference* is musubi-tuner. Golden cases hold each line.\n\n"
    for tag, reason in DIFFERENCES.items():
        if tag not in OF_OUR_DEFAULTS:
            yield f"- {reason}\n"


def _names(leaf: Leaf) -> list[str]:
    """What a script may call an option, without dashes."""
    own = leaf.option.flags or (() if leaf.option.switches else (leaf.name,))
    names = [leaf.flag] if leaf.option.pair else own
    return [*names, *leaf.option.switches] if leaf.option.cli else []


def _shown(there: Any) -> str:
    return shown_default(tuple(there) if isinstance(there, list) else there)


def _plain(shown: str) -> str:
    """What is off or nothing is the same, however it is written."""
    return "" if shown in ("0", "off", "none") else shown


def _code(text: str) -> str:
    return f"`{text}`" if text else ""
