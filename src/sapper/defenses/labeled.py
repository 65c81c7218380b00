"""Clean labeled images of every class, as judges of classifiers draw them."""

import torch
from torch import Tensor

from sapper.defenses.inside import last_features
from sapper.downstream import Classifier
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import ImageSet

TRIED = 4
"""How many times as many images the classifier is asked about as are wanted."""


def check_classes(classes: int) -> None:
    """Raises ``SapperError`` when there are too few classes for one to be an outlier."""
    if classes < 3:
        raise SapperError(f"an outlier among {classes} classes cannot be told", remedy="choose a task of 3 or more")


def check_labeled(images: int, classes: int, each: int) -> None:
    """Raises ``SapperError`` when so many images cannot have ``each`` of every class."""
    if images < each * classes:
        what = f"{each} clean images of each of {classes} classes are needed, and there are {images} in all"
        raise SapperError(what, where="per_class", remedy="give the defender more images, or lower it")


def of_each_class(clean: ImageSet, count: int, classifier: Classifier, run: Run) -> Tensor:
    """Rows of ``count`` images of each class, int64 (K, count), at random.

    Images that the classifier calls by their own class go first. Raises ``SapperError`` where the set has no labels,
    or a class too few images.
    """
    labels = clean.targets()
    there = torch.bincount(labels, minlength=len(clean.classes))
    if int(there.min()) < count:
        least = int(there.argmin())
        what = f"class {clean.classes[least]!r} has {int(there[least])} clean images, {count} are needed"
        raise SapperError(what, where="per_class", remedy="give the defender more images, or lower it")
    order = torch.randperm(len(clean), generator=run.generator())
    order = order[labels[order].argsort(stable=True)]
    starts = there.cumsum(0) - there
    rank = torch.arange(len(clean)) - starts[labels[order]]
    some = order[rank < TRIED * count]
    wrong = last_features(classifier, clean.take(some), run).answers != labels[some]
    ranked = some[(2 * labels[some] + wrong).argsort(stable=True)]
    there = there.clamp_max(TRIED * count)
    return ranked[(there.cumsum(0) - there).unsqueeze(1) + torch.arange(count)]
