"""A scenario of several attacks as several scenarios of one: its table, and tables in the place of the file's own."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sapper.errors import SapperError, closest
from sapper.scenario.checking import check_unique
from sapper.scenario.sections import AttackSection

INSTEAD = ("encoder", "pretraining", "task", "target", "head", "defense")
"""Tables that an attack may have instead of the scenario's."""

METHOD = AttackSection.model_fields["method"].default


@dataclass(frozen=True)
class Single:
    """The content of a scenario with one attack, or none, and without variants.

    ``moved``: where in the file a table stands that stands elsewhere, such as ``head`` at ``attack[1].instead.head``.
    """

    content: dict[str, Any]
    moved: dict[str, str]

    @property
    def name(self) -> str | None:
        """What records call the attack."""
        table = self.content.get("attack")
        return None if table is None else str(table.get("name", table.get("method", METHOD)))

    @contextmanager
    def placed(self, file: str) -> Iterator[None]:
        """Errors from inside name the key that a user has to change in ``file``."""
        try:
            yield
        except SapperError as error:
            where = self.place(error.where or file, file)
            raise SapperError(error.what, where=where, remedy=error.remedy, lines=error.lines) from error

    def place(self, where: str, file: str) -> str:
        """A place in this content, such as ``my.toml: head[0].epochs``, as one in ``file``."""
        key = where.removeprefix(f"{file}: ")
        table = "attack" if where == file else re.split(r"\W", key)[0]
        if table not in self.moved:
            return where
        if where == file:
            return file if self.moved[table] == table else f"{file}: {self.moved[table]}"
        return f"{file}: {self.moved[table]}{key.removeprefix(table)}"


def singles(content: dict[str, Any], file: str) -> list[Single]:
    """The attacks of a scenario, one by one; ``attack`` is a table, a list of tables, or not there.

    Raises ``SapperError`` for two of the same name, and for what is no table that an attack may have instead.
    """
    content = {key: value for key, value in content.items() if key != "variant"}
    if content.get("attack") is None:
        return [Single(content, {})]
    attack, found = content["attack"], []
    several = isinstance(attack, list)
    for i, table in enumerate(attack if several else [attack]):
        key = f"attack[{i}]" if several else "attack"
        instead = table.get("instead", {})
        _check_instead(instead, f"{file}: {key}.instead")
        own = {name: value for name, value in table.items() if name != "instead"}
        moved = {"attack": key} | {name: f"{key}.instead.{name}" for name in instead}
        found.append(Single(content | instead | {"attack": own}, moved))
    check_unique([str(single.name) for single in found], f"{file}: attack", "attack")
    return found


def check_only(only: list[str], split: list[Single], file: str) -> None:
    """Raises ``SapperError`` unless every name in ``only`` is that of an attack, and stands there once."""
    where, known = f"{file}: only", [single.name for single in split if single.name is not None]
    if len(known) < 2:
        raise SapperError(
            "there is no choice of attacks", where=where, remedy="leave it out, or write several [[attack]]"
        )
    for name in only:
        if name not in known:
            raise SapperError(f"there is no attack {name!r}", where=where, remedy=closest(name, known))
        if only.count(name) > 1:
            raise SapperError(f"{name!r} stands there twice", where=where, remedy="name each attack once")


def _check_instead(instead: Any, where: str) -> None:
    if not isinstance(instead, dict):
        what, remedy = f"{instead!r} is no table", "write tables in it, such as [[attack.instead.head]]"
        raise SapperError(what, where=where, remedy=remedy)
    for name in instead:
        if name not in INSTEAD:
            what = f"an attack cannot have {name!r} instead of the scenario's"
            raise SapperError(what, where=f"{where}.{name}", remedy=closest(name, INSTEAD))
