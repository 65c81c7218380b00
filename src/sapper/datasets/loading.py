"""From a name or a path to an ``ImageSet``: where each kind of data set is looked for."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sapper.datasets import folders, provenance, readers, torchvision_sets
from sapper.datasets.decoding import resize
from sapper.datasets.readers import Raw
from sapper.datasets.registry import DatasetInfo
from sapper.errors import SapperError
from sapper.images import ImageSet

READERS: dict[str, Callable[[Path, int], Raw]] = {".parquet": readers.read_parquet, ".npz": readers.read_npz}


@dataclass(frozen=True)
class Source:
    """One split on disk, found but not yet read: ``read(size)`` reads it.

    ``path`` is what errors and reports name; ``classes`` are class names that lie beside the images.
    """

    path: Path
    split: str
    read: Callable[[int], Raw]
    classes: tuple[str, ...] = ()


def load_embedded(name: str, split: str, size: int) -> ImageSet:
    """An embedded world, resized where ``size`` is not its own."""
    from sapper.datasets import worlds  # brings scikit-learn along, which other data sets need not wait for

    world = worlds.make(name, split)
    if world.size == (size, size):
        return world
    resized = f"{world.provenance} Resized from {world.size[1]}x{world.size[0]} to {size}x{size}."
    return replace(world, images=resize(world.images, size), provenance=resized.strip())


def load_path(path: Path, split: str, size: int) -> ImageSet:
    """A data set of the user's own: an image folder, a parquet or npz file, or a folder with one file per split."""
    source = find_split(path, split) or find_whole(path, split)
    raw = source.read(size)
    name = path.resolve().stem if path.is_file() else path.resolve().name
    text = provenance.of_path(source.path, split, source.split, raw, size)
    return _image_set(raw, source, name=name, classes=source.classes or raw.classes, text=text)


def own_split(info: DatasetInfo, split: str) -> str:
    """The split of a known data set that stands for ``split``. Raises ``SapperError`` if it has none."""
    for name in candidates(split):
        if name in info.splits:
            return name
    where, remedy = f"data set {info.name!r}", f"its splits: {', '.join(info.splits)}"
    raise SapperError(f"there is no split {split!r}", where=where, remedy=remedy)


def load_known(info: DatasetInfo, split: str, size: int, data_root: Path, *, download: bool) -> ImageSet:
    """A known data set: files below ``data_root/<its folder>`` first, then torchvision's layout."""
    own = own_split(info, split)
    folder = data_root / info.folder
    source = find_split(folder, split) if folder.is_dir() else None
    if source is not None:
        place = f"{source.path.relative_to(data_root).as_posix()} below the data root"
        title = provenance.readme_title(folder)
    else:
        source = _find_in_torchvision(info, own, data_root, download)
        place, title = f"torchvision's {info.torchvision}", ""

    raw = source.read(size)
    if raw.labels is None and source.split != "unlabeled":
        remedy = "add a column or an array 'label' of integers"
        raise SapperError(f"{info.name} has labels, and none are there", where=str(source.path), remedy=remedy)
    text = provenance.of_known(info, place, title, split, source.split, raw, size)
    groups = None
    if info.name == "gtsrb" and source.split == "train":
        groups = gtsrb_tracks(raw.paths)
        text += "" if groups is not None else " Its paths do not tell tracks: near-duplicate frames are not grouped."
    # The registry's names come last: a copy may say itself how its labels run.
    classes = source.classes or raw.classes or info.class_names
    return _image_set(raw, source, name=info.name, classes=classes, text=text, groups=groups)


