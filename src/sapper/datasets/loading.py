"""From a name or a path to an ``ImageSet``: where each kind of data set is looked for."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sapper.datasets import folders, provenance, readers, shards, torchvision_sets
from sapper.datasets.decoding import SUFFIXES, is_heic, is_picture, resize
from sapper.datasets.finding import holds_pictures, note
from sapper.datasets.readers import Raw
from sapper.datasets.registry import DatasetInfo
from sapper.errors import SapperError
from sapper.samples import ImageSet, PairSet
from sapper.samples.texts import words

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst")


@dataclass(frozen=True)
class Source:
    """One split on disk, found but not yet read: ``read(size)`` reads it, ``read_captions`` a table with its captions.

    ``path`` is what errors and reports name; ``classes`` are class names that lie beside the images.
    """

    path: Path
    split: str
    read: Callable[[int], Raw]
    classes: tuple[str, ...] = ()
    read_captions: Callable[[int], Raw] | None = None


def load_embedded(name: str, split: str, size: int) -> ImageSet:
    """An embedded world, resized where ``size`` is not its own."""
    from sapper.datasets import worlds  # brings scikit-learn along, which other data sets need not wait for

    return _resized(worlds.make(name, split), size)


def load_embedded_pairs(name: str, split: str, size: int) -> PairSet:
    """The same with captions that tell what was drawn."""
    from sapper.datasets import worlds

    pairs = worlds.make_pairs(name, split)
    images = _resized(pairs.images, size)
    return replace(pairs, images=images, provenance=images.provenance)


def _resized(world: ImageSet, size: int) -> ImageSet:
    if world.size == (size, size):
        return world
    resized = f"{world.provenance} Resized from {world.size[1]}x{world.size[0]} to {size}x{size}."
    return replace(world, images=resize(world.images, size), provenance=resized.strip())


def load_path(path: Path, split: str, size: int, *, labels: bool) -> ImageSet:
    """A data set of the user's own: an image folder, a parquet or npz file, or a folder with one file per split."""
    source = find_split(path, split, labels=labels) or find_whole(path, split, labels=labels)
    return _of_path(path, source, source.read(size), split, size, labels=labels)


def _of_path(path: Path, source: Source, raw: Raw, split: str, size: int, *, labels: bool) -> ImageSet:
    name = path.resolve().stem if path.is_file() else path.resolve().name
    text = provenance.of_path(source.path, _canonical(split), source.split, raw, size)
    return _image_set(raw, source, name=name, classes=source.classes or raw.classes, text=text, needed=labels)


def load_path_pairs(path: Path, split: str, size: int) -> PairSet:
    """Parquet with a column of images and one of captions; rows without a caption are left out, and told of."""
    source = find_split(path, split, labels=False) or find_whole(path, split, labels=False)
    if source.read_captions is None:
        remedy = "give parquet with a column of images and one of texts, 'caption'"
        raise SapperError("captions are read from parquet, and this is none", where=str(source.path), remedy=remedy)
    raw = source.read_captions(size)
    images = _of_path(path, source, raw, split, size, labels=False)
    said = torch.tensor([bool(words(text)) for text in raw.captions])
    if not said.any():
        raise SapperError("all captions are empty", where=str(source.path), remedy="write a text for every image")
    captions = [text for text, kept in zip(raw.captions, said.tolist()) if kept]
    if len(captions) < len(images):
        left = f"{len(images) - len(captions)} images without a caption were left out."
        images = replace(images.take(said), notes=(*images.notes, left))
    return PairSet.of(images, captions)


def own_split(info: DatasetInfo, split: str) -> str:
    """The split of a known data set that stands for ``split``. Raises ``SapperError`` if it has none."""
    for name in candidates(split):
        if name in info.splits:
            return name
    where, remedy = f"data set {info.name!r}", f"its splits: {', '.join(info.splits)}"
    raise SapperError(f"there is no split {split!r}", where=where, remedy=remedy)


