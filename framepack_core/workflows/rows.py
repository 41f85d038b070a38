"""The language of the table in `foreign`: what becomes of a node of another pack."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .graph import BYPASSED, MUTED, Id, Link, MadeLink, Node
from .kinds import KINDS

MOST = 100  # nodes of a chain, which in a damaged file may have no end
NOTHING: Any = object()  # what a source gives where there is nothing to carry over
Source = Callable[["View"], Any]


@dataclass(frozen=True)
class Makes:
    """A node to make: its inputs from those of the node that it stands for, by name or computed.

    each: makes one for every view that it gives, in a chain: the first output of one is the input
    `carries` of the next, and of the first it is `first`, which also stands for the chain where it
    is empty. key: what others of the same row call it.
    """

    type: str
    inputs: Mapping[str, str | Source]
    key: str
    each: Callable[[View], Iterable[View]] | None = None
    carries: str = ""
    first: Source | None = None


@dataclass(frozen=True)
class Row:
    """What becomes of one type of node; without `makes` and `passes` it goes.

    widgets: names in order, by version of the pack. makes: the last without `each` takes the
    node's number and title. outputs: for each slot the output of a node made, by part where it
    carries several values as one. passes: for each slot the input whose link takes its place.
    lost: of inputs that have no equal, the values at which nothing is lost, and why. silent: inputs
    that have an effect only beside others, which say what is lost. only: whether this one can be
    replaced. no_equal: why it stays.
    """

    widgets: Sequence[Sequence[str]] = ((),)
    makes: Sequence[Makes] = ()
    outputs: Sequence[Mapping[str, tuple[str, str]]] = ()
    passes: Sequence[str] = ()
    lost: Mapping[str, tuple[tuple[Any, ...], str]] = field(default_factory=dict)
    silent: Collection[str] = ()
    only: Callable[[View], bool] | None = None
    no_equal: str = ""


class View:
    """A node that is converted, among those that were there before; with inputs in place of its."""

    def __init__(
        self,
        node: Node,
        before: Mapping[Id, Node],
        tell: Callable[[str], None],
        made: dict[str, Any] | None = None,
        **inputs: Any,
    ) -> None:
        self.node = node
        self.inputs = node.inputs | inputs
        self.outputs = {} if made is None else made  # of what was made for it, by key: node or link
        self._before = before
        self._tell = tell

    def with_inputs(self, **inputs: Any) -> View:
        return View(self.node, self._before, self._tell, self.outputs, **inputs)

    def get(self, name: str) -> Any:
        """A value or a link; NOTHING where there is none."""
        self.node.read.add(name)
        return self.inputs.get(name, NOTHING)

    def value(self, name: str, default: Any = None) -> Any:
        """A value; the default where there is none, or a link."""
        found = self.get(name)
        return default if found is NOTHING or isinstance(found, Link) else found

    def linked(self, name: str) -> bool:
        return isinstance(self.get(name), Link)

    def behind(self, name: str) -> View | None:
        """The node that an input is linked to."""
        link = self.get(name)
        node = self._before.get(link.node) if isinstance(link, Link) else None
        return None if node is None else View(node, self._before, self._tell)

    def is_used(self, slot: int) -> bool:
        """Whether something is linked to one of its outputs."""
        wanted = Link(self.node.id, slot)
        return any(link == wanted for node in self._before.values() for _, link in node.links)

    @property
    def active(self) -> bool:
        return self.node.mode not in (MUTED, BYPASSED)

    def made(self, key: str, output: str) -> Any:
        """An output of a node made for this one, or what stands for it."""
        found = self.outputs[key]
        if not isinstance(found, Node):
            return found
        return MadeLink(found.id, list(KINDS[found.type].outputs).index(output))

    def lost(self, text: str) -> None:
        """Name what has no equal."""
        self._tell(f"{self.node.type} {self.node.id}: {text}")


# --- Sources ----------------------------------------------------------------------------------


def always(value: Any) -> Source:
    """A value that does not depend on the node."""
    return lambda view: value


def first_of(*names: str) -> Source:
    """That of several inputs which the node has, as its versions called it."""

    def take(view: View) -> Any:
        return next((value for name in names if (value := view.get(name)) is not NOTHING), NOTHING)

    return take


def made(key: str, output: str) -> Source:
    """An output of a node made before."""
    return lambda view: view.made(key, output)


def part(name: str, which: str) -> Source:
    """One of several values that a link carries."""

    def take(view: View) -> Any:
        link = view.get(name)
        return link._replace(part=which) if isinstance(link, Link) else NOTHING

    return take


def choice(name: str, ours: Mapping[Any, Any]) -> Source:
    """A choice by our names; one that has none is named and left at our default."""

    def take(view: View) -> Any:
        value = view.get(name)
        if value is NOTHING or isinstance(value, Link):
            return value
        if value not in ours:
            view.lost(f"{name} {value}: there is no such choice here; the default is taken")
        return ours.get(value, NOTHING)

    return take


# --- How often --------------------------------------------------------------------------------


def where_linked(name: str) -> Callable[[View], Iterator[View]]:
    """Once, where an input is linked."""
    return lambda view: (view for _ in range(view.linked(name)))


def where_used(*slots: int) -> Callable[[View], Iterator[View]]:
    """Once, where something is linked to one of these outputs."""
    return lambda view: (view for _ in range(any(map(view.is_used, slots))))


def where_filled(name: str) -> Callable[[View], Iterator[View]]:
    """Once, where an input is linked or has a text."""
    return lambda view: (view for _ in range(view.get(name) not in (NOTHING, "")))


def chain_behind(name: str, type: str, previous: str) -> Callable[[View], list[View]]:
    """The nodes of a type that an input is linked to, each to the one before; the first first."""

    def walk(view: View) -> list[View]:
        found: list[View] = []
        at, at_name = view, name
        while at.linked(at_name):
            behind = at.behind(at_name)
            if behind is None or behind.node.type != type or len(found) > MOST:
                view.lost(f"{name}: what it is linked to is no {type} beside it")
                break
            found.append(behind)
            at, at_name = behind, previous
        return found[::-1]

    return walk
