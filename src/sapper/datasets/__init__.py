"""Data sets by name: embedded worlds, well-known sets on disk, and whatever images the user has."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sapper.datasets.registry import DATASETS, DatasetInfo
from sapper.errors import SapperError, closest

# Listing data sets must be quick, so torch is imported only when one is loaded.
if TYPE_CHECKING:
    from sapper.samples import ImageSet, PairSet

__all__ = [
    "DatasetInfo",
    "check_name",
    "check_task",
    "check_there",
    "describe",
    "load",
    "load_pairs",
    "names",
    "usual_split",
]


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
    labels: bool = True,
) -> "ImageSet":
    """The images of one split, as RGB of ``size`` × ``size`` pixels.

    ``name`` is a name from ``names()`` or a path: a folder of images (one subfolder per class, or none, with or
    without ``train/``, ``test/``, ``val/`` above), a ``.parquet``, ``.npz`` or ``.npy`` file, or a folder with such
    files for each split, also in parts as the Hugging Face hub has them (``train-00000-of-00002.parquet``). A name wins
    over a folder of the same name; write ``./mnist`` for the folder. A file, and a folder without splits, is one split:
    train. Where there is no test split, val stands in and ``ImageSet.split`` says so.

    ``labels``: whether labels are needed. Where they are not, a set whose labels cannot be used is taken without them,
    and pictures that cannot be decoded are left out; ``ImageSet.notes`` says what was passed over.

    Known sets are looked for below ``data_root``, else below the environment variable ``SAPPER_DATA``;
    ``download`` lets torchvision fetch those that it knows.

    Raises ``SapperError`` when the set is not there, or its files cannot be used.
    """
    with _told(name):
        return _load(name, split, data_root, size, download, labels)


def load_pairs(name: str | Path, split: str = "train", *, size: int = 32) -> "PairSet":
    """The images of one split, as ``load`` gives them, each with its caption; labels where there are any.

    ``name``: an embedded world, whose captions tell what was drawn, or a path to parquet with a column of images and
    one of texts (or lists of texts, of which the first is taken). The column of texts is the first that there is of
    caption(s), text(s), txt, sentence(s), description(s), alt_text, alt, prompt, raw, title. Rows without a caption,
    and pictures that cannot be decoded, are left out; ``PairSet.notes`` says so.

    Raises ``SapperError`` when the set is not there, or has no captions.
    """
    with _told(name):
        return _load_pairs(name, split, size)


def _load_pairs(name: str | Path, split: str, size: int) -> "PairSet":
    from sapper.datasets import loading

    _check_size(name, size)
    if isinstance(name, Path) or (name not in DATASETS and _looks_like_path(name)):
        return loading.load_path_pairs(_existing(Path(name)), split, size)
    _check_name(name)
    if DATASETS[name].kind == "embedded":
        return loading.load_embedded_pairs(name, split, size)
    worlds = ", ".join(info.name for info in DATASETS.values() if info.kind == "embedded")
    remedy = f"name {worlds}, or the path of a parquet file with images and texts"
    raise SapperError("there are no captions in it", where=f"data set {name!r}", remedy=remedy)


@contextmanager
def _told(name: str | Path) -> Iterator[None]:
    """Make what the operating system says about a data set's files a ``SapperError``."""
    try:
        yield
    except OSError as error:
        remedy = "check that it is there and that you may read it"
        raise SapperError(error.strerror or str(error), where=str(error.filename or name), remedy=remedy) from error


def usual_split(name: str) -> str:
    """The split to take where none is named and no training is meant: test, or train where there is no test split."""
    from sapper.datasets import loading

    with _told(name):
        tested = name in DATASETS or loading.find_split(_expand_home(Path(name)), "test", labels=False) is not None
    return "test" if tested else "train"


def check_name(name: str) -> None:
    """Raise ``SapperError`` unless ``name`` is a known name or could be a path."""
    with _told(name):
        _check_name(name)


