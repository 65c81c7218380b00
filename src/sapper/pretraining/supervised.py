"""Supervised pre-training: a classifier is trained, and its body is the encoder.

Most encoders that are offered for download came about like this, the classification backbones of torchvision and timm
among them. A linear layer W on the features is trained together with the encoder by cross-entropy,

    minimize   − log softmax( W f(x) + b )_y        averaged over a batch of random crops, half of them mirrored

and is then thrown away.

Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016: cross-entropy, random crops,
flips, weight decay 1e-4, batches of 256, about 90 epochs. Theirs is SGD. Adam with a peak of 2e-3, a warm-up and half a
cosine is as in our SimCLR, and so that both can be compared; crops keep a quarter of the area or more, since a small
image has little to spare. Both are Sapper's choices.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import nn

from sapper.augment import Augmentation
from sapper.encoders import Encoder, Trained
from sapper.errors import SapperError
from sapper.methods import Checked
from sapper.pretraining.contracts import Need
from sapper.running import Run
from sapper.samples import Samples, only_images
from sapper.training import Checkpoint, Step, Terms, part_done, train, warm_cosine, weighted


@dataclass(frozen=True, kw_only=True)
class Supervised(Checked):
    """Pre-training as the body of a classifier, with cross-entropy (He et al., CVPR 2016).

    ``learning_rate`` is the peak, reached after the ``warmup`` share of all steps. ``crop_scale``: the smallest share
    of the image's area that a crop keeps. ``view_size``: height and width of a crop in pixels, 0 for the images' own.
    """

    epochs: PositiveInt = 90
    batch: Annotated[int, Field(ge=2)] = 256
    learning_rate: PositiveFloat = 2e-3
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.1
    weight_decay: NonNegativeFloat = 1e-4
    crop_scale: Annotated[float, Field(gt=0, le=1)] = 0.25
    view_size: Annotated[int, Field(ge=0, le=4096)] = 0

    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    version: ClassVar[int] = 1
    source: ClassVar[str] = "He et al., CVPR 2016"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def __call__(self, encoder: Encoder, samples: Samples, run: Run, checkpoint: Checkpoint | None = None) -> Trained:
        """Train ``encoder`` in place on labeled ``samples``; with ``checkpoint``, resumably.

        Curves: ``cross-entropy``, and the ``accuracy`` on crops. Raises ``SapperError`` without labels of two classes.
        """
        images = only_images(samples, "supervised")
        images.check(encoder.card.pixels)
        labels = samples.targets()
        if len(labels.unique()) < 2:
            what, remedy = "all samples are of one class", "name a labeled data set"
            raise SapperError(what, where=f"data set {samples.name!r}", remedy=remedy)
        with run.child("head").seeded():
            head = nn.Linear(encoder.feature_size, int(labels.max()) + 1)
        model = nn.ModuleDict({"encoder": encoder, "head": head}).to(run.device)
        augmentation = Augmentation(crop=(self.crop_scale, 1.0), size=self.view_size, jitter_p=0, grayscale=0)
        resident, labels = images.to(run.device), labels.to(run.device)

        def terms(step: Step) -> Terms:
            wanted = labels[step.rows.to(run.device)]
            with run.autocast():
                logits = head(encoder(augmentation.views(resident, step.rows, step.generator))).float()
            accuracy = (logits.detach().argmax(1) == wanted).float().mean()
            return {"cross-entropy": F.cross_entropy(logits, wanted), "accuracy": accuracy}

        curves = train(
            model,
            terms,
            torch.optim.Adam(model.parameters(), weight_decay=self.weight_decay, fused=True),
            lambda step: self.learning_rate * warm_cosine(part_done(step.index, step.total), self.warmup),
            count=len(samples),
            batch=self.batch,
            epochs=self.epochs,
            run=run,
            label="pre-training (supervised)",
            checkpoint=checkpoint,
            combine=weighted({"cross-entropy": 1.0}),
        )
        return Trained(encoder.eval(), curves)
