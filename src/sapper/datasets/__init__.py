"""Data sets by name: embedded worlds, well-known sets on disk, and whatever images the user has."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from sapper.datasets.registry import DATASETS, DatasetInfo
from sapper.errors import SapperError, closest

# Listing data sets must be quick, so torch is imported only when one is loaded.
if TYPE_CHECKING:
    from sapper.images import ImageSet

__all__ = ["DatasetInfo", "check_name", "check_task", "describe", "load", "names", "usual_split"]


def names() -> list[str]:
    """The data sets that ``load`` knows by name."""
    return list(DATASETS)


def describe() -> list[DatasetInfo]:
    """What is known of each, without reading any file."""
    return list(DATASETS.values())


def load(
    name: str | Path,
    split: str = "train",
    *,
    data_root: Path | None = None,
    size: int = 32,
    download: bool = False,
) -> "ImageSet":
    """The images of one split, as RGB of ``size`` × ``size`` pixels.

    ``name`` is a name from ``names()`` or a path: a folder of images (one subfolder per class, or none, with or
    without ``train/``, ``test/``, ``val/`` above), a ``.parquet`` or ``.npz`` file, or a folder with one such file per
    split. A name wins over a folder of the same name; write ``./mnist`` for the folder. A file, and a folder without
    splits, is one split: train. Where there is no test split, val stands in and ``ImageSet.split`` says so.

    Known sets are looked for below ``data_root``, else below the environment variable ``SAPPER_DATA``;
    ``download`` lets torchvision fetch those that it knows.

    Raises ``SapperError`` when the set is not there, or its files cannot be used.
    """
    try:
        return _load(name, split, data_root, size, download)
    except OSError as error:
        remedy = "check that it is there and that you may read it"
        raise SapperError(error.strerror or str(error), where=str(error.filename or name), remedy=remedy) from error


def usual_split(name: str) -> str:
    """The split to take where none is named and no training is meant: test, or train where there is no test split."""
    from sapper.datasets import loading

    return "test" if name in DATASETS or loading.find_split(Path(name), "test") is not None else "train"


def check_name(name: str) -> None:
    """Raise ``SapperError`` unless ``name`` is a known name or could be a path."""
    if name not in DATASETS and not _looks_like_path(name):
        remedy = f"{closest(name.lower(), names())} (or give a path: a folder of images, a .parquet or .npz file)"
        raise SapperError(f"there is no data set {name!r}", remedy=remedy)


def _load(name: str | Path, split: str, data_root: Path | None, size: int, download: bool) -> "ImageSet":
    from sapper.datasets import loading

    if size < 1:
        raise SapperError(f"size must be at least 1 pixel, got {size}", where=f"data set {str(name)!r}")
    if isinstance(name, Path):
        return loading.load_path(name, split, size)
    if name not in DATASETS and _looks_like_path(name):
        return loading.load_path(Path(name), split, size)
    check_name(name)
    info = DATASETS[name]
    if info.kind == "embedded":
        return loading.load_embedded(info.name, split, size)
    if data_root is None and os.environ.get("SAPPER_DATA"):
        data_root = Path(os.environ["SAPPER_DATA"])
    return loading.load_known(info, split, size, data_root, download=download)


def _looks_like_path(name: str) -> bool:
    marked = "/" in name or name.startswith("~") or name.endswith((".parquet", ".npz"))
    return marked or (name != "" and Path(name).exists())


def check_task(train: "ImageSet", test: "ImageSet") -> None:
    """Raise ``SapperError`` unless the two make a classification task.

    Both need labels, at least two classes that occur, the same class names in the same order, and the same image size.
    """
    for images in (train, test):
        where = f"data set {images.name!r} {images.split}".rstrip()
        if images.labels is None:
            remedy = "a task needs a class for each image: subfolders named after classes, or a column or array 'label'"
            raise SapperError("it has no labels", where=where, remedy=remedy)
        occurring = images.labels.unique().tolist()
        if len(occurring) < 2:
            what = f"only one class occurs in it: {images.classes[occurring[0]]!r}"
            raise SapperError(what, where=where, remedy="a task needs images of at least two classes")
    where = f"data sets {train.name!r} {train.split} and {test.name!r} {test.split}"
    if train.classes != test.classes:
        differing = [pair for pair in zip(train.classes, test.classes) if pair[0] != pair[1]]
        what = f"their classes differ: {len(train.classes)} and {len(test.classes)}"
        if differing:
            what = f"their classes differ: {differing[0][0]!r} in one is {differing[0][1]!r} in the other"
        remedy = "both need the same classes in the same order; a classes.json beside the files can say which"
        raise SapperError(what, where=where, remedy=remedy)
    if train.size != test.size:
        what = f"their images differ in size: {train.size} and {test.size}"
        raise SapperError(what, where=where, remedy="load both with the same size")
