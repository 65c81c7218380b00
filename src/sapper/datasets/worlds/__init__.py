"""Three small worlds of 32×32 pictures that code makes from a seed: nothing to download, the same everywhere.

``objects`` is the pre-training set and a task of its own; ``signs`` and ``digits`` are tasks to move to. In each, the
classes differ in shape. Brightness, color, size and place vary freely, so that raw pixels say little about the class.
"""

import re

import numpy as np
import torch
from numpy.typing import NDArray

from sapper.datasets.worlds import digits, objects, signs
from sapper.datasets.worlds.canvas import Traits
from sapper.errors import SapperError, closest
from sapper.running import Run
from sapper.samples import ImageSet, PairSet

SEED = 1
VERSION = 2  # Raise it when a change of code changes pixels: results of different versions do not compare.
NAMES = ("objects", "signs", "digits")
SPLITS = ("train", "test")
ABOUT = {
    "objects": "Ten outlines over cluttered grounds, drawn",
    "signs": "Fourteen traffic signs by the roadside, drawn",
    "digits": "Handwritten digits of scikit-learn (from UCI's optical recognition set), set in color over clutter",
}
PER_CLASS = {
    "objects": {"train": 800, "test": 200},
    "signs": {"train": 400, "test": 200},
    "digits": {"train": 500, "test": 200},
}
TEMPLATES = {"objects": objects.CAPTIONS, "signs": signs.CAPTIONS, "digits": digits.CAPTIONS}
CLASSES = {"objects": objects.CLASSES, "signs": signs.CLASSES, "digits": digits.CLASSES}
BATCH = 50  # Pictures drawn at a time: few enough to stay in the processor's cache; divides every number above.


def make(name: str, split: str) -> ImageSet:
    """The embedded world ``name`` (objects, signs, digits), its ``train`` or its ``test`` images, in mixed order.

    In ``digits`` the groups are the handwritten sources, each of which appears several times.

    Raises ``SapperError`` for other names and splits.
    """
    return _make(name, split)[0]


def make_pairs(name: str, split: str) -> PairSet:
    """The same images with a caption each, which tells what was drawn: the class, and traits as the template wants.

    The templates are the world's ``CAPTIONS``, for each picture one at random.
    """
    images, traits = _make(name, split)
    rng = np.random.default_rng(Run(seed=SEED).child(f"{name}/{split}/captions").seed)
    things = [images.classes[label] for label in images.targets().tolist()]
    templates = rng.choice(TEMPLATES[name], len(things))
    rows = (dict(zip(traits, values), thing=thing) for thing, values in zip(things, zip(*traits.values())))
    return PairSet.of(images, [_an(template.format(**row)) for template, row in zip(templates.tolist(), rows)])


def _an(caption: str) -> str:
    return re.sub(r"\ba (?=[aeiou8]|hour)", "an ", caption)


def _make(name: str, split: str) -> tuple[ImageSet, Traits]:
    if name not in NAMES:
        raise SapperError(f"there is no embedded world {name!r}", remedy=closest(name, NAMES))
    if split not in SPLITS:
        raise SapperError(f"there is no split {split!r}", where=f"data set {name!r}", remedy="use train or test")
    rng = np.random.default_rng(Run(seed=SEED).child(f"{name}/{split}").seed)
    classes, count = CLASSES[name], PER_CLASS[name][split]

    groups: NDArray[np.int64] | None = None
    if name == "digits":
        groups = np.concatenate([digits.choose(rng, digit, count, split) for digit in range(10)])
        batches = [digits.draw(rng, groups[start : start + BATCH]) for start in range(0, len(groups), BATCH)]
    else:
        draw = objects.draw if name == "objects" else signs.draw
        batches = [draw(rng, label, BATCH) for label in classes for _ in range(count // BATCH)]
    order = rng.permutation(len(classes) * count)
    told = {trait: [word for _, traits in batches for word in traits[trait]] for trait in batches[0][1]}
    images = ImageSet(
        images=torch.from_numpy(np.concatenate([pictures for pictures, _ in batches])[order]),
        labels=torch.from_numpy(np.repeat(np.arange(len(classes)), count)[order]),
        classes=classes,
        groups=None if groups is None else torch.from_numpy(groups[order]),
        name=name,
        split=split,
        provenance=f"{ABOUT[name]} by code from a fixed seed: sapper's embedded world {name!r}, version {VERSION}.",
    )
    return images, {trait: [words[row] for row in order] for trait, words in told.items()}
