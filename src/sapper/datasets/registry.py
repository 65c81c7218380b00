"""The data sets that Sapper knows by name, as plain data. Importing this never imports torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What is known of a data set before any file is read.

    ``kind``        "embedded": made by code, always there; "known": read from files below the data root.
    ``splits``      the splits of the original.
    ``classes``     how many classes the original has.
    ``size``        pixels on a side of the original images; none where they vary.
    ``source``      citation.  ``note``: what to keep in mind when using it.
    ``counts``      images per split of the original. A copy that holds another number is not the official split.
    ``lossless``    whether the original's pixels never went through JPEG.
    ``class_names`` in label order; empty where they come with the files.
    ``folder``      where it lies below the data root.  ``torchvision``: its class there, if it has one.
    """

    name: str
    kind: Literal["embedded", "known"]
    splits: tuple[str, ...]
    classes: int
    size: int | None
    source: str
    note: str = ""
    counts: tuple[int, ...] = ()
    lossless: bool = True
    class_names: tuple[str, ...] = ()
    folder: str = ""
    torchvision: str = ""

    def count(self, split: str) -> int | None:
        """How many images the original's ``split`` has, if that is on record."""
        return dict(zip(self.splits, self.counts)).get(split)


_DIGITS = tuple("0123456789")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_GTSRB = (
    *("Speed limit 20", "Speed limit 30", "Speed limit 50", "Speed limit 60", "Speed limit 70", "Speed limit 80"),
    *("End of speed limit 80", "Speed limit 100", "Speed limit 120", "No overtaking", "No overtaking for trucks"),
    *("Priority at next intersection", "Priority road", "Yield", "Stop", "No vehicles", "No trucks", "No entry"),
    *("General caution", "Dangerous curve left", "Dangerous curve right", "Double curve", "Bumpy road"),
    *("Slippery road", "Road narrows on the right", "Road work", "Traffic signals", "Pedestrians"),
    *("Children crossing", "Bicycles crossing", "Beware of ice/snow", "Wild animals crossing", "End of all limits"),
    *("Turn right ahead", "Turn left ahead", "Ahead only", "Go straight or right", "Go straight or left"),
    *("Keep right", "Keep left", "Roundabout mandatory", "End of no overtaking", "End of no overtaking for trucks"),
)
_KRIZHEVSKY = "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"

_ALL = (
    DatasetInfo(
        name="objects",
        kind="embedded",
        splits=("train", "test"),
        classes=10,
        size=32,
        source="procedural, made by Sapper",
        note="Outlines over cluttered grounds: the set to pre-train on, and a task of its own.",
    ),
    DatasetInfo(
        name="signs",
        kind="embedded",
        splits=("train", "test"),
        classes=14,
        size=32,
        source="procedural, made by Sapper",
        note="Traffic signs in the manner of GTSRB: a downstream task.",
    ),
    DatasetInfo(
        name="digits",
        kind="embedded",
        splits=("train", "test"),
        classes=10,
        size=32,
        source="procedural, made by Sapper from the digits of scikit-learn (E. Alpaydin, C. Kaynak, UCI, 1998)",
        note="Handwritten digits in color: a downstream task.",
    ),
    DatasetInfo(
        name="cifar10",
        kind="known",
        splits=("train", "test"),
        classes=10,
        size=32,
        source=_KRIZHEVSKY,
        counts=(50_000, 10_000),
        class_names=_CIFAR10,
        folder="cifar10",
        torchvision="CIFAR10",
    ),
    DatasetInfo(
        name="cifar10-lossless",
        kind="known",
        splits=("train", "test"),
        classes=10,
        size=32,
        source=_KRIZHEVSKY,
        note="CIFAR-10 in its original pixels, to evaluate models trained elsewhere where cifar10 is a JPEG copy.",
        counts=(50_000, 10_000),
        class_names=_CIFAR10,
        folder="cifar10_lossless",
        torchvision="CIFAR10",
    ),
    DatasetInfo(
        name="stl10",
        kind="known",
        splits=("train", "test", "unlabeled"),
        classes=10,
        size=96,
        source="A. Coates, H. Lee, A. Y. Ng, An Analysis of Single-Layer Networks, AISTATS 2011",
        note="The order of its classes is not CIFAR-10's.",
        counts=(5_000, 8_000, 100_000),
        class_names=_STL10,
        folder="stl10",
        torchvision="STL10",
    ),
    DatasetInfo(
        name="gtsrb",
        kind="known",
        splits=("train", "test"),
        classes=43,
        size=None,
        source="J. Stallkamp, M. Schlipsing, J. Salmen, C. Igel, Man vs. computer, Neural Networks 32, 2012",
        note="Frames of one track are near-duplicates: split by groups. The tracks of test are not public.",
        counts=(39_209, 12_630),
        class_names=_GTSRB,
        folder="gtsrb",
        torchvision="GTSRB",
    ),
    DatasetInfo(
        name="svhn",
        kind="known",
        splits=("train", "test"),
        classes=10,
        size=32,
        source="Y. Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning, 2011",
        note="Label 10 of the original is the digit 0 and has label 0 here.",
        counts=(73_257, 26_032),
        class_names=_DIGITS,
        folder="svhn",
        torchvision="SVHN",
    ),
    DatasetInfo(
        name="food101",
        kind="known",
        splits=("train", "test"),
        classes=101,
        size=None,
        source="L. Bossard, M. Guillaumin, L. Van Gool, Food-101, ECCV 2014",
        note="Its train labels hold some noise on purpose.",
        counts=(75_750, 25_250),
        lossless=False,
        folder="food101",
        torchvision="Food101",
    ),
    DatasetInfo(
        name="tiny-imagenet",
        kind="known",
        splits=("train", "val"),
        classes=200,
        size=64,
        source="Stanford CS231n; J. Deng et al., ImageNet, CVPR 2009",
        counts=(100_000, 10_000),
        lossless=False,
        folder="tiny_imagenet_32",
    ),
    DatasetInfo(
        name="mnist",
        kind="known",
        splits=("train", "test"),
        classes=10,
        size=28,
        source="Y. LeCun, C. Cortes, C. Burges, The MNIST Database, 1998",
        note="Gray: the three channels are equal.",
        counts=(60_000, 10_000),
        class_names=_DIGITS,
        folder="mnist",
        torchvision="MNIST",
    ),
    DatasetInfo(
        name="fashion-mnist",
        kind="known",
        splits=("train", "test"),
        classes=10,
        size=28,
        source="H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, arXiv:1708.07747",
        note="Gray: the three channels are equal.",
        counts=(60_000, 10_000),
        class_names=_FASHION,
        folder="fashion_mnist",
        torchvision="FashionMNIST",
    ),
)

DATASETS: dict[str, DatasetInfo] = {info.name: info for info in _ALL}
