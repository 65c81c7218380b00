"""Who defends: the owner of a downstream classifier; and what a defense has to offer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from sapper.downstream import Classifier, Head, extract
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.run import Run
from sapper.samples import Change, ImageSet, to_float
from sapper.triggers import Patch
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
        return Defender(encoder.requires_grad_(False), head, train, extract(encoder, train, run))

    @property
    def classes(self) -> int:
        """K, how many classes there are."""
        return len(self.train.classes)

    @property
    def blank(self) -> Tensor:
        """What masked pixels are set to, float (3,): 0 after the encoder's normalization."""
        return self.encoder.mean.flatten()

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


class EncoderJudge(Protocol):
    """What has learned to tell backdoored encoders from clean ones."""

    def judge(self, encoders: Sequence[Encoder], run: Run) -> list[Verdict]:
        """A verdict for each."""
        ...


class EncoderDetector(Protocol):
    """Answers for bare encoders whether they hold a backdoor, having learned from a fleet of the defender's own.

    The fleet has ``pairs`` pairs of a clean encoder and its backdoored twin, trained on the share ``share`` of as many
    images as the encoders in doubt have seen. How they are trained is not the detector's business.
    """

    metric: ClassVar[str]
    share: float

    @property
    def pairs(self) -> int: ...

    def check(self, images: int, size: tuple[int, int]) -> None:
        """Raises ``SapperError`` when so many images, of that height and width, are too few for a fleet."""

    def draw(self, references: int, size: tuple[int, int], run: Run) -> tuple[int, Patch]:
        """The attack on a twin: which of so many reference images, and the trigger for images of that size."""
        ...

    def fit(self, fleet: Sequence[tuple[Encoder, Encoder]], images: ImageSet, run: Run) -> EncoderJudge:
        """Learn from pairs (clean, backdoored); ``images`` are those that they were trained on."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> EncoderJudge:
        """What ``fit`` learned, from the tensors of its ``state_dict``."""
        ...


class EncoderExaminer(Protocol):
    """Answers for a bare encoder whether it holds a backdoor, by ordinary images without labels and nothing else.

    ``metric``: what its score is called.
    """

    metric: ClassVar[str]

    def examine(self, encoder: Encoder, images: ImageSet, run: Run) -> Verdict:
        """A verdict; ``images`` have the encoder's size, and no label of theirs is looked at."""
        ...


class Guarded(Protocol):
    """A classifier under a certified defense: no patch can easily change its answer, and it says where none can."""

    def predict(self, images: Tensor, run: Run, change: Change | None = None) -> Tensor:
        """Defended predictions, int64 (N,) on the CPU, of uint8 images (N, 3, H, W), after ``change`` if given."""
        ...

    def certify(self, images: Tensor, labels: Tensor, patches: Sequence[int], run: Run) -> list[Certified]:
        """For each size of ``patches`` what the defense for that size certifies; ``labels`` int64 (N,)."""
        ...


class Certifier(Protocol):
    """Guards classifiers against one patch of ``patch`` × ``patch`` pixels.

    ``uses_encoder``: whether what it makes depends on the encoder, or replaces it.
    """

    uses_encoder: ClassVar[bool]

    @property
    def patch(self) -> int: ...

    def prepare(self, classifier: Classifier, defender: Defender, run: Run) -> Guarded:
        """The classifier under the defense, as it is or trained for it."""
        ...
