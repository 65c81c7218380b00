"""Three small worlds of 32×32 pictures that code makes from a seed: nothing to download, the same everywhere.

``objects`` is the pre-training set and a task of its own; ``signs`` and ``digits`` are tasks to move to. In each, the
classes differ in shape. Brightness, color, size and place vary freely, so that raw pixels say little about the class.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from sapper.datasets.worlds import canvas, digits, objects, signs
from sapper.errors import SapperError, closest
from sapper.images import ImageSet
from sapper.run import Run

VERSION = 1  # Raise it when a change of code changes pixels: results of different versions do not compare.
NAMES = ("objects", "signs", "digits")
SPLITS = ("train", "test")
PER_CLASS = {
    "objects": {"train": 800, "test": 100},
    "signs": {"train": 320, "test": 64},
    "digits": {"train": 520, "test": 100},
}


def make(name: str, split: str) -> ImageSet:
    """The embedded world ``name`` (objects, signs, digits), its ``train`` or its ``test`` images, in mixed order.

    Raises ``SapperError`` for other names and splits.
    """
    if name not in NAMES:
        raise SapperError(f"there is no embedded world {name!r}", remedy=closest(name, NAMES))
    if split not in SPLITS:
        raise SapperError(f"there is no split {split!r}", where=f"data set {name!r}", remedy="use train or test")
    rng = np.random.default_rng(Run(seed=VERSION).child(f"{name}/{split}").seed)
    count = PER_CLASS[name][split]
    if name == "objects":
        return _gather(rng, name, split, objects.CLASSES, [objects.draw(rng, c, count) for c in objects.CLASSES])
    if name == "signs":
        return _gather(rng, name, split, signs.CLASSES, [signs.draw(rng, c, count) for c in signs.CLASSES])
    drawn = [digits.draw(rng, d, count, split) for d in range(10)]
    sources = np.concatenate([rows for _, rows in drawn])
    return _gather(rng, name, split, digits.CLASSES, [pictures for pictures, _ in drawn], sources)


def _gather(
    rng: canvas.Rng,
    name: str,
    split: str,
    classes: tuple[str, ...],
    pictures: list[NDArray[np.uint8]],
    groups: NDArray[np.int64] | None = None,
) -> ImageSet:
    labels = np.repeat(np.arange(len(classes)), [len(p) for p in pictures])
    order = rng.permutation(len(labels))
    return ImageSet(
        images=torch.from_numpy(np.concatenate(pictures)[order]),
        labels=torch.from_numpy(labels[order]),
        classes=classes,
        groups=None if groups is None else torch.from_numpy(groups[order]),
        name=name,
        split=split,
        provenance=f"Drawn by sapper's embedded world {name!r}, generator version {VERSION}.",
    )
