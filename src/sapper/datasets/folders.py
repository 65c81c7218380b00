"""Folders of image files: one subfolder per class, or none; with or without train/, test/, val/ above them."""

from pathlib import Path

import torch

from sapper.datasets.decoding import SUFFIXES, decode
from sapper.datasets.readers import Raw, read_class_names
from sapper.errors import SapperError

SPLITS = ("train", "test", "val", "validation", "unlabeled")


def read_folder(folder: Path, size: int, classes: tuple[str, ...]) -> Raw:
    """Image files below ``folder/<class>/``, labeled by the place of the class in ``classes``.

    A folder without subfolders is unlabeled, whatever ``classes`` says: another split may be the one that has them.
    Files of other kinds are passed over, hidden files as well. The order is that of the classes and sorted paths.
    """
    present = subfolders(folder)
    labeled = [
        (file, label) for label, name in enumerate(classes) if name in present for file in image_files(folder / name)
    ]
    files = [file for file, _ in labeled] if present else image_files(folder)
    if not files:
        remedy = f"put images there ({', '.join(SUFFIXES)}), in one subfolder per class or with no subfolder at all"
        raise SapperError("there is no image in it", where=str(folder), remedy=remedy)
    labels = torch.tensor([label for _, label in labeled]) if present else None
    paths = tuple(file.relative_to(folder).as_posix() for file in files)
    return Raw(decode(files, size, lambda row: str(files[row])), labels, classes, paths)


def image_files(folder: Path) -> list[Path]:
    """The image files in ``folder`` and everything below it, sorted; none where there is no such folder."""
    files = (file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    return sorted(file for file in files if not _hidden(file, folder) and file.is_file())


def subfolders(folder: Path) -> list[str]:
    """Names of the visible folders right in ``folder``, sorted."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def split_folders(folder: Path) -> list[str]:
    """The splits among the subfolders, or none where the subfolders are classes.

    One class of somebody's may be called "train", the vehicle: a single such name among others is a class.
    """
    names = subfolders(folder)
    splits = [name for name in names if name in SPLITS]
    return splits if len(splits) > 1 or splits == names else []


def folder_classes(folder: Path) -> tuple[str, ...]:
    """The class names of an image folder, in label order, over all of its splits.

    All splits together, so that a class which one split lacks does not shift that split's labels. ``classes.json``
    may give another order than the alphabet's; it must then name every class folder.
    """
    parts = [folder / split for split in split_folders(folder)] or [folder]
    found = sorted({name for part in parts for name in subfolders(part)})
    if not found:
        return ()
    _refuse_strays(parts)
    named = read_class_names(folder)
    unnamed = [name for name in found if name not in named]
    if named and unnamed:
        remedy = "list the name of every class folder in label order, or remove the file"
        where = str(folder / "classes.json")
        raise SapperError(f"class folder {unnamed[0]!r} is not listed", where=where, remedy=remedy)
    return named or tuple(found)


def _refuse_strays(parts: list[Path]) -> None:
    """An image beside class folders has no label; dropping it silently would be a guess."""
    for part in filter(subfolders, parts):
        for entry in sorted(part.iterdir()):
            if entry.is_file() and entry.suffix.lower() in SUFFIXES and not entry.name.startswith("."):
                remedy = "move it into a class folder, or all images out of them"
                raise SapperError("this image lies beside class folders", where=str(entry), remedy=remedy)


def _hidden(file: Path, below: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(below).parts)
