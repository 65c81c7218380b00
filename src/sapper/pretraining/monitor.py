"""How good an encoder is while it is being trained: accuracy of nearest neighbors, without training anything."""

from sapper.downstream import KNN, extract, predict
from sapper.encoders import Encoder
from sapper.images import ImageSet
from sapper.run import Run

MONITOR_IMAGES = 5000
"""At most so many images: the monitor shall cost little beside an epoch."""


def neighbor_accuracy(encoder: Encoder, images: ImageSet, run: Run) -> float:
    """Accuracy of kNN on a fifth of (at most ``MONITOR_IMAGES``) images with the other four fifths as neighbors.

    The same images in every epoch. Leaves the encoder in ``eval`` mode. Raises ``SapperError`` without labels.
    """
    some = images.sample(MONITOR_IMAGES, run.child("monitor").generator())
    bank, queries = some.held_out(0.2, run.child("monitor queries").generator())
    head = KNN().fit(extract(encoder, bank.images, run), bank.targets(), len(bank.classes), run)
    predicted = predict(head, extract(encoder, queries.images, run))
    return float((predicted == queries.targets()).double().mean())
