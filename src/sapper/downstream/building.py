"""A classifier as its owner builds it, whatever the kind of head."""

from torch import Tensor

from sapper.downstream.classifier import Classifier
from sapper.downstream.features import extract
from sapper.downstream.heads import Head, TunedHead
from sapper.encoders import Encoder
from sapper.run import Run
from sapper.samples import Samples

AnyHead = Head | TunedHead
"""What a scenario may name as a head."""


def build(head: AnyHead, encoder: Encoder, train: Samples, run: Run, features: Tensor | None = None) -> Classifier:
    """The classifier in ``eval`` mode. A fitted head stands on ``encoder`` itself, a tuned one on a trained copy.

    ``features``: of ``train``, if they are known; a tuned head has no use for them.
    Raises ``SapperError`` where ``train`` has no labels or does not fit the encoder.
    """
    train.check(encoder.card.input)
    if head.kind == "tuned":
        return head.tune(encoder, train, run)
    labels = train.targets()
    if features is None:
        features = extract(encoder, train, run)
    return Classifier(encoder, head.fit(features, labels, len(train.classes), run)).eval()