def load_known(info: DatasetInfo, split: str, size: int, data_root: Path, *, download: bool, labels: bool) -> ImageSet:
    """A known data set: files below ``data_root/<its folder>`` first, then torchvision's layout."""
    own = own_split(info, split)
    folder = data_root / info.folder
    source = find_split(folder, split, labels=labels) if folder.is_dir() else None
    if source is not None:
        place = f"{source.path.relative_to(data_root).as_posix()} below the data root"
        title = provenance.readme_title(folder)
    else:
        source = _find_in_torchvision(info, own, data_root, download)
        place, title = f"torchvision's {info.torchvision}", ""

    raw = source.read(size)
    if labels and raw.labels is None and source.split != "unlabeled":
        remedy = "add a column or an array 'label' of integers"
        raise SapperError(f"{info.name} has labels, and none are there", where=str(source.path), remedy=remedy)
    text = provenance.of_known(info, place, title, _canonical(split), source.split, raw, size)
    groups = None
    if info.name == "gtsrb" and source.split == "train":
        groups = gtsrb_tracks(raw.paths)
        text += "" if groups is not None else " Its paths do not tell tracks: near-duplicate frames are not grouped."
    # The registry's names come last: a copy may say itself how its labels run.
    classes = source.classes or raw.classes or info.class_names
    return _image_set(raw, source, name=info.name, classes=classes, text=text, groups=groups, needed=labels)


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
    own = folders.ALIASES.get(_canonical(split), (split,))
    return own + folders.ALIASES["val"] if own == folders.ALIASES["test"] else own


def _canonical(split: str) -> str:
    """One name for a split that goes by several: val for validation."""
    return next((name for name, aliases in folders.ALIASES.items() if split.lower() in aliases), split)


def find_split(path: Path, split: str, *, labels: bool) -> Source | None:
    """``split`` where it has a name: in a folder ``{split}.parquet``, ``{split}.npz`` or ``{split}/``.

    Parquet may be in parts (``{split}-00000-of-00002.parquet``), and in ``data/`` or in the one folder of a
    configuration, as the Hugging Face hub has it; an npz file may hold several splits.
    """
    if path.suffix.lower() == ".npz" and path.is_file():
        return _in_npz(path, split, labels=labels)
    if not path.is_dir():
        return None
    tables = shards.home(path)
    split_folders = folders.split_folders(path)
    for candidate in candidates(split):
        parts = shards.of_split(tables, candidate)
        if parts:
            return _tables(parts, candidate, path, labels=labels)
        for suffix in (".npz", ".npy"):
            file = path / f"{candidate}{suffix}"
            if file.is_file():
                return _arrays(file, candidate, labels=labels)
        if candidate in split_folders:
            folder = split_folders[candidate]
            if parts := _only_tables(folder):
                return _tables(parts, candidate, path, labels=labels)
            source = _folder(folder, candidate, folders.folder_classes(path, labels=labels), labels=labels)
            return replace(source, read=partial(_with_notes, source.read, folders.beside_splits(path)))
    return None


def find_whole(path: Path, split: str, *, labels: bool) -> Source:
    """A file, or a folder that names no splits: one split, which is train.

    Raises ``SapperError`` for any other split, and for a folder that names its splits, of which ``split`` is none.
    """
    found = (find_split(path, name, labels=False) for name in folders.ALIASES)
    named = list(dict.fromkeys(source.split for source in found if source is not None))
    if named or split != "train":
        remedy = f"use a split that is there: {', '.join(named) or 'train'}"
        if not named:
            remedy += ", or give a folder with train and test in it"
        raise SapperError(f"there is no split {split!r} in it", where=str(path), remedy=remedy)
    if path.is_dir():
        if parts := _only_tables(path):
            return _tables(parts, split, path, labels=labels)
        return _folder(path, split, folders.folder_classes(path, labels=labels), labels=labels)
    if path.suffix.lower() == ".parquet" and path.is_file():
        names = _class_names(path.parent, labels=labels)
        read = partial(readers.read_parquet, [path], names=names, labels=labels)
        return Source(path, split, read, names, partial(read, captions=True))
    if path.suffix.lower() in (".npz", ".npy") and path.is_file():
        return _arrays(path, split, labels=labels)
    raise _not_read(path)


def _in_npz(file: Path, split: str, *, labels: bool) -> Source | None:
    for candidate in candidates(split):
        if keys := readers.split_keys(file, candidate):
            return _arrays(file, candidate, keys, labels=labels)
    return None


