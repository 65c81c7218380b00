"""How good an encoder is while it is being trained, and whether it collapses: without training anything."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sapper.downstream import KNN, extract, predict
from sapper.encoders import Encoder
from sapper.running import Run
from sapper.samples import Samples

MONITOR_IMAGES = 5000
"""At most so many images: the monitor shall cost little beside an epoch."""


def neighbor_accuracy(encoder: Encoder, samples: Samples, run: Run) -> float:
    """Accuracy of kNN on a fifth of (at most ``MONITOR_IMAGES``) samples with the other four fifths as neighbors.

    The same samples in every epoch. Leaves the encoder in ``eval`` mode. Raises ``SapperError`` without labels.
    """
    some = samples.sample(MONITOR_IMAGES, run.child("monitor").generator())
    bank, queries = some.held_out(0.2, run.child("monitor queries").generator())
    head = KNN().fit(extract(encoder, bank, run), bank.targets(), len(bank.classes), run)
    predicted = predict(head, extract(encoder, queries, run))
    return float((predicted == queries.targets()).double().mean())


def monitored(encoder: Encoder, samples: Samples, run: Run) -> Callable[[], dict[str, float]]:
    """For ``train``'s ``after_epoch``: the accuracy as a curve."""
    return lambda: {"kNN accuracy": neighbor_accuracy(encoder, samples, run)}


@torch.no_grad()
def spread(outputs: Tensor) -> Tensor:
    """Whether outputs (N, D) have collapsed: the mean over dimensions of the standard deviation, each of length 1.

    1/√D where they point in all directions alike, 0 where all point in one (Chen & He, "Exploring Simple Siamese
    Representation Learning", CVPR 2021). A scalar.
    """
    return F.normalize(outputs.float(), dim=1).std(0, correction=0).mean()
