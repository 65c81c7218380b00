"""How good an encoder is while it is being trained: accuracy of nearest neighbors, without training anything."""

from collections.abc import Callable

from sapper.downstream import KNN, extract, predict
from sapper.encoders import Encoder
from sapper.run import Run
from sapper.samples import ImageSet

MONITOR_IMAGES = 5000
"""At most so many images: the monitor shall cost little beside an epoch."""


def neighbor_accuracy(encoder: Encoder, images: ImageSet, run: Run) -> float:
    """Accuracy of kNN on a fifth of (at most ``MONITOR_IMAGES``) images with the other four fifths as neighbors.

    The same images in every epoch. Leaves the encoder in ``eval`` mode. Raises ``SapperError`` without labels.
    """
    some = images.sample(MONITOR_IMAGES, run.child("monitor").generator())
    bank, queries = some.held_out(0.2, run.child("monitor queries").generator())
    head = KNN().fit(extract(encoder, bank, run), bank.targets(), len(bank.classes), run)
    predicted = predict(head, extract(encoder, queries, run))
    return float((predicted == queries.targets()).double().mean())


def monitored(encoder: Encoder, images: ImageSet, run: Run) -> Callable[[], dict[str, float]]:
    """For ``train``'s ``after_epoch``: the accuracy as a curve."""
    return lambda: {"kNN accuracy": neighbor_accuracy(encoder, images, run)}
