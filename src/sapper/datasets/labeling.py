"""Labels as files hold them, integers, texts, null and others, into int64 labels and class names."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sapper.errors import SapperError

MOST_CLASSES = 300_000
"""More than any set of images has; each class has a name in memory."""


@dataclass(frozen=True)
class Labels:
    """Labels, int64 (N,), or none; the classes that they name themselves, if they do; and what to say of them."""

    values: Tensor | None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def as_labels(values: Sequence[Any], names: tuple[str, ...], where: str, *, needed: bool) -> Labels:
    """One label per image from what a column or an array holds.

    Integers, booleans and whole numbers of floats are labels; texts are places in ``names``, or, without these, among
    the sorted texts. Rows with null, NaN or -1 have no label; where all are like that, neither has the set.
    Raises ``SapperError`` for anything else; where no labels are ``needed`` there are none then.
    """
    try:
        found = _as_labels(values, names, where)
    except SapperError:
        if needed:
            raise
        return Labels(None)
    return found if needed else replace(found, notes=())


def refuse(what: str, where: str) -> SapperError:
    """The error for labels that are no labels of classes."""
    remedy = "store one integer 0, 1, 2 … or one text per image, and class names in classes.json beside the file"
    return SapperError(what, where=where, remedy=remedy)


def _as_labels(values: Sequence[Any], names: tuple[str, ...], where: str) -> Labels:
    missing = sum(_is_missing(value) for value in values)
    if values and missing == len(values):
        return Labels(None, notes=("Its labels are all null or -1: it has none.",))
    if missing:
        what = f"{missing:,} rows have no label"
        if -1 in values:
            what += f": labels run from -1 to {max(value for value in values if value is not None)}, and -1 is no class"
        raise SapperError(what, where=where, remedy="drop those rows, or label them")
    if values and all(isinstance(value, str) for value in values):
        return _from_texts(values, names, where)
    numbers = []
    for row, value in enumerate(values):
        if not isinstance(value, bool | int | float) or value != value // 1:
            kind = f"{value!r} in row {row}" if isinstance(value, int | float | str) else type(value).__name__
            raise refuse(f"labels are no whole numbers: {kind}", where)
        numbers.append(int(value))
    lowest, highest = min(numbers, default=0), max(numbers, default=0)
    if lowest < 0 or highest >= MOST_CLASSES:
        what = f"labels run from {lowest:,} to {highest:,}, and no more than {MOST_CLASSES:,} classes are told apart"
        raise SapperError(what, where=where, remedy="number the classes from 0, without gaps")
    return Labels(torch.tensor(numbers, dtype=torch.int64))


def _from_texts(texts: Sequence[str], names: tuple[str, ...], where: str) -> Labels:
    classes = names or tuple(sorted(set(texts)))
    places = {name: at for at, name in enumerate(classes)}
    for row, text in enumerate(texts):
        if text not in places:
            remedy = "list every class in classes.json, or remove that file"
            raise SapperError(f"label {text!r} in row {row} is none of the classes", where=where, remedy=remedy)
    return Labels(torch.tensor([places[text] for text in texts], dtype=torch.int64), classes)


def _is_missing(value: Any) -> bool:
    return value is None or value == -1 or value != value
