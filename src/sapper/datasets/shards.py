"""Parquet in parts, as the Hugging Face hub holds it: which files belong to a split, and whether all are there."""

import re
from pathlib import Path

from sapper.datasets.finding import subfolders
from sapper.errors import SapperError

_PART = re.compile(
    r"(?P<split>[A-Za-z]+)(?:[-_](?P<number>\d+))?(?:-of-(?P<count>\d+))?(?:-(?P<hash>[0-9a-f]+))?\.parquet", re.I
)

MISSING = ("part of the set that is not there", "parts of the set that are not there")

MOST_CONFIGURATIONS = 100
"""A folder with more subfolders is not searched for configurations: its subfolders are classes."""


def home(folder: Path) -> Path:
    """Where the parquet files of a data set lie: the folder itself, ``data/`` in it, or that of its one configuration.

    Raises ``SapperError`` where there are several configurations.
    """
    if _named(folder):
        return folder
    inside = subfolders(folder)
    if "data" in inside and _named(folder / "data"):
        return folder / "data"
    configurations = [name for name in inside if _named(folder / name)] if len(inside) <= MOST_CONFIGURATIONS else []
    if len(configurations) > 1:
        remedy = f"give the path of one of them, as {folder / configurations[0]}"
        what = f"it holds several configurations of a data set: {', '.join(configurations)}"
        raise SapperError(what, where=str(folder), remedy=remedy)
    return folder / configurations[0] if configurations else folder


def of_split(folder: Path, split: str) -> list[Path]:
    """The parquet files of ``split`` in ``folder``, in order. Raises ``SapperError`` where they are of two versions."""
    parts = {file: match for file, match in _named(folder) if match["split"].lower() == split}
    if len({(match["count"], match["hash"]) for match in parts.values()}) > 1:
        remedy = "keep the files of one version in the folder"
        files = ", ".join(sorted(file.name for file in parts)[:4])
        raise SapperError(f"parts of two versions of {split} lie together: {files}", where=str(folder), remedy=remedy)
    return sorted(parts, key=lambda file: (int(parts[file]["number"] or 0), file.name))


def inside(folder: Path) -> list[Path]:
    """All parquet files right in ``folder``, in the order of their names."""
    return sorted(file for file in folder.glob("*.parquet") if file.is_file() and not file.name.startswith("."))


def missing(parts: list[Path]) -> list[str]:
    """The names of parts that are not there, where the files say how many there are."""
    match = _PART.fullmatch(parts[0].name)
    if match is None or match["count"] is None or match["number"] is None:
        return []
    name, at, end = parts[0].name, match.start("number"), match.end("number")
    wanted = [f"{name[:at]}{number:0{end - at}d}{name[end:]}" for number in range(int(match["count"]))]
    return [each for each in wanted if each not in {file.name for file in parts}]


def _named(folder: Path) -> list[tuple[Path, re.Match[str]]]:
    """The parquet files in ``folder`` whose names say of which split they are."""
    from sapper.datasets.folders import SPLITS

    found = [(file, _PART.fullmatch(file.name)) for file in inside(folder)]
    return [(file, match) for file, match in found if match and match["split"].lower() in SPLITS]
