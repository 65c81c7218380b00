"""The one exception that a user's mistake, or a user's file, may cause."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


class SapperError(Exception):
    """Something that came from outside cannot be used.

    Carries what is wrong, where (file and key), what to do about it, and ``lines`` to be shown below that: a table, or
    code to copy. The command line prints it as one message and ends with exit code 2; a traceback is shown only with
    ``--debug``.
    """

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None, lines: Sequence[str] = ()):
        self.what, self.where, self.remedy, self.lines = what, where, remedy, tuple(lines)
        super().__init__(what, where, remedy)

    def __reduce__(self) -> tuple[Any, ...]:
        """Exceptions travel between processes by their positional arguments alone, unless they say more."""
        return partial(SapperError, where=self.where, remedy=self.remedy, lines=self.lines), (self.what,)

    def __str__(self) -> str:
        where = f"{printable(self.where)}: " if self.where else ""
        remedy = f"\n  remedy: {printable(self.remedy)}" if self.remedy else ""
        below = "".join(f"\n    {printable(line)}".rstrip() for line in self.lines)
        return f"{where}{printable(self.what)}{remedy}{below}"


def printable(text: str) -> str:
    """A line of text that a terminal may get, whoever wrote it.

    Names in foreign files can hold what would move the cursor, turn text around or forge a line. That becomes question
    marks, as the bytes of file names in another encoding do.
    """
    return "".join(char if char.isprintable() else " " if char in "\n\t" else "?" for char in text)


def first_mistake(error: "ValidationError") -> str:
    """The first thing that does not fit, with its key, in one line."""
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


MOST_NAMES = 20
"""How many known names an error lists."""


@contextmanager
def located(where: str, joint: str = ": ") -> Iterator[None]:
    """Add to errors from inside in which file and at which key they came up.

    ``joint`` stands between that and a place that they name themselves.
    """
    try:
        yield
    except SapperError as error:
        inner = f"{where}{joint}{error.where}" if error.where else where
        raise SapperError(error.what, where=inner, remedy=error.remedy, lines=error.lines) from error


def closest(name: str, known: "list[str] | tuple[str, ...]") -> str:
    """A hint for a mistyped name: the nearest known ones, or the known ones when none is near."""
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    more = f", … ({len(known) - MOST_NAMES} more)" if len(known) > MOST_NAMES else ""
    return f"known: {', '.join(known[:MOST_NAMES])}{more}"
