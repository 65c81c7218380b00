"""The command that lists what there is: data sets, methods, triggers."""

import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from inspect import cleandoc
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.padding import Padding
from rich.text import Text

from sapper.cli.shared import out
from sapper.errors import SapperError, closest

if TYPE_CHECKING:
    from sapper.datasets import DatasetInfo


def methods(
    name: Annotated[str | None, typer.Argument(help="Only this one, with its description.")] = None,
) -> None:
    """What there is: data sets, methods of every kind and triggers, with parameters, defaults and sources."""
    from sapper import attacks, datasets, defenses, pretraining
    from sapper.attacks import adaptive
    from sapper.methods import HEADS, TRIGGERS, known

    kinds = {
        "pretraining": known("pretraining", pretraining.METHODS),
        "attacks": known("attacks", attacks.METHODS),
        "adaptive": known("adaptive", adaptive.METHODS),
        "heads": known("heads", HEADS),
        "defenses": known("defenses", defenses.METHODS),
        "triggers": known("triggers", TRIGGERS),
    }
    found = [
        (method, _method_printer(kind, method, place, whole=name is not None))
        for kind, table in kinds.items()
        for method, place in table.items()
    ]
    found += [(info.name, _dataset_printer(info)) for info in datasets.describe()]
    chosen = [
        show for known_as, show in found if name in (None, known_as)
    ]  # an attack and its trigger may share a name
    if not chosen:
        remedy = f"{closest(name or '', [known_as for known_as, _ in found])}; sapper methods lists all"
        raise SapperError(f"there is no {name!r}", where="sapper methods", remedy=remedy)
    for show in chosen:
        show()


def _method_printer(kind: str, name: str, place: str, *, whole: bool) -> Callable[[], None]:
    """Prints a method with its parameters; its first line of documentation, or the ``whole`` and that of its file.

    The method is imported when it is printed, and torch with it.
    """
    from sapper.methods import Method, imported, parameters

    def show() -> None:
        cls: type[Method] = imported(place)
        out.print(f"[bold]{name}[/bold]  [dim]{kind}{' · ' + escape(cls.source) if cls.source else ''}[/dim]")
        text = cleandoc(cls.__doc__ or "")
        if whole and kind in OF_A_FILE:
            shared = [cleandoc(base.__doc__ or "") for base in cls.__mro__[1:] if _own_parameters(base)]
            text = "\n\n".join([cleandoc(sys.modules[cls.__module__].__doc__ or ""), text, *shared])
        out.print(Padding.indent(Text(_flowing(text) if whole else text.partition("\n\n")[0]), 2))
        if kind in NEEDY:
            method: Any = cls
            needs = ", ".join(sorted(method.needs)) or f"nothing besides the {NEEDY[kind]}"
            sort = f"kind: {method.kind}, " if kind in KINDS else ""
            if sort and method.kind == "poison":
                sort = f"kind: poison of the {method.of} set, "
            out.print(Padding.indent(Text(f"{sort}needs: {needs}"), 4))
        for parameter in parameters(cls):
            out.print(f"    {parameter.name} = {escape(parameter.default)}")
        for preset, values in cls.presets.items():
            text = ", ".join(f"{key} = {value!r}" for key, value in values.items()) or "the defaults"
            out.print(Padding.indent(Text(f'preset = "{preset}": {text}'), 4))
        out.print()

    return show


def _own_parameters(base: type) -> list[str]:
    """The parameters that a class adds to those of its own bases."""
    inherited = {each.name for parent in base.__mro__[1:] if is_dataclass(parent) for each in fields(parent)}
    return [each.name for each in fields(base) if each.name not in inherited] if is_dataclass(base) else []


NEEDY = {"defenses": "model", "attacks": "data", "pretraining": "data"}
"""Kinds whose methods say what they need, and what all of them have."""

KINDS = ("defenses", "attacks")
"""Kinds whose methods say of which sort they are."""

OF_A_FILE = ("pretraining", "attacks", "adaptive", "defenses")
"""Kinds whose methods have a file each, with threat model, objective and source in its documentation."""


def _flowing(text: str) -> str:
    """Paragraphs as one line each, for the terminal to break; formulas and tables, which are indented, as they are."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(part if "\n " in f"\n{part}" else part.replace("\n", " ") for part in paragraphs)


def _dataset_printer(info: "DatasetInfo") -> Callable[[], None]:
    def show() -> None:
        out.print(f"[bold]{info.name}[/bold]  [dim]data set · {info.kind}[/dim]")
        out.print(Padding.indent(Text(f"{info.classes} classes, splits {', '.join(info.splits)}. {info.source}"), 2))
        if info.note:
            out.print(Padding.indent(Text(info.note), 2))
        out.print()

    return show
