"""Tables of plain cells, from any list of flat mappings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sapper.report import text


@dataclass(frozen=True)
class Cell:
    """``title``: the full text of a shortened one; ``kind``: text, long (it wraps), number, code; ``mark``: a badge."""

    text: str
    title: str = ""
    kind: str = "text"
    mark: str = ""


@dataclass(frozen=True)
class Table:
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


def _short_hash(value: Any) -> Cell:
    return Cell(str(value)[:12], title=str(value), kind="code")


def _size(value: Any) -> Cell:
    return Cell(" × ".join(map(str, value)) if isinstance(value, list | tuple) else str(value), kind="number")


def _classes(value: Any) -> Cell:
    if isinstance(value, list | tuple):
        return Cell(str(len(value)), title=", ".join(map(str, value)), kind="number")
    return _cell(value)


def _seconds(value: Any) -> Cell:
    return Cell(text.duration(value), kind="number")


def _cell(value: Any) -> Cell:
    words = text.plain(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Cell(words, kind="number")
    return Cell(words, kind="long" if len(words) > 30 else "text")


_CELLS: dict[str, Callable[[Any], Cell]] = {
    "sha256": _short_hash,
    "size": _size,
    "classes": _classes,
    "seconds": _seconds,
    "path": lambda value: Cell(str(value), kind="code"),
}


_HEADINGS = {"n": "images", "seconds": "time"}


def table(items: Sequence[Mapping[str, Any]], note: str = "") -> Table | None:
    """Any list of flat mappings: a column for each key, in the order in which keys come up. None for no items."""
    if not items:
        return None
    keys = list(dict.fromkeys(key for item in items for key in item))

    def cell(key: str, value: Any) -> Cell:
        return _cell(None) if value is None else _CELLS.get(key, _cell)(value)

    rows = tuple(tuple(cell(key, item.get(key)) for key in keys) for item in items)
    return Table(tuple(_HEADINGS.get(key, key.replace("_", " ")) for key in keys), rows, note)
