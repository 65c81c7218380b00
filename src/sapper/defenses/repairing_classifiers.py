"""What repairs of classifiers share: a copy is trained on the owner's labeled images, encoder and head together.

A head may have been fitted to a frozen encoder, or have nothing that is trained (nearest neighbors, class names): then
the encoder alone learns.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from sapper.defenses.contracts import Owner
from sapper.defenses.repairing import Retraining, check_count
from sapper.downstream import Classifier
from sapper.encoders.freezing import trained
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import ImageSet, only_images
from sapper.training import Checkpoint, Curves, Step, Terms

LABELS = "cross-entropy"
"""Of the curves: the loss on the owner's labels."""


@dataclass(frozen=True, kw_only=True)
class Relearning(Retraining):
    """How a repair trains a classifier on the owner's labeled images.

    ``optimizer`` ``sgd``: with Nesterov's ``momentum``.
    """

    learning_rate: PositiveFloat = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9

    def optimizer_of(self, weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The one that was asked for."""
        if self.optimizer == "adam":
            return super().optimizer_of(weights)
        decay = self.weight_decay
        return torch.optim.SGD(weights, self.learning_rate, self.momentum, weight_decay=decay, nesterov=True)

    def teach(
        self,
        lesson: "Lesson",
        terms: Callable[[Step], Terms],
        run: Run,
        label: str,
        checkpoint: Checkpoint | None,
        after_step: Callable[[Step], None] | None = None,
    ) -> Curves:
        """Train the student of a ``lesson``, encoder and head, over its images."""
        return self.retrain(
            lesson.student,
            terms,
            trained(lesson.student),
            count=len(lesson.images),
            run=run,
            label=label,
            checkpoint=checkpoint,
            mode=lesson.mode,
            after_step=after_step,
        )


@dataclass(frozen=True)
class Lesson:
    """What a repair trains on: ``student``, a copy of the classifier, and images with ``labels`` int64 (N,)."""

    student: Classifier
    images: ImageSet
    labels: Tensor

    def mode(self) -> None:
        """Training mode. The head stays in ``eval`` mode: its dropout would draw from torch's global generator."""
        self.student.train()
        self.student.head.eval()


def begin(classifier: Classifier, owner: Owner, run: Run, label: str) -> Lesson:
    """A copy with gradients, and the owner's images, both on the run's device.

    Raises ``SapperError`` for samples that are no images, too few, without labels, of other classes, or do not fit.
    """
    images = only_images(owner.clean, label)
    images.check(classifier.encoder.card.input)
    check_count(len(images))
    labels = images.targets()
    student = copy.deepcopy(classifier).to(run.device).eval().requires_grad_(True)
    if student.encoder.text is not None:  # no image reaches it
        student.encoder.text.requires_grad_(False)
    with torch.no_grad():
        known = student(images.to(run.device).batch(slice(0, 1))).shape[1]
    if known != len(images.classes):
        what = f"the classifier knows {known} classes, {images.name} has {len(images.classes)}"
        raise SapperError(what, where="images", remedy="give images of the task that it was trained for")
    return Lesson(student, images.to(run.device), labels.to(run.device))


def answered(classifier: Classifier, images: Tensor, run: Run) -> Tensor:
    """Logits float32 (N, K), with gradients."""
    with run.autocast():
        logits: Tensor = classifier(images)
    return logits.float()


def miss(classifier: Classifier, images: Tensor, labels: Tensor, run: Run) -> Tensor:
    """The mean cross-entropy; a scalar."""
    return F.cross_entropy(answered(classifier, images, run), labels)


@torch.no_grad()
def accuracy(classifier: Classifier, images: ImageSet, labels: Tensor, run: Run) -> float:
    """The share of images that the classifier, in ``eval`` mode, gives their ``labels``, int64 (N,)."""
    classifier.eval()
    size = images.at_once()
    right = [
        (answered(classifier, batch, run).argmax(1) == wanted).sum()
        for batch, wanted in zip(images.batches(size), labels.split(size))
    ]
    return int(torch.stack(right).sum()) / len(labels)
