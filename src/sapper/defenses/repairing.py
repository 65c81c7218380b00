"""What repairs of encoders share: training on clean samples, views, fresh networks, the cosine with the suspect."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sapper.augment import Augmentation
from sapper.defenses.contracts import Owner
from sapper.encoders import Encoder
from sapper.encoders.backbones import build_like
from sapper.encoders.names import LIBRARIES, OWN
from sapper.encoders.redrawing import redrawn
from sapper.errors import SapperError
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import ImageSet, only_images
from sapper.training import Checkpoint, Curves, Step, Terms, plain_sum, steps_per_epoch, train, warm_cosine

COSINE, PRUNED = "cosine", "pruned channels"
"""Of the curves: the distance to the suspect's features as 1 − cosine, and how many channels were cut out."""

FEWEST = 2
"""Images below which nothing can be trained."""


@dataclass(frozen=True, kw_only=True)
class Retraining(Checked):
    """How a repair trains on the owner's clean samples.

    At least ``steps`` of Adam, in whole epochs: a few hundred samples are seen as long as some thousands. ``schedule``
    ``cosine``: the rate falls to zero.
    """

    steps: PositiveInt = 1000
    batch: Annotated[int, Field(ge=2)] = 64
    learning_rate: PositiveFloat = 3e-3
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: NonNegativeFloat = 0.0

    def check(self, encoder: Encoder, images: int) -> None:
        """Raises ``SapperError`` for a network that it cannot work on, and for too few images."""
        check_count(images)

    def retrain(
        self,
        model: nn.Module,
        terms: Callable[[Step], Terms],
        weights: Iterable[nn.Parameter],
        *,
        count: int,
        run: Run,
        label: str,
        checkpoint: Checkpoint | None,
        combine: Callable[[Terms, Step, Curves], Tensor] = plain_sum,
        mode: Callable[[], object] | None = None,
        after_step: Callable[[Step], None] | None = None,
    ) -> Curves:
        """Train ``weights``, which ``model`` holds, over rows 0…``count``-1; the rest is as in ``training.train``."""
        return train(
            model,
            terms,
            self.optimizer_of(weights),
            lambda step: self.learning_rate * (1.0 if self.schedule == "constant" else warm_cosine(step.done, 0.0)),
            count=count,
            batch=self.batch,
            epochs=epochs_of(self.steps, count, self.batch),
            run=run,
            label=label,
            checkpoint=checkpoint,
            combine=combine,
            mode=mode,
            after_step=after_step,
        )

    def optimizer_of(self, weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(weights, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)


@dataclass(frozen=True, kw_only=True)
class Distilling(Retraining):
    """The same of a repair that learns the suspect's answers.

    ``augmented``: the share of each batch that is augmented, as SimCLR's views are but with crops of ``crop_scale`` of
    the image's area or more.
    """

    augmented: Annotated[float, Field(ge=0, le=1)] = 0.5
    crop_scale: Annotated[float, Field(gt=0, le=1)] = 0.2

    def view(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A batch, the last ``augmented`` of it changed at random."""
        plain = round((1 - self.augmented) * len(images))
        return torch.cat((images[:plain], views(self.crop_scale)(images[plain:], generator)))

    def answers_of(self, suspect: Encoder, student: Encoder, images: ImageSet, run: Run) -> Callable[[Step], Terms]:
        """The loss of a ``student`` that learns what ``suspect`` says of views of the images."""

        def terms(step: Step) -> Terms:
            shown = self.view(images.batch(step.rows), step.generator)
            return {COSINE: apart(encoded(student, shown, run), answers(suspect, shown, run))}

        return terms


def views(crop_scale: float) -> Augmentation:
    """SimCLR's augmentation with crops no smaller than that share of an image's area."""
    return Augmentation(crop=(crop_scale, 1.0))


def epochs_of(steps: int, count: int, batch: int) -> int:
    """So many epochs are at least so many steps."""
    return ceil(steps / steps_per_epoch(count, batch))


def begin(encoder: Encoder, owner: Owner, run: Run, label: str) -> ImageSet:
    """The owner's images on the run's device; the encoder's weights, which an audit leaves frozen, have gradients.

    Raises ``SapperError`` for samples that are no images, too few, or do not fit.
    """
    images = only_images(owner.clean, label)
    images.check(encoder.card.input)
    check_count(len(images))
    encoder.to(run.device).requires_grad_(True)
    if encoder.text is not None:  # nobody suspects it, and no image reaches it
        encoder.text.requires_grad_(False)
    return images.to(run.device)


def check_count(images: int) -> None:
    """Raises ``SapperError`` where so many images are too few for any repair."""
    if images < FEWEST:
        what, remedy = f"a repair needs at least {FEWEST} images, and there are {images}", "give some hundreds"
        raise SapperError(what, where="images", remedy=remedy)


def fresh(encoder: Encoder, run: Run) -> Encoder:
    """The same network with weights of its own, drawn with the run's seed; a text tower is taken over as it is."""
    name = encoder.card.architecture
    if name not in OWN and name.partition(":")[0] not in LIBRARIES:  # of somebody's own code
        student = redrawn(encoder, run)
    else:
        student = build_like(encoder.card, run)
        student.text, student.gray = copy.deepcopy(encoder.text), encoder.gray
    student.card = encoder.card
    if student.text is not None:
        student.text.requires_grad_(False)
    return student


def apart(features: Tensor, wanted: Tensor) -> Tensor:
    """1 − the mean cosine of rows (N, D) with those of ``wanted``; a scalar."""
    return 1 - F.cosine_similarity(features.float(), wanted.float(), dim=1).mean()


def encoded(encoder: Encoder, images: Tensor, run: Run) -> Tensor:
    """Features float32 (N, D)."""
    with run.autocast():
        output: Tensor = encoder(images)
    return output.float()


@torch.no_grad()
def answers(encoder: Encoder, images: Tensor, run: Run) -> Tensor:
    """The same of an encoder that is not trained."""
    return encoded(encoder, images, run)
