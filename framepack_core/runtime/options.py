"""Options of a run, each declared once: a field of a frozen pydantic model says all about it.

What the command line, the inputs of nodes, help tables, resume rules and the metadata of files say
about an option is derived from its field by `leaves`; nothing else repeats a default or a range.
"""

from __future__ import annotations

import ast
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, cast, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from .errors import FramePackError

MAX_SEED = 2**64 - 1  # of torch's generators
NonEmpty = Annotated[str, Field(min_length=1)]

OFF = "off"
SAME = object()
"""Of `Option.reference`: musubi-tuner has the same default."""
RANDOM = "random"
"""Of `Option.reference`: it draws one for each run."""


@dataclass(frozen=True)
class Option:
    """What there is to say about an option besides its type, default and range.

    help opens with the term that a user would search for. flags: its names on the command line
    without dashes, the first one in messages; the field's name if there are none; cli: whether it
    is there at all. bare: its value where nothing stands behind its flag; None if something must.
    joined: its list is one word. positional: it has no flag. switches: flags that
    stand for a value, with their help; an option that has them and no other flags is given by them
    alone. pair: it is the NAME of a NAME=VALUE behind its flag. lines: its names in prompt lines.
    node: its name as an input of a node, "" to have none, None for the field's name. none: the
    value by which an input, which has no None, says None, and absent what that means. initial: the
    input's default where that is another. labels: what a widget calls the choices, in their order.
    offered: what it lists where the field takes other values too. step: of a number's widget.
    mutable: a resumed run may change it. metadata: the key under which files note it. reference:
    musubi-tuner's default where a result depends on another than ours.
    """

    help: str
    flags: tuple[str, ...] = ()
    cli: bool = True
    bare: Any = None
    switches: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    pair: str = ""
    lines: tuple[str, ...] = ()
    metavar: str | tuple[str, ...] | None = None
    joined: bool = False
    positional: bool = False
    unit: str = ""
    node: str | None = None
    none: Any = None
    absent: str = OFF
    initial: Any = SAME
    labels: tuple[str, ...] = ()
    offered: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    step: float | None = None
    advanced: bool = True
    mutable: bool = False
    metadata: str = ""
    reference: Any = SAME


_ABOUT = {each.name for each in fields(Option)} - {"help", "flags"}


def option(
    default: Any,
    help: str,
    *flags: str,
    **about: Any,
) -> Any:
    """A field of Settings that is an option.

    about: the other fields of Option, and pydantic's constraints, such as ge and le. low, high: the
    range of a node's widget where the field itself is not bounded on that side.
    """
    known = {name: about.pop(name) for name in _ABOUT & about.keys()}
    found: FieldInfo = Field(default, description=help, **about)
    found.metadata.append(Option(help, flags, **known))
    return found


