"""A classifier as its owner builds it, whatever the kind of head."""

from torch import Tensor

from sapper.downstream.classifier import Classifier
from sapper.downstream.features import extract
from sapper.downstream.heads import Head, TunedHead
from sapper.downstream.zero_shot import ZeroShot
from sapper.encoders import Encoder
from sapper.running import Run
from sapper.samples import Samples

AnyHead = Head | TunedHead | ZeroShot
"""What a user of an encoder makes a classifier with; its ``kind`` says how."""


def build(head: AnyHead, encoder: Encoder, train: Samples, run: Run, features: Tensor | None = None) -> Classifier:
    """A classifier for the classes of ``train`` on ``encoder``, in ``eval`` mode.

    ``fitted`` heads are trained on ``features`` (N, D), normalized, of the N samples of ``train``; where they are not
    at hand they are extracted. ``tuned`` ones stand on a trained copy of the encoder. ``zero_shot`` heads see the names
    of the classes and no sample.
    Raises ``SapperError`` where ``train`` lacks what the head needs, or does not fit the encoder.
    """
    train.check(encoder.card.input)
    if head.kind == "zero_shot":
        return Classifier(encoder, head.build(encoder, train.classes, run)).eval()
    if head.kind == "tuned":
        return head.tune(encoder, train, run)
    labels = train.targets()
    if features is None:
        features = extract(encoder, train, run)
    return Classifier(encoder, head.fit(features, labels, len(train.classes), run)).eval()
