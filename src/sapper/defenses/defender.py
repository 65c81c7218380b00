"""Who defends: the owner of a downstream classifier."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sapper.downstream import AnyHead, Classifier, build, extract
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import ImageSet, to_float

Logits = Callable[[Tensor], Tensor]
"""A classifier: float images (N, 3, H, W) in [0, 1] to logits (N, K), differentiable."""


@dataclass(frozen=True)
class Defender:
    """What the owner of a classifier holds: a foreign encoder, own labeled images, the way to build heads.

    ``train``: images without any trigger. ``features`` float (N, D): of the ``train`` images, computed once.
    ``stream``: images in doubt, for judges that need ``inputs``: what came into service, without labels and in part
    with a trigger; or the training set as it was delivered, with its labels, in part poison. Nobody tells which part.
    """

    encoder: Encoder
    head: AnyHead
    train: ImageSet
    features: Tensor
    stream: ImageSet | None = None

    @staticmethod
    def of(encoder: Encoder, head: AnyHead, train: ImageSet, run: Run, stream: ImageSet | None = None) -> "Defender":
        """With the features of ``train``. The encoder is frozen: nothing here trains it."""
        return Defender(encoder.requires_grad_(False), head, train, extract(encoder, train, run), stream)

    @property
    def classes(self) -> int:
        """K, how many classes there are."""
        return len(self.train.classes)

    @property
    def blank(self) -> Tensor:
        """What masked pixels are set to, float (3,): 0 after the encoder's normalization."""
        return self.encoder.mean.flatten()

    def in_doubt(self, who: str) -> ImageSet:
        """The images in doubt. Raises ``SapperError`` where ``who`` has none, or they are of another size."""
        if self.stream is None:
            what, remedy = f"{who} judges by images in doubt, and there are none", "give them as Defender.stream"
            raise SapperError(what, where="stream", remedy=remedy)
        if self.stream.size != self.train.size:
            one, other = ("×".join(map(str, images.size)) for images in (self.stream, self.train))
            what = f"images in doubt are {one}, clean ones {other}"
            raise SapperError(what, where="stream", remedy="give both in the encoder's size")
        return self.stream

    @torch.no_grad()
    def check(self, classifiers: Sequence[Logits], run: Run) -> None:
        """Raises ``SapperError`` when a classifier has other classes than the defender's images."""
        image = to_float(self.train.images[:1].to(run.device))
        for number, classifier in enumerate(classifiers):
            if (known := classifier(image).shape[1]) != self.classes:
                what = f"classifier {number} knows {known} classes, {self.train.name} has {self.classes}"
                raise SapperError(what, remedy="give the images of the task that it was trained for")

    def build(self, run: Run) -> Classifier:
        """A classifier as this owner builds them; another seed, another head."""
        return build(self.head, self.encoder, self.train, run, features=self.features).requires_grad_(False).eval()
