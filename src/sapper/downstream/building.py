"""One entry for all kinds of heads: from a head's parameters to a classifier."""

from torch import Tensor

from sapper.downstream.classifier import Classifier
from sapper.downstream.features import extract
from sapper.downstream.heads import Head
from sapper.downstream.zero_shot import ZeroShot
from sapper.encoders import Encoder
from sapper.run import Run
from sapper.samples import Samples

AnyHead = Head | ZeroShot
"""What a user of an encoder makes a classifier with; its ``kind`` says how."""


def build(head: AnyHead, encoder: Encoder, train: Samples, run: Run, features: Tensor | None = None) -> Classifier:
    """A classifier for the classes of ``train`` on ``encoder``, in ``eval`` mode.

    ``fitted`` heads are trained on ``features`` (N, D), normalized, of the N samples of ``train``; where they are not
    at hand they are extracted. ``zero_shot`` heads see the names of the classes and no sample.
    """
    if head.kind == "zero_shot":
        return Classifier(encoder, head.build(encoder, train.classes, run)).eval()
    inputs = extract(encoder, train, run) if features is None else features
    return Classifier(encoder, head.fit(inputs, train.targets(), len(train.classes), run)).eval()