def _find_in_torchvision(info: DatasetInfo, split: str, data_root: Path, download: bool) -> Source:
    """torchvision's files below the data root. Raises ``SapperError`` saying every place that was searched."""
    root = torchvision_sets.find_root(info, split, data_root)
    if root is None and download and info.torchvision:
        root = data_root
    if root is not None:
        return Source(root, split, partial(torchvision_sets.read_torchvision, info, split, root, download=download))

    where = f"data set {info.name!r}, split {split!r}"
    searched = f"no {split}.parquet, {split}.npz or {split}/ in {data_root / info.folder}"
    remedy = "put it there, or set --data-root or SAPPER_DATA to the folder that holds it"
    if info.torchvision:
        searched += f", and no files of torchvision's {info.torchvision} in {data_root}"
        remedy += ", or allow the download (--download)"
    raise SapperError(f"not found: {searched}", where=where, remedy=remedy)


def candidates(split: str) -> tuple[str, ...]:
    """The names to look for, in order: where the test labels are not public, the validation split is the test."""
    return ("test", "val", "validation") if split == "test" else (split,)


def find_split(path: Path, split: str) -> Source | None:
    """``split`` in a folder that names its splits: ``{split}.parquet``, ``{split}.npz`` or ``{split}/``."""
    if not path.is_dir():
        return None
    for candidate in candidates(split):
        for suffix, reader in READERS.items():
            file = path / f"{candidate}{suffix}"
            if file.is_file():
                return Source(file, candidate, partial(reader, file), readers.read_class_names(path))
        if candidate in folders.split_folders(path):
            return _folder(path / candidate, candidate, folders.folder_classes(path))
    return None


def find_whole(path: Path, split: str) -> Source:
    """A file, or a folder that names no splits: one split, which is train.

    Raises ``SapperError`` for any other split, and for a folder that names its splits, of which ``split`` is none.
    """
    named = [name for name in folders.SPLITS if path.is_dir() and find_split(path, name)]
    if named or split != "train":
        remedy = f"use a split that is there: {', '.join(named) or 'train'}"
        if not named:
            remedy += ", or give a folder with train and test in it"
        raise SapperError(f"there is no split {split!r} in it", where=str(path), remedy=remedy)
    if path.is_dir():
        return _folder(path, split, folders.folder_classes(path))
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        remedy = f"give a folder of images, or a file that ends in {' or '.join(READERS)}"
        raise SapperError("this kind of file is not read", where=str(path), remedy=remedy)
    return Source(path, split, partial(reader, path), readers.read_class_names(path.parent))


def _folder(folder: Path, split: str, classes: tuple[str, ...]) -> Source:
    return Source(folder, split, lambda size: folders.read_folder(folder, size, classes), classes)


def _image_set(
    raw: Raw, source: Source, *, name: str, classes: tuple[str, ...], text: str, groups: Tensor | None = None
) -> ImageSet:
    """The ``ImageSet``, with ``text`` as its provenance; labels are checked while an error can still name the file."""
    images, labels = raw.decoded.images, raw.labels
    if len(images) == 0:
        raise SapperError("there is no image in it", where=str(source.path), remedy="write the file again")
    if labels is None:
        classes = ()
    else:
        lowest, highest = int(labels.min()), int(labels.max())
        classes = classes or tuple(str(label) for label in range(highest + 1))
        if lowest < 0 or highest >= len(classes):
            what = f"labels run from {lowest} to {highest}, but the {len(classes)} classes are numbered from 0"
            remedy = "number the labels from 0, and name every class in a classes.json beside the file"
            raise SapperError(what, where=str(source.path), remedy=remedy)
    return ImageSet(
        images=images,
        labels=labels,
        classes=classes,
        groups=groups,
        name=name,
        split=source.split,
        provenance=text,
    )


_TRACK = re.compile(r"(\d+)/(\d+)_\d+\.\w+$")


def gtsrb_tracks(paths: tuple[str, ...]) -> Tensor | None:
    """int64 (N,): each image's track, unique over classes, from ``…/<class>/<track>_<frame>.png``.

    None where a path does not have this form.
    """
    matches = [match for path in paths if (match := _TRACK.search(path))]
    if not matches or len(matches) < len(paths):
        return None
    return torch.tensor([int(match[1]) * 100_000 + int(match[2]) for match in matches])