def _arrays(file: Path, split: str, keys: tuple[str, str] | None = None, *, labels: bool) -> Source:
    """A file of NumPy's, with the class names of a ``classes.json`` beside it."""
    if file.suffix.lower() == ".npy":
        return Source(file, _canonical(split), partial(readers.read_npy, file))
    names = _class_names(file.parent, labels=labels)
    read = partial(readers.read_npz, file, names=names, labels=labels, keys=keys)
    return Source(file, _canonical(split), read, names)


def _only_tables(folder: Path) -> list[Path]:
    """The parquet files in a folder that holds no pictures: beside pictures they only tell of these."""
    parts = shards.inside(folder)
    return parts if parts and not holds_pictures(folder) else []


def _tables(parts: list[Path], split: str, folder: Path, *, labels: bool) -> Source:
    """Parquet files that are one split, with the class names of a ``classes.json`` in ``folder``.

    Where labels are needed, all parts must be there; else what is missing is told.
    """
    missing = shards.missing(parts)
    if missing and labels:
        what = f"{len(missing)} of its {len(missing) + len(parts)} parts are missing: {', '.join(missing[:3])}"
        remedy = "download the whole data set, or name one part as a file"
        raise SapperError(what, where=str(parts[0].parent), remedy=remedy)
    names = _class_names(folder, labels=labels)

    notes = (note(shards.MISSING, missing),) if missing else ()
    whole = partial(readers.read_parquet, parts, names=names, labels=labels)
    read, said = (partial(_with_notes, each, notes) for each in (whole, partial(whole, captions=True)))
    place = parts[0] if len(parts) == 1 else parts[0].parent
    return Source(place, _canonical(split), read, names, said)


def _with_notes(read: Callable[[int], Raw], notes: tuple[str, ...], size: int) -> Raw:
    raw = read(size)
    return replace(raw, notes=raw.notes + notes)


def _class_names(folder: Path, *, labels: bool) -> tuple[str, ...]:
    """What ``classes.json`` says; where no labels are needed, a bad one does not matter."""
    try:
        return readers.read_class_names(folder)
    except SapperError:
        if labels:
            raise
        return ()


def _not_read(path: Path) -> SapperError:
    """The error for a file that is no data set, by what it is."""
    kinds = "a folder of images, or a file that ends in .parquet, .npz or .npy"
    if not path.is_file():
        return SapperError("this is neither a file nor a folder", where=str(path), remedy=f"give {kinds}")
    if path.suffix.lower() in ARCHIVES:
        remedy = f"unpack it and give the folder; what is read: {kinds}"
        return SapperError("this kind of file is not read: an archive", where=str(path), remedy=remedy)
    if path.suffix.lower() in SUFFIXES or is_picture(path) or is_heic(path):
        remedy = "give the folder that it lies in, with more pictures"
        return SapperError("this is a single picture, not a set of them", where=str(path), remedy=remedy)
    return SapperError("this kind of file is not read", where=str(path), remedy=f"give {kinds}")


def _folder(folder: Path, split: str, classes: tuple[str, ...], *, labels: bool) -> Source:
    read = partial(folders.read_folder, folder, classes=classes, labels=labels)
    return Source(folder, _canonical(split), read, classes)


def _image_set(
    raw: Raw,
    source: Source,
    *,
    name: str,
    classes: tuple[str, ...],
    text: str,
    groups: Tensor | None = None,
    needed: bool,
) -> ImageSet:
    """The ``ImageSet``, with ``text`` as its provenance; labels are checked while an error can still name the file.

    Labels that do not fit are dropped where none are ``needed``.
    """
    images, labels = raw.decoded.images, raw.labels
    if len(images) == 0:
        raise SapperError("there is no image in it", where=str(source.path), remedy="write the file again")
    if labels is None:
        classes = ()
    else:
        lowest, highest = int(labels.min()), int(labels.max())
        classes = classes or tuple(str(label) for label in range(highest + 1))
        if (lowest < 0 or highest >= len(classes)) and not needed:
            labels, classes = None, ()
        elif lowest < 0 or highest >= len(classes):
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
        notes=raw.notes,
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
