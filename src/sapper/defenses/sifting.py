"""What sifts of training sets share: what a model makes of the rows, clusters of them, and the rows that go."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sapper.downstream import Classifier, extract
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import PairSet, Samples

CHUNK = 4096
"""Rows that go through a head at once."""


class Penultimate(nn.Module):
    """A batch of samples to what goes into the last layer of a model, float32 (N, D), with gradients.

    Of an encoder that is its features, of length 1. Of a classifier, what its head makes of them before its last layer;
    a head that is no row of layers (``knn``, ``zero_shot``) has the encoder's features. Those of a frozen encoder have
    learned nothing from the rows of a task, and neither has a linear head's standardization of them: a mark that the
    encoder does not see by itself is not in them.
    """

    def __init__(self, model: Encoder | Classifier):
        super().__init__()
        head = None if isinstance(model, Encoder) else model.head
        layers = list(head)[:-1] if isinstance(head, nn.Sequential) else []
        self.encoder = model if isinstance(model, Encoder) else model.encoder
        self.body = nn.Sequential(*layers)

    def forward(self, batch: Tensor) -> Tensor:
        return self.from_features(F.normalize(self.encoder(batch).float(), dim=1))

    def from_features(self, features: Tensor) -> Tensor:
        """The same from the encoder's features of length 1, (N, D)."""
        with torch.autocast(features.device.type, enabled=False):  # heads are trained in float32
            made: Tensor = self.body(features)
        return made


@torch.no_grad()
def represented(model: Encoder | Classifier, samples: Samples, run: Run) -> Tensor:
    """What goes into the last layer of ``model``, float64 (N, D) on the CPU; of pairs, by their images.

    Raises ``SapperError`` where it is not finite.
    """
    shown, looked = (samples.images if isinstance(samples, PairSet) else samples), Penultimate(model)
    looked.to(run.device).eval()
    features = extract(looked.encoder, shown, run)
    made = torch.cat([looked.from_features(chunk) for chunk in features.split(CHUNK)]).cpu().double()
    if not bool(made.isfinite().all()):
        raise samples.error("what the model makes of these rows is not finite", "train it again")
    return made


def check_groups(method: str, clusters: int, rows: int, classes: int) -> None:
    """Raises ``SapperError`` for a sift that looks at classes where neither labels nor ``clusters`` say what they are.

    And for fewer rows than clusters.
    """
    if clusters:
        check_clusters(clusters, rows)
    elif classes == 0:
        what = f"{method} needs labels, and these rows have none"
        raise SapperError(what, where="clusters", remedy="set clusters: so many clusters of features stand for classes")


def check_clusters(clusters: int, rows: int) -> None:
    """Raises ``SapperError`` for fewer rows than clusters."""
    if clusters > rows:
        what = f"{rows} rows cannot be in {clusters} clusters"
        raise SapperError(what, where="clusters", remedy=f"choose at most {rows}")


def clustered(features: Tensor, count: int, run: Run) -> Tensor:
    """The cluster of each of the features (N, D) by k-means, int64 (N,) from 0 on, each with a row; at most ``count``.

    Raises ``SapperError`` for fewer rows than ``count``.
    """
    from sklearn.cluster import KMeans  # takes seconds, which listing methods need not wait for

    check_clusters(count, len(features))
    different = len(features.unique(dim=0))  # k-means warns of more clusters than points
    fit = KMeans(min(count, different), n_init=4, random_state=run.child("clusters").seed % 2**32)
    found = torch.from_numpy(fit.fit(features.numpy()).labels_).long()
    return found.unique(return_inverse=True)[1]


def groups(samples: Samples, features: Tensor, clusters: int, run: Run) -> Tensor:
    """The classes that rows are compared within, int64 (N,): their labels, or ``clusters`` of the features if not 0."""
    return clustered(features, clusters, run) if clusters else samples.targets()


def members(of: Tensor) -> Iterator[Tensor]:
    """The rows of each group that has any, int64 (n,)."""
    for number in of.unique():
        yield (of == number).nonzero().squeeze(1)


def top(values: Tensor, share: float) -> Tensor:
    """The ``share`` of ``values`` (N,) that is largest, rounded, bool (N,); of equal ones the first."""
    flagged = torch.zeros(len(values), dtype=torch.bool)
    flagged[values.argsort(descending=True, stable=True)[: round(share * len(values))]] = True
    return flagged