class Settings(BaseModel):
    """A frozen table of settings; an unknown key is an error.

    title, about: of the group that its options form in `--help`; "" for no group of their own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    title: ClassVar[str] = ""
    about: ClassVar[str] = ""


S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Leaf:
    """An option of a model or of a model within it, which `path` leads to.

    kind: its type without None, which `optional` stands for. group: the class that declares it: the
    bases of a model are groups of its options.
    """

    path: tuple[str, ...]
    kind: Any
    optional: bool
    default: Any
    option: Option
    group: type[Settings]
    bounds: tuple[float | None, float | None]

    @property
    def name(self) -> str:
        """The field's own name."""
        return self.path[-1]

    @property
    def flag(self) -> str:
        """Its first name on the command line, without dashes."""
        return self.option.flags[0] if self.option.flags else self.name

    @property
    def command(self) -> str:
        """What messages call it on a command line."""
        return f"--{self.flag}: {self.option.pair}" if self.option.pair else f"--{self.flag}"

    @property
    def choices(self) -> tuple[Any, ...]:
        """All values it can have, if they are listed."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    def of(self, settings: Settings) -> Any:
        """Its value in an instance of the model."""
        value: Any = settings
        for name in self.path:
            value = getattr(value, name)
        return value

    def read(self, value: Any, name: str) -> Any:
        """A value, such as a text, as the field has it; FramePackError under `name` otherwise."""
        given = validate(self.group, {self.name: value}, name, {(self.name,): name})
        if self.kind is int and isinstance(value, str) and not value.strip().lstrip("-").isdigit():
            raise FramePackError(f"{name}: {value!r} is not a whole number")  # such as 2.0
        return getattr(given, self.name)

    def on(self, settings: Settings) -> bool:
        """Whether it was set, and not to what stands for nothing."""
        value = self.of(settings)
        return self.given(settings) and value is not None and value is not False

    def given(self, settings: Settings) -> bool:
        """Whether it was set rather than left at its default."""
        value: Any = settings
        for name in self.path:
            if name not in value.model_fields_set:
                return False
            value = getattr(value, name)
        return True


def leaves(kind: type[Settings], path: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """All options of a model, those of models within it too, in the order of their fields."""
    for name, found in kind.model_fields.items():
        inner, optional = _without_none(found.annotation)
        # Python 3.10 takes tuple[int, int] for a type, of which issubclass() knows nothing.
        if get_origin(inner) is None and isinstance(inner, type) and issubclass(inner, Settings):
            yield from leaves(inner, (*path, name))
            continue
        about = next((m for m in found.metadata if isinstance(m, Option)), None)
        if about is not None:
            required = found.is_required()
            default = None if required else found.get_default(call_default_factory=True)
            bounds = _bounds(found, about, inner)
            group = _declared_by(kind, name)
            yield Leaf((*path, name), inner, optional, default, about, group, bounds)


def updated(settings: S, values: Mapping[tuple[str, ...], Any]) -> S:
    """A copy with values in the place of others, by path; they are as `Leaf.read` gives them."""
    changes: dict[str, Any] = {}
    for name in dict.fromkeys(path[0] for path in values):
        inner = {path[1:]: value for path, value in values.items() if path[0] == name}
        changes[name] = inner[()] if () in inner else updated(getattr(settings, name), inner)
    return settings.model_copy(update=changes)


def nested(values: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Values by path as tables within tables."""
    tree: dict[str, Any] = {}
    for path, value in values.items():
        table = tree
        for name in path[:-1]:
            table = table.setdefault(name, {})
        table[path[-1]] = value
    return tree


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Tables within tables, in which `over` wins."""
    both = dict(base)
    for name, value in over.items():
        inner = both.get(name)
        if isinstance(inner, dict) and isinstance(value, dict):
            value = merged(inner, value)
        both[name] = value
    return both


def mutable_on_resume(kind: type[Settings]) -> set[str]:
    """Names of the options that a resumed run may change."""
    return {leaf.name for leaf in leaves(kind) if leaf.option.mutable}


def file_metadata(settings: Settings) -> dict[str, Any]:
    """The values of all options that files note, by their keys; empty texts are left out."""
    found = (leaf for leaf in leaves(type(settings)) if leaf.option.metadata)
    return {leaf.option.metadata: leaf.of(settings) for leaf in found if leaf.of(settings) != ""}


def validate(
    kind: type[S],
    values: Mapping[str, Any],
    place: str,
    names: Mapping[tuple[str, ...], str] | None = None,
) -> S:
    """The settings of a table; raises FramePackError with one line for the first mistake.

    place: what an error calls the table. names: what it calls options by their path, where that is
    not place: path.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise FramePackError(_first_line(error, kind, place, names or {})) from None


