"""Folders of image files: one subfolder per class, or none; with or without train/, test/, val/ above them."""

from pathlib import Path

import torch

from sapper.datasets.decoding import HEIC_REMEDY, decode
from sapper.datasets.finding import (
    BESIDE,
    BROKEN,
    NO_PICTURES,
    NO_PLUGIN,
    holds_pictures,
    is_empty,
    note,
    pictures_in,
    subfolders,
    walk,
)
from sapper.datasets.readers import Raw, read_class_names
from sapper.errors import SapperError

ALIASES = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation"),
    "unlabeled": ("unlabeled",),
}
"""Splits, and what their folders and files may be called, in lower case."""

SPLITS = tuple(name for names in ALIASES.values() for name in names)

PICTURES = ("images", "imgs", "img", "jpegimages", "pictures", "photos")
"""Names of a folder that hold the pictures of a set and are no class, in lower case."""


def read_folder(folder: Path, size: int, classes: tuple[str, ...], *, labels: bool) -> Raw:
    """Image files below ``folder/<class>/``, labeled by the place of the class in ``classes``.

    A folder without those subfolders is unlabeled, whatever ``classes`` says: another split may be the one that has
    them. What is passed over is told in ``Raw.notes``. The order is that of the classes and sorted paths.
    Where no ``labels`` are needed, pictures beside class folders leave the set unlabeled, and broken ones are left out.
    """
    found = walk(folder)
    files, notes = found.pictures, found.notes(folder)
    if (heic := found.skipped.get(NO_PLUGIN)) and (labels or not files):
        raise SapperError("HEIC pictures cannot be read here", where=str(heic[0]), remedy=HEIC_REMEDY)
    if not files:
        what = " ".join(["there is no image in it.", *notes])
        remedy = "put images there, in one subfolder per class or with no subfolder at all (.png, .jpg, .webp …)"
        raise SapperError(what.removesuffix("."), where=str(folder), remedy=remedy)
    wanted = _labels(files, folder, classes)
    if wanted is not None:
        order = sorted(range(len(files)), key=wanted.__getitem__)  # which keeps the order of the paths
        files, wanted = [files[row] for row in order], [wanted[row] for row in order]
        filled = set(wanted)
        empty = [name for at, name in enumerate(classes) if at not in filled and (folder / name).is_dir()]
        notes += (note(NO_PICTURES, empty),) if empty and labels else ()
    decoded = decode(files, size, lambda row: str(files[row]), skip=not labels)
    names = [file.relative_to(folder).as_posix() for file in files]
    if decoded.broken:
        broken = {row for row, _ in decoded.broken}
        first = f"The first of them: {decoded.broken[0][1].what}."
        notes += (f"{note(BROKEN, [names[row] for row in sorted(broken)])} {first}",)
        names = [name for row, name in enumerate(names) if row not in broken]
        wanted = wanted and [label for row, label in enumerate(wanted) if row not in broken]
    return Raw(decoded, None if wanted is None else torch.tensor(wanted), classes, tuple(names), notes)


def split_folders(folder: Path) -> dict[str, Path]:
    """The splits among the subfolders, or none where the subfolders are classes: each split's name and its folder.

    One class of somebody's may be called "train", the vehicle: a single such name among other folders with pictures is
    a class. A set may keep its pictures in a folder of their own, with the splits in it, as YOLO's do.
    """
    names = subfolders(folder)
    splits = {name.lower(): folder / name for name in names if name.lower() in SPLITS}
    others = [name for name in names if name.lower() not in SPLITS]
    if len(splits) > 1 or (splits and not any(holds_pictures(folder / name) for name in others)):
        return splits
    held = [name for name in others if name.lower() in PICTURES]
    if len(held) == 1 and not splits:
        inside = {name.lower(): name for name in subfolders(folder / held[0]) if name.lower() in SPLITS}
        if inside and not any(holds_pictures(folder / name) for name in others if name != held[0]):
            return split_folders(folder / held[0])
    return {}


def beside_splits(folder: Path) -> tuple[str, ...]:
    """A note about what holds pictures beside the folders of splits, and is read with none of them."""
    home = next(iter(split_folders(folder).values())).parent
    names = [name for name in subfolders(home) if name.lower() not in SPLITS and holds_pictures(home / name)]
    names += [picture.name for picture in pictures_in(home)]
    return (note(BESIDE, names),) if names else ()


def folder_classes(folder: Path, *, labels: bool) -> tuple[str, ...]:
    """The class names of an image folder, in label order, over all of its splits.

    All splits together, so that a class which one split lacks does not shift that split's labels. ``classes.json``
    may give another order than the alphabet's; it must then name every class folder. A folder with files of which none
    is a picture is no class, and an empty one is. Where no ``labels`` are needed, what cannot be labeled has none.
    """
    try:
        return _folder_classes(folder)
    except SapperError:
        if labels:
            raise
        return ()


def _folder_classes(folder: Path) -> tuple[str, ...]:
    parts = list(split_folders(folder).values()) or [folder]
    here = {part: subfolders(part) for part in parts}
    found = sorted({name for names in here.values() for name in names})
    found = [name for name in found if _is_class([part / name for part in parts if name in here[part]])]
    if not found or (len(found) == 1 and found[0].lower() in PICTURES):
        return ()
    _refuse_strays([part for part in parts if set(here[part]) & set(found)])
    named = read_class_names(folder)
    unnamed = [name for name in found if name not in named]
    if named and unnamed:
        remedy = "list the name of every class folder in label order, or remove the file"
        where = str(folder / "classes.json")
        raise SapperError(f"class folder {unnamed[0]!r} is not listed", where=where, remedy=remedy)
    return named or tuple(found)


def _is_class(places: list[Path]) -> bool:
    return any(holds_pictures(place) for place in places) or all(is_empty(place) for place in places)


def _labels(files: list[Path], folder: Path, classes: tuple[str, ...]) -> list[int] | None:
    """The class of each file by the subfolder that it lies in; none where one lies in no class folder."""
    places = {name: at for at, name in enumerate(classes)}
    depth = len(folder.parts)
    found = [places.get(file.parts[depth]) for file in files]
    return None if None in found else [label for label in found if label is not None]


def _refuse_strays(parts: list[Path]) -> None:
    """An image beside class folders has no label; dropping it silently would be a guess."""
    for part in parts:
        for stray in pictures_in(part):
            remedy = "move it into a class folder, or all images out of them"
            raise SapperError("this image lies beside class folders", where=str(stray), remedy=remedy)
