"""Names of a file's tensors, changed as the user says: ``--keys OLD=NEW``.

For files that differ from a known network in names alone. ``OLD`` is a tensor's name or how names begin, up to a dot;
``*`` stands for one word between dots, and is kept where ``NEW`` has one. An empty ``NEW`` drops the beginning.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from sapper.errors import SapperError, closest
from sapper.files import read_text

Keys = tuple[tuple[str, str], ...]

REMEDY = "write --keys OLD=NEW, or --keys FILE.json with an object of old and new names"


def read_keys(said: Iterable[str]) -> Keys:
    """The pairs that ``OLD=NEW`` or the names of JSON files say. Raises ``SapperError`` for anything else."""
    pairs: list[tuple[str, str]] = []
    for each in said:
        old, equals, new = each.partition("=")
        if equals:
            pairs.append((old, new))
        elif each.endswith(".json"):
            pairs += _from_file(Path(each))
        else:
            raise SapperError(f"{each!r} says no new name", where="--keys", remedy=REMEDY)
    for old, new in pairs:
        if not old or new.count("*") > old.count("*"):
            what = f"{old}={new} has nothing to change" if not old else f"{new!r} has more * than {old!r}"
            raise SapperError(what, where="--keys", remedy=REMEDY)
    return tuple(pairs)


def _from_file(path: Path) -> list[tuple[str, str]]:
    try:
        content = json.loads(read_text(path, REMEDY), object_pairs_hook=_once)
    except ValueError as error:
        raise SapperError(f"it is no JSON: {error}", where=str(path), remedy=REMEDY) from error
    if (
        not isinstance(content, dict)
        or any("=" in old for old in content)
        or not all(isinstance(new, str) for new in content.values())
    ):
        raise SapperError("it is no object of old and new names", where=str(path), remedy=REMEDY)
    return list(content.items())


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON whose names are each there once."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name is there twice")
    return content


def new_names(names: Sequence[str], keys: Keys, where: str) -> dict[str, str]:
    """What each of the names becomes; the first pair that fits one counts.

    Raises ``SapperError`` for a pair that fits none or is never the first, and where two names would become one.
    """
    patterns = [_pattern(old) for old, _ in keys]
    first = {name: next((at for at, pattern in enumerate(patterns) if pattern.match(name)), None) for name in names}
    for at, ((old, _), pattern) in enumerate(zip(keys, patterns)):
        if at in first.values():
            continue
        if any(pattern.match(name) for name in names):
            what, remedy = (
                f"all names that begin with {old!r} are changed by a pair before it",
                "put it first, or leave it out",
            )
        else:
            begins = {name[: match.start()] for name in names for match in re.finditer(r"\.|$", name)}
            what, remedy = f"no name in it is or begins with {old!r}", closest(old, sorted(begins))
        raise SapperError(what, where=f"{where}: --keys", remedy=remedy)
    found = {name: name if at is None else _renamed(name, patterns[at], keys[at][1]) for name, at in first.items()}
    seen: dict[str, str] = {}
    for name, new in found.items():
        if not new or new in seen:
            what = f"{seen[new]} and {name} would both be called {new}" if new else f"{name} would have no name"
            raise SapperError(what, where=f"{where}: --keys", remedy="give each a name of its own")
        seen[new] = name
    return found


def _pattern(old: str) -> re.Pattern[str]:
    words = re.escape(old.rstrip(".")).replace(r"\*", r"([^.]+)")
    return re.compile(rf"{words}(?=\.|$)")


def _renamed(name: str, pattern: re.Pattern[str], new: str) -> str:
    """A name whose beginning, which the pattern fits, is another."""
    match = pattern.match(name)
    assert match is not None
    kept = iter(match.groups())
    begin = "".join(next(kept) if char == "*" else char for char in new.rstrip("."))
    return f"{begin}{name[match.end() :]}" if begin else name[match.end() :].lstrip(".")
