"""Options of musubi-tuner's that are no options here: not needed, or refused with what to do."""

from __future__ import annotations

from argparse import SUPPRESS, Action, ArgumentParser, Namespace
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..runtime.display import warn
from ..runtime.errors import FramePackError


@dataclass(frozen=True)
class Foreign:
    """An option by the name of its flag.

    reason: why it is not needed, or what to do instead. words: how many stand behind the flag.
    harmless: values with which it changes nothing here; None for all of them.
    """

    name: str
    reason: str
    words: int = 0
    harmless: tuple[str, ...] | None = None

    @property
    def refused(self) -> bool:
        """Whether there are values that would change something."""
        return self.harmless is not None


def _refused(*names: str, instead: str, words: int = 1) -> tuple[Foreign, ...]:
    return tuple(Foreign(name, instead, words, ()) for name in names)


_COMPILE = "use --compile, which compiles the blocks"
_UPLOAD = "nothing is uploaded; afterwards run: hf upload REPOSITORY FILE"
_SHOWN = "leave it out; the summary of the data set tells sizes and counts"
VAE_DTYPE = Foreign(
    "vae_dtype", "leave it out: the VAE is in float16 on a GPU", 1, ("float16", "fp16")
)

TRAINING = (
    Foreign("split_attn", "masks are exact, so batches need not be split"),
    Foreign("persistent_data_loader_workers", "caches are read without workers"),
    Foreign("max_data_loader_n_workers", "caches are read without workers", 1),
    Foreign("save_state_on_train_end", "the last state is always saved"),
    Foreign(
        "use_pinned_memory_for_block_swap",
        "swapped blocks are in pinned memory where there is room for it",
    ),
    Foreign("block_swap_h2d_only", "weights are only ever copied to the GPU"),
    Foreign("block_swap_ring_size", "two blocks visit the GPU", 1),
    Foreign("img_in_txt_in_offloading", "changes nothing of FramePack there either"),
    Foreign("ddp_gradient_as_bucket_view", "gradients are averaged in one message"),
    Foreign("ddp_static_graph", "gradients are averaged in one message"),
    VAE_DTYPE,
    Foreign("dynamo_backend", _COMPILE, 1, ("NO", "no")),
    *_refused("dynamo_mode", instead=_COMPILE),
    *_refused("dynamo_fullgraph", "dynamo_dynamic", instead=_COMPILE, words=0),
    *_refused("huggingface_repo_id", "huggingface_repo_type", instead=_UPLOAD),
    *_refused("huggingface_path_in_repo", "huggingface_token", instead=_UPLOAD),
    *_refused("huggingface_repo_visibility", instead=_UPLOAD),
    *_refused("save_state_to_huggingface", "async_upload", instead=_UPLOAD, words=0),
    *_refused("resume_from_huggingface", instead="run hf download, then --resume FILE", words=0),
)
CACHING = (
    Foreign("num_workers", "clips are read one after the other", 1),
    VAE_DTYPE,
    *_refused("debug_mode", "console_width", "console_back", "console_num_images", instead=_SHOWN),
)
# NAMEs of --network_args.
NETWORK_ARGUMENTS = {
    "conv_dim": "the blocks have no convolutions",
    "conv_alpha": "the blocks have no convolutions",
    "verbose": "the layers are in the file",
}
NETWORK_FLAG = "network_args"
_GIVEN = "foreign"  # where the Namespace has those that were given


def add_foreign(parser: ArgumentParser, options: Iterable[Foreign]) -> None:
    """Let a command line have them; `settle` says what becomes of them."""
    for option in options:
        parser.add_argument(
            f"--{option.name}",
            dest=_GIVEN,
            nargs=option.words,
            action=_Note,
            default=SUPPRESS,
            help=SUPPRESS,
        )


def settle(
    args: Namespace,
    options: Collection[Foreign],
    table: Mapping[str, Any] | None = None,
    more: Collection[str] = (),
) -> None:
    """Raise FramePackError for all that are refused, and name the others in one line.

    table: options of a file. more: others that change nothing.
    """
    given = dict(vars(args).get(_GIVEN, {}))
    set_values = {n: v for n, v in (table or {}).items() if v not in (False, None, "")}
    given |= {name: [str(value)] for name, value in set_values.items()}
    by_name = {option.name: option for option in options}
    found = {name: by_name[name.removeprefix("--")] for name in given}
    refused = [
        f"{name}: {option.reason}"
        for name, option in found.items()
        if option.harmless is not None and not set(given[name]) & set(option.harmless)
    ]
    if refused:
        raise FramePackError("; ".join(refused))
    if names := [*found, *more]:
        warn(f"{', '.join(names)}: not needed here, ignored")


def without_needless(table: dict[str, Any]) -> list[str]:
    """Take those NAME=VALUE of network_args out that change nothing; how they are called."""
    names = []
    for key, value in table.items():
        if isinstance(value, dict):
            names += without_needless(value)
        elif key == NETWORK_FLAG and isinstance(value, list):
            needless = [word for word in value if str(word).partition("=")[0] in NETWORK_ARGUMENTS]
            value[:] = [word for word in value if word not in needless]
            names += [f"{NETWORK_FLAG} {word.partition('=')[0]}" for word in needless]
    return names


class _Note(Action):
    """Keep the name of an option that was given, and its value."""

    def __call__(
        self, _parser: ArgumentParser, namespace: Namespace, values: Any, option: str | None = None
    ) -> None:
        setattr(namespace, self.dest, {**vars(namespace).get(self.dest, {}), option: values})
