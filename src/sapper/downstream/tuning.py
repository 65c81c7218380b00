"""The victim that trains the encoder, too: end-to-end fine-tuning of encoder and head on a task's labeled samples.

    minimize   mean cross-entropy( h( f(x) / ‖f(x)‖ ), y )      over f, which starts as the pre-trained encoder, and h

Source: the usual fine-tuning of a pre-trained network (Kornblith, Shlens, Le, "Do Better ImageNet Models Transfer
Better?", CVPR 2019). The optimizer, Adam, and all values are ours, for a few epochs on a small network. With
``batch_norm = "frozen"`` BatchNorm keeps its statistics and its weights, as in BadEncoder, so that small batches do no
harm.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sapper import training
from sapper.augment import Augmentation
from sapper.downstream.classifier import Classifier
from sapper.downstream.features import extract
from sapper.downstream.heads import Standardize, Stepwise
from sapper.encoders import Encoder
from sapper.encoders.freezing import freeze_batch_norm, trained
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import Samples
from sapper.training import Checkpoint, Step, Terms, warm_cosine


@dataclass(frozen=True, kw_only=True)
class Finetune(Checked, Stepwise):
    """Fine-tunes the encoder and a head on its features together (Kornblith et al., CVPR 2019).

    ``hidden``: sizes of the head's hidden layers; none: a linear head. Features are centered and scaled by what the
    encoder says before it is tuned. ``crop_scale``: the smallest share of an image's area that random crops keep, 1: no
    crops. ``flip``: probability of mirroring left and right.
    """

    epochs: PositiveInt = 10
    batch: PositiveInt = 64
    learning_rate: PositiveFloat = 1e-3
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: NonNegativeFloat = 0.0
    batch_norm: Literal["frozen", "trained"] = "frozen"
    hidden: tuple[PositiveInt, ...] = ()
    crop_scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    flip: Annotated[float, Field(ge=0, le=1)] = 0.0

    kind: ClassVar[Literal["tuned"]] = "tuned"
    seeded: ClassVar[bool] = True
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Kornblith, Shlens, Le, CVPR 2019"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    @property
    def layers(self) -> int:
        """How many linear layers the head has."""
        return len(self.hidden) + 1

    def tune(self, encoder: Encoder, train: Samples, run: Run, checkpoint: Checkpoint | None = None) -> Classifier:
        """Train a copy of ``encoder`` and a head; the last epoch counts, none is chosen by its test accuracy."""
        classifier = start(self, encoder, train, run)
        resident, labels = train.to(run.device), train.targets().to(run.device)

        def terms(step: Step) -> Terms:
            images = self.view(resident.batch(step.rows), step.generator)
            with run.autocast():
                logits = classifier(images)
            return {"cross-entropy": F.cross_entropy(logits, labels[step.rows.to(run.device)])}

        training.train(
            classifier,
            terms,
            self.optimizer(trained(classifier)),
            self.rate,
            count=len(train),
            batch=self.batch,
            epochs=self.epochs,
            run=run,
            label="fine-tuning",
            checkpoint=checkpoint,
            mode=lambda: self.mode(classifier),
            drop_last=False,
        )
        return classifier.eval()

    def view(self, images: Any, generator: torch.Generator) -> Any:
        """A batch as it is trained on: augmented, where that is asked for."""
        if self.crop_scale == 1 and self.flip == 0:
            return images
        crop = (self.crop_scale, 1.0) if self.crop_scale < 1 else None
        return Augmentation(crop=crop, flip=self.flip, jitter_p=0, grayscale=0)(images, generator)

    def module(self, features: Tensor, classes: int) -> nn.Module:
        sizes = (features.shape[1], *self.hidden)
        layers: list[nn.Module] = [Standardize(features)]
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], classes)).to(features.device)

    def mode(self, classifier: Classifier) -> None:
        classifier.train().requires_grad_(True)
        if classifier.encoder.text is not None:  # no image reaches it
            classifier.encoder.text.requires_grad_(False)
        if self.batch_norm == "frozen":
            freeze_batch_norm(classifier)

    def optimizer(self, weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(weights, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)

    def rate(self, step: Step) -> float:
        return self.learning_rate * (1.0 if self.schedule == "constant" else warm_cosine(step.done, 0.0))


def start(head: Stepwise, encoder: Encoder, train_set: Samples, run: Run, features: Tensor | None = None) -> Classifier:
    """The classifier before its training, on a copy of ``encoder``, in training mode.

    ``features``: of ``train_set``, if they are known.
    """
    train_set.targets()  # fails now where there are none
    train_set.check(encoder.card.input)
    own = copy.deepcopy(encoder)
    if features is None:
        features = extract(own, train_set, run)
    with run.child("head").seeded():
        classifier = Classifier(own, head.module(features, len(train_set.classes)))
    head.mode(classifier)
    return classifier