def _check_name(name: str) -> None:
    if any(char in "\a\b\t\n\f\r\x1b" for char in name) and not Path(name).exists():
        remedy = "in double quotes a backslash begins an escape: write the path in single quotes, or with slashes"
        raise SapperError(f"there is a tab or the like in the name {name!r}", remedy=remedy)
    if name not in DATASETS and not _looks_like_path(name):
        remedy = f"{closest(name.lower(), names())} (or give a path: a folder of images, a .parquet or .npz file)"
        raise SapperError(f"there is no data set {name!r}", remedy=remedy)


def check_there(name: str, data_root: Path | None = None, *, download: bool = False) -> None:
    """Raise ``SapperError`` for a data set that ``load`` cannot find: a quick look, which reads no file."""
    with _told(name):
        _check_name(name)
        if name not in DATASETS:
            _existing(Path(name))
        elif DATASETS[name].kind == "known":
            _root_of(DATASETS[name], data_root, download=download)


def _existing(path: Path) -> Path:
    """``path`` with its ``~`` expanded. Raises ``SapperError`` if nothing is there."""
    path = _expand_home(path)
    if not path.exists():
        remedy = "check the path; known data sets go by their names (sapper methods lists them)"
        raise SapperError("there is no such file or folder", where=str(path), remedy=remedy)
    return path


def _root_of(info: DatasetInfo, data_root: Path | None, *, download: bool) -> Path:
    """Below which a known set is looked for. Raises ``SapperError`` if that is not said, or is no folder."""
    where, said = f"data set {info.name!r}", data_root or os.environ.get("SAPPER_DATA")
    if not said:
        remedy = f"set --data-root or SAPPER_DATA to the folder that holds {info.folder}/"
        raise SapperError("no data root is set", where=where, remedy=remedy)
    root = _expand_home(Path(said))
    if not root.is_dir() and not download:
        remedy = "set --data-root or SAPPER_DATA to the folder that holds your data"
        raise SapperError(f"there is no data root {root}", where=where, remedy=remedy)
    return root


def _expand_home(path: Path) -> Path:
    """``~`` in front as the home folder, since nobody expands it in a scenario file; an unknown user's is left."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (pathlib's raises for an unknown user)


def _load(name: str | Path, split: str, data_root: Path | None, size: int, download: bool, labels: bool) -> "ImageSet":
    from sapper.datasets import loading

    _check_size(name, size)
    if isinstance(name, Path):
        return loading.load_path(_existing(name), split, size, labels=labels)
    if name not in DATASETS and _looks_like_path(name):
        return loading.load_path(_existing(Path(name)), split, size, labels=labels)
    _check_name(name)
    info = DATASETS[name]
    if info.kind == "embedded":
        return loading.load_embedded(info.name, split, size)
    loading.own_split(info, split)  # a wrong one is told whether there is a data root or not
    root = _root_of(info, data_root, download=download)
    return loading.load_known(info, split, size, root, download=download, labels=labels)


def _check_size(name: str | Path, size: int) -> None:
    if size < 1:
        raise SapperError(f"size must be at least 1 pixel, got {size}", where=f"data set {str(name)!r}")


def _looks_like_path(name: str) -> bool:
    marked = "/" in name or "\\" in name or name.startswith("~") or name.endswith((".parquet", ".npz", ".npy"))
    return marked or (name != "" and Path(name).exists())


def check_task(train: "ImageSet", test: "ImageSet") -> None:
    """Raise ``SapperError`` unless the two make a classification task.

    Both need labels, at least two classes that occur, the same class names in the same order, and the same image size.
    """
    for images in (train, test):
        where = f"data set {images.name!r} {images.split}".rstrip()
        if images.labels is None:
            remedy = "a task needs a class for each image: subfolders named after classes, or a column or array 'label'"
            why = f" ({images.notes[-1]})" if images.notes else ""
            raise SapperError(f"it has no labels{why}", where=where, remedy=remedy)
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
