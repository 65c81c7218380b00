"""A classifier as its owner builds it, whatever the kind of head."""

from torch import Tensor

from sapper.downstream.classifier import Classifier
from sapper.downstream.features import extract
from sapper.downstream.heads import Head
from sapper.encoders import Encoder
from sapper.run import Run
from sapper.samples import Samples


def build(head: Head, encoder: Encoder, train: Samples, run: Run, features: Tensor | None = None) -> Classifier:
    """The classifier in ``eval`` mode, on ``encoder`` itself. ``features``: of ``train``, if they are known."""
    labels = train.targets()
    if features is None:
        features = extract(encoder, train, run)
    return Classifier(encoder, head.fit(features, labels, len(train.classes), run)).eval()
