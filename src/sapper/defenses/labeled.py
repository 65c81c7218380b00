"""Clean labeled images of every class, as judges of classifiers draw them, and judges that hold others against them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import PositiveInt
from torch import Tensor

from sapper.defenses.defender import Defender
from sapper.defenses.inside import last_features
from sapper.downstream import Classifier
from sapper.errors import SapperError
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.verdicts import Verdict

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


@dataclass(frozen=True, kw_only=True)
class Comparing(Checked, ABC):
    """A judge that holds images in doubt against ``per_class`` clean labeled images of each class."""

    per_class: PositiveInt = 30

    def check(self, images: int, classes: int) -> None:
        """Raises ``SapperError`` for fewer than 3 classes, or too few images for ``per_class`` of each."""
        check_classes(classes)
        check_labeled(images, classes, self.per_class)

    def judge(self, classifiers: Sequence[Classifier], defender: Defender, run: Run) -> list[Verdict]:
        """A verdict for each classifier; see ``examine``."""
        stream = defender.in_doubt(type(self).__name__)
        self.check(len(defender.train), defender.classes)
        defender.check(classifiers, run)
        return [
            self.examine(classifier, defender.train, stream, run.child(f"classifier {i}"))
            for i, classifier in enumerate(classifiers)
        ]

    @abstractmethod
    def examine(self, classifier: Classifier, clean: ImageSet, stream: ImageSet, run: Run) -> Verdict:
        """Whether a classifier has a backdoor, by ``clean`` labeled images and those in doubt."""
