"""Activation Clustering: a class with poison in it falls into two clusters, and the small one is the poison.

Threat model: as Spectral Signatures', the defender holds a labeled training set with poison in it, and a classifier
that was trained on it. In each class, what the classifier makes of its rows before its last layer is reduced to ten
dimensions and divided in two by k-means. The classifier tells clean rows by what the class looks like, poison by its
trigger, so the two lie apart:

    the smaller cluster goes if it holds less than 35 % of its class

Which is all the paper's rule says; a clean class that falls into unequal parts loses one, too. For a ranking of rows,
with c₊ and c₋ the centers of the larger and the smaller cluster and d their distances to a row,

    m(x) = ( d(x, c₊) − d(x, c₋) ) / max( d(x, c₊), d(x, c₋) )         score(x) = m(x) · mean of |m| over the class

so that classes in two distant parts come first. |m| is a silhouette by centers instead of all pairs.

Source: Chen et al., "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering", SafeAI 2019. Ten
dimensions and 35 % as in public code (backdoor-toolbox), which reduces by FastICA or PCA; ``pca`` is the default here,
because FastICA does not always converge. The score, ``silhouette`` and ``clusters`` (for rows without labels) are ours.
"""

import warnings
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from sapper.defenses.contracts import Need, Sift
from sapper.defenses.measures import SIFTED, OfScores
from sapper.defenses.sifting import check_groups, clustered, groups, members, represented
from sapper.downstream import Classifier
from sapper.encoders import Encoder
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import Samples
from sapper.verdicts import Scores

FEWEST = 4
"""Rows of a class below which it is not divided: nothing in it is flagged."""


@dataclass(frozen=True, kw_only=True)
class ActivationClustering(Checked, Sift):
    """Removes the small one of two clusters in each class (Chen et al., SafeAI 2019).

    ``dimensions`` that features are reduced to, by ``reduction``. ``size``: the share of its class from which on a
    cluster is too large for poison. ``silhouette``: classes whose mean |m| is less are left alone; 0: none is.
    ``clusters``: how many clusters of features stand for classes; 0: the labels do.
    """

    dimensions: PositiveInt = 10
    reduction: Literal["pca", "ica"] = "pca"
    size: Annotated[float, Field(gt=0, le=0.5)] = 0.35
    silhouette: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clusters: NonNegativeInt = 0

    kind: ClassVar[Literal["sift"]] = "sift"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    measures: ClassVar[tuple[OfScores, ...]] = SIFTED
    libraries: ClassVar[tuple[str, ...]] = ("scikit-learn",)
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Chen et al., SafeAI 2019"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def check(self, rows: int, classes: int) -> None:
        """Raises ``SapperError`` for fewer rows than clusters, and for rows without labels if these are needed."""
        check_groups("activation_clustering", self.clusters, rows, classes)

    def __call__(self, samples: Samples, model: Encoder | Classifier, run: Run) -> Scores:
        """How far each row is on the side of its class's small cluster, in −1…1; flagged are whole clusters."""
        self.check(len(samples), len(samples.classes))
        features = represented(model, samples, run)
        values, flagged = torch.zeros(len(samples)), torch.zeros(len(samples), dtype=torch.bool)
        for number, rows in enumerate(members(groups(samples, features, self.clusters, run))):
            if len(rows) < FEWEST:
                continue
            part = run.child(f"class {number}")
            reduced = reduce(features[rows], self.dimensions, self.reduction, part)
            small, margins = divided(reduced, part)
            apart = float(margins.abs().mean())
            values[rows] = (margins * apart).float()
            flagged[rows] = small & bool(small.double().mean() < self.size and apart >= self.silhouette)
        return Scores(values=values, threshold=None, flagged=flagged)


def reduce(features: Tensor, dimensions: int, by: Literal["pca", "ica"], run: Run) -> Tensor:
    """``features`` float64 (N, D) in ``dimensions``, or fewer where the features span fewer; (N, d)."""
    from sklearn.decomposition import PCA, FastICA  # takes seconds, which listing methods need not wait for
    from sklearn.exceptions import ConvergenceWarning

    spanned = int(torch.linalg.matrix_rank(features - features.mean(0)))
    if spanned == 0:
        return torch.zeros(len(features), 1, dtype=torch.float64)
    count, seed = min(dimensions, spanned), run.child("reduction").seed % 2**32
    if by == "pca":
        return torch.from_numpy(PCA(count, random_state=seed).fit_transform(features.numpy()))
    with warnings.catch_warnings():  # a last step that was still large leaves independent enough directions
        warnings.simplefilter("ignore", ConvergenceWarning)
        method = FastICA(count, random_state=seed, whiten="unit-variance")
        return torch.from_numpy(method.fit_transform(features.numpy()))


def divided(points: Tensor, run: Run) -> tuple[Tensor, Tensor]:
    """Two clusters of ``points`` (N, d): who is in the smaller one, bool (N,), and m (N,) of the module's docstring.

    Points that all coincide are in none, with m = 0.
    """
    halves = clustered(points, 2, run)
    sizes = halves.bincount()
    if len(sizes) < 2:
        return torch.zeros(len(points), dtype=torch.bool), torch.zeros(len(points), dtype=torch.float64)
    centers = torch.stack([points[halves == half].mean(0) for half in sizes.argsort(descending=True, stable=True)])
    large, small = torch.cdist(points, centers, compute_mode="donot_use_mm_for_euclid_dist").T
    return halves == int(sizes.argsort(descending=True, stable=True)[1]), (large - small) / torch.maximum(large, small)