def parse_pairs(words: Iterable[str], place: str) -> dict[str, Any]:
    """NAME=VALUE words, where values are Python literals or else texts."""
    pairs = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise FramePackError(f"{place}: {word!r} is not NAME=VALUE")
        try:
            pairs[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            _check_quotes(value, f"{place}: {name}")
            pairs[name] = value
    return pairs


def _check_quotes(value: str, place: str) -> None:
    """Refuse text in brackets that is no list: a shell takes quotes away that were not quoted."""
    for opening, closing in ("[]", "()", "{}"):
        if value[:1] == opening and value.count(opening) > value.count(closing):
            raise FramePackError(
                f"{place}: {value} is no list, as a {closing} is missing at its end"
            )
    if (value[:1], value[-1:]) in {("[", "]"), ("(", ")"), ("{", "}")}:
        inside = value[1:-1].split(",")
        written = value[0] + ", ".join(f"'{part.strip()}'" for part in inside) + value[-1]
        raise FramePackError(
            f"{place}: {value} is no list, as its quotes are missing; write "
            f'"{place.rpartition(": ")[2]}={written}" with quotes around all of it'
        )


def _declared_by(kind: type[Settings], name: str) -> type[Settings]:
    """The first class that has an option, but one without a title leaves it to those above."""
    bases = [base for base in reversed(kind.__mro__) if issubclass(base, Settings)]
    having = (base for base in bases if name in base.model_fields and base.title)
    return next(having, kind)


def _without_none(annotation: Any) -> tuple[Any, bool]:
    """A type without None and without what Annotated adds, and whether None was allowed."""
    if get_origin(annotation) is Annotated:
        return _without_none(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [part for part in get_args(annotation) if part is not type(None)]
        if len(kinds) == 1:
            return _without_none(kinds[0])[0], len(get_args(annotation)) > 1
    return annotation, False


def _bounds(found: FieldInfo, about: Option, kind: Any) -> tuple[float | None, float | None]:
    low, high, next_to = about.low, about.high, int(kind is int)
    for rule in found.metadata:
        if isinstance(rule, (Ge, Gt)):
            least: Any = rule.ge if isinstance(rule, Ge) else cast(Any, rule.gt) + next_to
            low = least if low is None else max(low, least)
        if isinstance(rule, (Le, Lt)):
            most: Any = rule.le if isinstance(rule, Le) else cast(Any, rule.lt) - next_to
            high = most if high is None else min(high, most)
    return low, high


_PLAIN = {
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "int_parsing": "is not a whole number",
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "float_parsing": "is not a number",
    "float_type": "is not a number",
    "bool_parsing": "is neither true nor false",
    "finite_number": "is not a finite number",
    "literal_error": "is unknown; use {expected}",
    "string_type": "is not a text",
    "path_type": "is not a path",
    "string_too_short": "is empty",
    "tuple_type": "is not a list",
    "list_type": "is not a list",
}


def _first_line(
    error: ValidationError,
    kind: type[Settings],
    place: str,
    names: Mapping[tuple[str, ...], str],
) -> str:
    first = error.errors()[0]
    # Validators inside of a union stand in the path too: "function-after[...]".
    path = tuple(str(part) for part in first["loc"] if "[" not in str(part))
    name = next((n for p, n in names.items() if path[: len(p)] == p), None)
    name = f"{place}: {'.'.join(path)}" if name is None and path else name or place
    if first["type"] == "extra_forbidden":
        others = [e["loc"] for e in error.errors()[1:] if e["type"] == "extra_forbidden"]
        beside = [str(loc[-1]) for loc in others if loc[:-1] == first["loc"][:-1]]
        known = ", ".join(kind.model_fields)
        return f"{', '.join([name, *beside])}: unknown; known are {known}"
    if first["type"] == "missing":
        return f"{name}: missing; give it"
    plain = _PLAIN.get(first["type"])
    if plain is not None:
        limits = {k: _number(v) for k, v in first.get("ctx", {}).items()}
        return f"{name}: {_shown(first['input'])} {plain.format(**limits)}"
    message = first["msg"].removeprefix("Value error, ")
    given = repr(first["input"])
    shown = f" (given: {given})" if path and len(given) < 60 and given not in message else ""
    return f"{name}: {message}{shown}"


def _number(value: Any) -> Any:
    return f"{value:g}" if isinstance(value, float) else value


def _shown(value: Any) -> str:
    text = repr(str(value) if isinstance(value, Path) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."
