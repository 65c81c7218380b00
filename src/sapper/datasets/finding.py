"""Which files of a folder are pictures, and what is passed over: the walk through folders as people leave them."""

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sapper.datasets.decoding import FORMATS, HEIC, SUFFIXES, is_heic, is_picture

SYSTEM = frozenset(
    {
        *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
        *("@eadir", "#recycle", "lost+found", "icon\r"),
    }
)
"""What operating systems and their tools leave in folders, in lower case."""

OURS = ("classes.json",)
"""Files that belong to a set without being pictures: nothing is said of them."""

NO_PICTURE = ("file that is no picture", "files that are no pictures")
HIDDEN = ("hidden or system entry", "hidden or system entries")
LEADS_NOWHERE = ("link that leads nowhere", "links that lead nowhere")
LEADS_BACK = ("link to what is read anyway", "links to what is read anyway")
NO_FILE = ("entry that is no regular file", "entries that are no regular files")
NO_PLUGIN = (
    "HEIC picture (pip install pillow-heif to read it)",
    "HEIC pictures (pip install pillow-heif to read them)",
)
NO_PICTURES = ("class folder without pictures", "class folders without pictures")
BESIDE = ("entry with pictures beside the splits", "entries with pictures beside the splits")
BROKEN = ("picture that cannot be read", "pictures that cannot be read")
NO_ROW = ("row without an image that can be read", "rows without an image that can be read")

Kind = tuple[str, str]
"""What was passed over, in words: one, several."""

MOST_NAMED = 3
"""How many places a note names."""


@dataclass
class Found:
    """The pictures of a folder, and what was passed over, by its kind. Paths begin with the folder's."""

    pictures: list[Path] = field(default_factory=list)
    skipped: dict[Kind, list[Path]] = field(default_factory=dict)

    def skip(self, kind: Kind, path: Path) -> None:
        self.skipped.setdefault(kind, []).append(path)

    def notes(self, folder: Path) -> tuple[str, ...]:
        """What was passed over, in sentences."""
        return tuple(
            note(kind, [path.relative_to(folder).as_posix() for path in sorted(paths)])
            for kind, paths in self.skipped.items()
        )


def note(kind: Kind, places: list[str]) -> str:
    """A sentence about what was passed over, with the first places."""
    more = ", …" if len(places) > MOST_NAMED else ""
    return f"Skipped {len(places):,} {kind[len(places) > 1]}: {', '.join(places[:MOST_NAMED])}{more}."


def walk(folder: Path) -> Found:
    """The pictures in ``folder`` and everything below it, sorted.

    What opens as a picture is one, whatever its name. Links are followed after all else, each file and folder once, so
    that a loop ends; what is no regular file, such as a pipe, is never opened.
    """
    found = Found()
    for _ in _steps(folder, found):
        pass
    found.pictures.sort()
    return found


def holds_pictures(folder: Path) -> bool:
    """Whether ``walk`` finds a picture in ``folder``, be it one that needs a plugin; it stops at the first."""
    found = Found()
    return any(found.pictures or NO_PLUGIN in found.skipped for _ in _steps(folder, found))


def _steps(folder: Path, found: Found) -> Iterator[None]:
    """The walk, which stops after each file that it has sorted into ``found``."""
    start = os.path.realpath(folder)
    known = {start}
    places, links = deque([(folder, start)]), deque[Path]()
    while places or links:
        if not places:
            link = links.popleft()
            target = os.path.realpath(link)
            kind = _leads(link, target, start, known)
            known.add(target)
            if kind is not None:
                found.skip(kind, link)
            elif link.is_dir():
                places.append((link, target))
            else:
                _consider(link, found)
                yield
            continue
        place, real = places.popleft()
        for entry in _entries(place):
            path, at = place / entry.name, f"{real.rstrip(os.sep)}{os.sep}{entry.name}"
            if passed_over(entry.name):
                found.skip(HIDDEN, path)
            elif entry.is_symlink():
                links.append(path)
            elif not entry.is_dir(follow_symlinks=False):
                known.add(at)
                _consider(path, found)
                yield
            elif at not in known:
                known.add(at)
                places.append((path, at))


def _leads(link: Path, target: str, start: str, known: set[str]) -> Kind | None:
    """Why a link is not followed; none where it is."""
    if not link.exists():
        return LEADS_NOWHERE
    if not link.is_dir() and not link.is_file():
        return None
    above = f"{start}{os.sep}".startswith(f"{target.rstrip(os.sep)}{os.sep}")
    return LEADS_BACK if above or target in known else None


def is_empty(folder: Path) -> bool:
    """Whether nothing lies in ``folder`` that anybody sees."""
    return all(passed_over(entry.name) for entry in _entries(folder))


def subfolders(folder: Path) -> list[str]:
    """Names of the visible folders right in ``folder``, sorted; links to folders are such."""
    return [
        entry.name
        for entry in _entries(folder)
        if not passed_over(entry.name)
        and (entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and (folder / entry.name).is_dir()))
    ]


def pictures_in(folder: Path) -> Iterator[Path]:
    """The pictures right in ``folder``, sorted."""
    for entry in _entries(folder):
        if not passed_over(entry.name) and _is_one(folder / entry.name):
            yield folder / entry.name


def passed_over(name: str) -> bool:
    """Whether a name is hidden, or one that operating systems give."""
    return name.startswith(".") or name.lower() in SYSTEM


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _consider(path: Path, found: Found) -> None:
    """Sort a file in; a file of an operating system or a pipe is not opened."""
    if not path.is_file():
        found.skip(NO_FILE, path)
    elif _is_one(path):
        found.pictures.append(path)
    elif "HEIF" not in FORMATS and is_heic(path):
        found.skip(NO_PLUGIN, path)
    elif path.name not in OURS:
        found.skip(NO_PICTURE, path)


def _is_one(path: Path) -> bool:
    """Whether a file counts as a picture: by its name, or by how it begins."""
    if not path.is_file():
        return False
    named = path.suffix.lower()
    return named in SUFFIXES or ("HEIF" in FORMATS and named in HEIC) or is_picture(path)
