"""Data from a file against what it should be: one error for every mistake, with file, key and remedy."""

import json
import math
from dataclasses import fields
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from sapper.errors import SapperError, closest, located


class Section(BaseModel):
    """A table of the file: known keys only, exact types, fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


S = TypeVar("S", bound=Section)


def read_section(model: type[S], values: dict[str, Any], file: str, key: str) -> S:
    """The table ``key`` of ``file`` as a section."""
    known = [field.alias or name for name, field in model.model_fields.items()]
    result: S = _validated(TypeAdapter(model), values, file, key, known)
    return result


def read_instance(kind: type, values: dict[str, Any], file: str, key: str, also: list[str] | None = None) -> Any:
    """An instance of a dataclass from a table; ``also`` are keys of the table that are not its own."""
    known = [field.name for field in fields(kind)]
    for name in values:
        if name not in known:
            remedy = closest(name, known + (also or []))
            raise SapperError(f"unknown key {name!r}", where=f"{file}: {key}.{name}", remedy=remedy)
    return _validated(TypeAdapter(kind), values, file, key, known)


def check_plain(value: Any, file: str, key: str = "") -> None:
    """Refuse what TOML has and no parameter is: infinity, not-a-number, dates, integers beyond 64 bits."""
    where = f"{file}: {key}"
    match value:
        case dict():
            for name, item in value.items():
                check_plain(item, file, f"{key}.{name}" if key else name)
        case list():
            for index, item in enumerate(value):
                check_plain(item, file, f"{key}[{index}]")
        case float() if not math.isfinite(value):
            raise SapperError(f"{value} is not a finite number", where=where, remedy="write a finite number")
        case int() if not -(2**63) <= value < 2**63:
            raise SapperError("the number does not fit into 64 bits", where=where, remedy="write a smaller number")
        case str() | int() | float():
            pass
        case _:
            remedy = "put quotes around it if it is meant as text"
            raise SapperError(f"{value} is a date or a time", where=where, remedy=remedy)


def check_unique(names: list[str], where: str, what: str) -> None:
    """Refuse two of the same name."""
    for name in names:
        if names.count(name) > 1:
            raise SapperError(f"two of them are called {name!r}", where=where, remedy=f"give each {what} its own name")


def _validated(adapter: TypeAdapter[Any], values: Any, file: str, key: str, known: list[str]) -> Any:
    try:
        # By way of JSON, because pydantic's strict mode then takes arrays for tuples, as TOML writes them.
        with located(f"{file}: {key}", "."):  # errors of methods that are parameters
            return adapter.validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise _in_our_words(error, file, key, known) from error


UNKNOWN, MISSING = ("extra_forbidden", "unexpected_keyword_argument"), ("missing", "missing_argument")


def _in_our_words(error: ValidationError, file: str, key: str, known: list[str]) -> SapperError:
    """The first of pydantic's errors; an unknown key goes before a missing one, which it may be, misspelt."""
    errors = sorted(error.errors(include_url=False), key=lambda item: item["type"] not in UNKNOWN)
    kind, (*path, value) = errors[0]["type"], (*errors[0]["loc"], errors[0]["input"])
    name, indices = path[:1], [part for part in path[1:] if isinstance(part, int)]
    where = f"{file}: {'.'.join(map(str, [key, *name] if key else name))}{''.join(f'[{i}]' for i in indices)}"
    if kind in UNKNOWN:
        return SapperError(f"unknown key {name[0]!r}", where=where, remedy=closest(str(name[0]), known))
    if kind in MISSING and not indices:
        remedy = f"add it to [{key}]" if key else "add it to the file"
        return SapperError(f"the key {name[0]!r} is missing", where=where, remedy=remedy)
    # The members of a union fail one by one; any of them would do.
    expected = dict.fromkeys(item["msg"] for item in errors if [*item["loc"][:1]] == name)
    given = repr(value) if len(repr(value)) <= 80 else f"{value!r:.80}…"
    remedy = ", or ".join(expected).replace("Value error, ", "").replace("Input should", "it should")
    return SapperError(f"{given} does not fit", where=where, remedy=remedy)
