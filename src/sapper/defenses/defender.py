"""Who defends: the owner of a downstream classifier; and what a defense has to offer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from sapper.downstream import Classifier, Head, extract
from sapper.encoders import Encoder
from sapper.images import ImageSet
from sapper.run import Run
from sapper.verdicts import Certified, Verdict

Logits = Callable[[Tensor], Tensor]
"""A classifier: float images (N, 3, H, W) in [0, 1] to logits (N, K), differentiable."""


@dataclass(frozen=True)
class Defender:
    """What the owner of a classifier holds: a foreign encoder, own clean training images, the way to build heads.

    ``features`` float (N, D): of the ``train`` images, computed once.
    """

    encoder: Encoder
    head: Head
    train: ImageSet
    features: Tensor

    @staticmethod
    def of(encoder: Encoder, head: Head, train: ImageSet, run: Run) -> "Defender":
        """With the features of ``train``. The encoder is frozen: nothing here trains it."""
        return Defender(encoder.requires_grad_(False), head, train, extract(encoder, train.images, run))

    @property
    def classes(self) -> int:
        """K, how many classes there are."""
        return len(self.train.classes)

    @property
    def blank(self) -> Tensor:
        """What masked pixels are set to, float (3,): 0 after the encoder's normalization."""
        return self.encoder.mean.flatten()

    def build(self, run: Run) -> Classifier:
        """A classifier as this owner builds them; another seed, another head."""
        head = self.head.fit(self.features, self.train.targets(), self.classes, run)
        return Classifier(self.encoder, head.requires_grad_(False)).eval()


class Detector(Protocol):
    """Answers for classifiers on one encoder whether they hold a backdoor. ``metric``: what its score is called."""

    metric: ClassVar[str]

    def check(self, images: int, classes: int) -> None:
        """Raises ``SapperError`` when so many images of so many classes are too few for a defender to begin."""

    def judge(self, classifiers: Sequence[Classifier], defender: Defender, run: Run) -> list[Verdict]:
        """A verdict for each; the defender's images are clean, and the attacker's trigger is unknown."""
        ...


class Certifier(Protocol):
    """Predicts so that a patch of ``patch`` × ``patch`` pixels cannot easily change it, and says where none can."""

    @property
    def patch(self) -> int: ...

    def prepare(self, classifier: Classifier, defender: Defender, run: Run) -> Logits:
        """What the defense makes its predictions with: the classifier as it is, or another that fits the defense."""
        ...

    def predict(self, logits: Logits, images: Tensor, blank: Tensor, run: Run) -> Tensor:
        """Defended predictions, int64 (N,) on the CPU, of uint8 images (N, 3, H, W)."""
        ...

    def certify(
        self, logits: Logits, images: Tensor, labels: Tensor, blank: Tensor, patches: Sequence[int], run: Run
    ) -> list[Certified]:
        """For each size of ``patches`` what the defense for that size certifies; ``labels`` int64 (N,)."""
        ...
