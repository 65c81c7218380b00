"""Changes of a scenario's content by dotted keys: from the command line, and a scenario's own variants."""

import tomllib
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from sapper.errors import SapperError

FIXED = ("name", "seeds", "precision", "judge_on", "matrix", "only", "variant")
"""What a variant cannot change: these are of the scenario as a whole."""


def apply(content: dict[str, Any], change: str) -> None:
    """Make a change such as ``attack.epochs=50``. Raises ``SapperError`` when it is none, or its key holds no value."""
    key, equals, value = change.partition("=")
    if not equals or not all(key.strip().split(".")):
        remedy = "write for example attack.epochs=50"
        raise SapperError(f"{change!r} is not KEY=VALUE", where="--set", remedy=remedy)
    override(content, key.strip(), _value(value.strip()), "--set")


def override(content: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set the dotted ``key`` in ``content``; a list of tables on the way is changed in every table, or at a number."""
    head, _, rest = key.partition(".")
    if not rest:
        content[head] = deepcopy(value)  # else two tables would share a list
        return
    below = content.setdefault(head, {})
    tables = below if isinstance(below, list) else [below]
    first, _, others = rest.partition(".")
    if isinstance(below, list) and first.isdecimal():
        if int(first) >= len(below):
            remedy = f"there are {len(below)}, counted from 0"
            raise SapperError(f"there is no {head} number {first}", where=f"{where}: {key}", remedy=remedy)
        tables, rest = [below[int(first)]], others
    if not rest or not all(isinstance(table, dict) for table in tables):
        what, remedy = f"{head!r} holds no keys that could be set", "set it as a whole"
        raise SapperError(what, where=f"{where}: {key}", remedy=remedy)
    for table in tables:
        override(table, rest, value, where)


def variant(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """A variant by dotted keys: ``"attack.lambda1" = 0`` and ``attack.lambda1 = 0`` mean the same."""
    changes = dict(_dotted(raw))
    for key in changes:
        if key.partition(".")[0] in FIXED or not all(key.split(".")):
            remedy = f"change a key of a table, such as attack.epochs; {', '.join(FIXED)} are the same for all variants"
            raise SapperError("a variant cannot change this key", where=f"{where}.{key}", remedy=remedy)
    return changes


def _dotted(table: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Nested tables as dotted keys. A table below a quoted dotted key is a value: it replaces what was there."""
    for key, value in table.items():
        if isinstance(value, dict) and "." not in key:
            yield from _dotted(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _value(text: str) -> Any:
    """A value as TOML has it; a bare word is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
