"""The data sets that torchvision reads and downloads, in its own layout on disk."""

from pathlib import Path
from typing import Any

import torch

from sapper.datasets.decoding import Decoded, as_rgb, decode, resize
from sapper.datasets.readers import Raw
from sapper.datasets.registry import DatasetInfo
from sapper.errors import SapperError

# What lies below torchvision's root once a set is there.
MARKERS = {
    "CIFAR10": "cifar-10-batches-py",
    "STL10": "stl10_binary",
    "GTSRB": "gtsrb/GTSRB",
    "SVHN": "{split}_32x32.mat",
    "Food101": "food-101",
    "MNIST": "MNIST/raw",
    "FashionMNIST": "FashionMNIST/raw",
}
BY_FLAG = ("CIFAR10", "MNIST", "FashionMNIST")  # these take train=True, the others split="train"
FILES = ("GTSRB", "Food101")  # these are image files, the others hold one array


def find_root(info: DatasetInfo, split: str, data_root: Path) -> Path | None:
    """The folder to hand to torchvision as its root: the data root, or the set's own folder in it."""
    if not info.torchvision:
        return None
    marker = MARKERS[info.torchvision].format(split=split)
    return next((root for root in (data_root, data_root / info.folder) if (root / marker).exists()), None)


def read_torchvision(info: DatasetInfo, split: str, root: Path, size: int, *, download: bool) -> Raw:
    """Read the set by torchvision's own class, which checks the files' MD5 sums where it knows them."""
    import torchvision.datasets  # takes a second, which other data sets need not wait for

    kind = getattr(torchvision.datasets, info.torchvision)
    which = {"train": split == "train"} if info.torchvision in BY_FLAG else {"split": split}
    where = f"{root}, torchvision's {info.torchvision}, split {split!r}"
    try:
        dataset = kind(root, **which, download=download)
    except Exception as error:  # torchvision lets through whatever its readers and the network raise
        remedy = "check the network" if download else "remove its files and allow the download (--download)"
        what = str(error) or type(error).__name__
        raise SapperError(f"torchvision cannot read it: {what}", where=where, remedy=remedy) from error
    raw = _from_files(dataset, size) if info.torchvision in FILES else _from_arrays(dataset, size)
    if info.torchvision == "GTSRB" and split == "train":
        _refuse_missing_class_folders(raw, info, where)
    return raw


def _from_arrays(dataset: Any, size: int) -> Raw:
    planes = as_rgb(torch.as_tensor(dataset.data))
    labels = torch.as_tensor(dataset.targets if hasattr(dataset, "targets") else dataset.labels).to(torch.int64)
    decoded = Decoded(resize(planes, size), frozenset({(planes.shape[3], planes.shape[2])}))
    # STL-10 marks its unlabeled images with -1.
    return Raw(decoded, None if bool((labels == -1).all()) else labels)


def _from_files(dataset: Any, size: int) -> Raw:
    """The lists of files are private to torchvision, but only they tell the tracks of GTSRB."""
    if hasattr(dataset, "_samples"):
        files, labels = [Path(file) for file, _ in dataset._samples], [label for _, label in dataset._samples]
    else:
        files, labels = dataset._image_files, dataset._labels
    decoded = decode(files, size, lambda row: str(files[row]))
    paths = tuple(file.as_posix() for file in files)
    return Raw(decoded, torch.tensor(labels), tuple(getattr(dataset, "classes", ())), paths)


def _refuse_missing_class_folders(raw: Raw, info: DatasetInfo, where: str) -> None:
    """torchvision numbers GTSRB's class folders as it meets them: one missing would shift the labels after it."""
    found = len({Path(path).parent for path in raw.paths})
    if found != info.classes:
        remedy = "remove its files and download them again (--download)"
        raise SapperError(f"{found} of {info.classes} class folders are there", where=where, remedy=remedy)
