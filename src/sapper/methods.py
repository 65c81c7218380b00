"""Methods by name: one table per package, third-party ones by entry point, imported only when used."""

import sys
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, ClassVar, Protocol, get_type_hints, runtime_checkable

from pydantic import TypeAdapter, ValidationError

from sapper.errors import SapperError, closest

HEADS = {
    "mlp": "sapper.downstream.heads:MLP",
    "linear": "sapper.downstream.heads:Linear",
    "knn": "sapper.downstream.heads:KNN",
    "zero_shot": "sapper.downstream.zero_shot:ZeroShot",
    "finetune": "sapper.downstream.tuning:Finetune",
}
"""Downstream classifiers. Other tables are in the packages of their methods."""

TRIGGERS = {
    "patch": "sapper.triggers.images:Patch",
    "patches": "sapper.triggers.patches:Patches",
    "random_patch": "sapper.triggers.random_patch:RandomPatch",
    "blend": "sapper.triggers.images:Blend",
    "filter": "sapper.triggers.images:Filter",
    "frequency": "sapper.triggers.frequency:Frequency",
    "mask": "sapper.triggers.images:Mask",
    "colors": "sapper.triggers.images:Colors",
    "noise": "sapper.triggers.learned:Noise",
    "network": "sapper.triggers.learned:Network",
}
"""What an attacker does to images."""


class Method(Protocol):
    """What all methods share: a frozen dataclass of parameters that is called to do its work.

    ``version`` rises whenever the same parameters give another result, so that the Store forgets old ones;
    ``source`` is the paper; ``presets`` are named sets of parameters, such as a paper's own; they may also set keys of
    the scenario's section that chooses the method.
    """

    version: ClassVar[int]
    source: ClassVar[str]
    presets: ClassVar[dict[str, dict[str, Any]]]


@runtime_checkable
class Borrowing(Protocol):
    """A method whose results other installed packages can change, besides torch and torchvision: ``libraries``."""

    libraries: ClassVar[tuple[str, ...]]


def libraries_of(method: object) -> tuple[str, ...]:
    """The installed packages that can change what a method gives; most use none."""
    return method.libraries if isinstance(method, Borrowing) else ()


class Checked:
    """For dataclasses of parameters: each value is checked against its type when an instance is made.

    Raises ``SapperError`` naming the parameter. A scenario's values have been checked with file and key before.
    """

    def __post_init__(self) -> None:
        kind: Any = type(self)
        for name, adapter in _adapters(kind).items():
            try:
                adapter.validate_python(getattr(self, name), strict=True)
            except ValidationError as error:
                said = error.errors(include_url=False)[0]["msg"]
                where = f"{kind.__name__}.{name}"
                raise SapperError(f"{getattr(self, name)!r} does not fit", where=where, remedy=said) from error


@cache
def _adapters(kind: type) -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: TypeAdapter(hints[field.name]) for field in fields(kind)}


LATER = {"later": True}
"""Metadata of a parameter that came when stages were stored already. See ``settings``."""


@runtime_checkable
class Part(Protocol):
    """A method that is a parameter of another, as plain data: with its version."""

    def described(self) -> dict[str, Any]: ...


def settings(method: Any) -> dict[str, Any]:
    """Every parameter of a method as plain data: for keys of stages and for cards.

    A parameter that is marked as ``LATER`` is left out at its default, so that what was stored before it came is found.
    """
    whole = asdict(method)
    for field in fields(method):
        if "later" in field.metadata:
            value = getattr(method, field.name)
            if value == field.default:
                del whole[field.name]
            elif isinstance(value, tuple):
                whole[field.name] = [each.described() if isinstance(each, Part) else each for each in value]
    return whole


@dataclass(frozen=True)
class Parameter:
    """A parameter of a method, for people."""

    name: str
    type: str
    default: str


def known(kind: str, table: dict[str, str]) -> dict[str, str]:
    """Names and places ("module:Class") of all methods of a kind: ours, and those that other packages add.

    A package adds its own with an entry point in the group ``sapper.<kind>``.
    """
    return table | _added(kind, tuple(sys.path))


@cache
def _added(kind: str, _path: tuple[str, ...]) -> dict[str, str]:
    """What other packages add. A look reads a file of every installed package, so there is one for each Python path."""
    return {point.name: point.value for point in entry_points(group=f"sapper.{kind}")}


def place_of(kind: str, table: dict[str, str], name: str, where: str) -> str:
    """Where the method called ``name`` is, not yet imported. Raises ``SapperError`` (``where``: the key) if unknown."""
    places = known(kind, table)
    if name not in places:
        raise SapperError(f"unknown method {name!r}", where=where, remedy=closest(name, list(places)))
    return places[name]


def find(kind: str, table: dict[str, str], name: str, where: str) -> Any:
    """The class of the method called ``name``. Raises ``SapperError`` (``where`` names the key) if unknown."""
    return imported(place_of(kind, table, name, where))


def imported(place: str) -> Any:
    """What is at a place, "module:Class"."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)


def parameters(method: type) -> list[Parameter]:
    """The parameters of a method with their types and defaults."""
    hints = get_type_hints(method)
    return [
        Parameter(
            name=field.name,
            type=getattr(hints[field.name], "__name__", str(hints[field.name])),
            default="required" if field.default is MISSING else repr(field.default),
        )
        for field in fields(method)
    ]
