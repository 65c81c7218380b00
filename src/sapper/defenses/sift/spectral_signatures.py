"""Spectral Signatures: poison lies far out along the direction in which a class's features vary most.

Threat model: the defender holds a labeled training set with poison in it, and a classifier that was trained on it. In
each class y with rows x₁ … x_n and what the classifier makes of them before its last layer, r(x),

    v = first right singular vector of the matrix with rows r(x_i) − mean_j r(x_j)
    score(x_i) = ⟨ r(x_i) − mean_j r(x_j), v ⟩²        the share 1.5·ε of each class with the largest scores goes

where ε bounds the share of poison in a class. Poison of a class that holds as much poison as clean rows lies no further
out than they, so a poison that fills half of its class is not found.

Source: Tran, Li, Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS 2018, and the authors' code
(``compute_corr.py``). The features are centered, as in the paper's score; public code often projects them as they are,
which orders rows by where the mean happens to lie. ε = 0.1 removes what lies above the 85th percentile of each class,
as BackdoorBench does. ``clusters`` is ours: where there are no labels, k-means clusters of the features stand for them.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from sapper.defenses.contracts import Need, Sift
from sapper.defenses.measures import SIFTED, OfScores
from sapper.defenses.sifting import check_groups, groups, members, represented, top
from sapper.downstream import Classifier
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import Samples
from sapper.verdicts import Scores


@dataclass(frozen=True, kw_only=True)
class SpectralSignatures(Checked, Sift):
    """Removes what lies far out along each class's first principal direction (Tran, Li, Madry, NeurIPS 2018).

    ``epsilon``: the share of poison that a class may hold; ``factor`` times as much of every class is removed.
    ``clusters``: how many clusters of features stand for classes; 0: the labels do.
    """

    epsilon: Annotated[float, Field(gt=0, lt=1)] = 0.1
    factor: Annotated[float, Field(gt=0)] = 1.5
    clusters: NonNegativeInt = 0

    kind: ClassVar[Literal["sift"]] = "sift"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    measures: ClassVar[tuple[OfScores, ...]] = SIFTED
    libraries: ClassVar[tuple[str, ...]] = ("scikit-learn",)
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Tran, Li, Madry, NeurIPS 2018"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epsilon * self.factor >= 1:
            what, remedy = f"a share of {self.epsilon * self.factor:g} is everything", f"below {1 / self.factor:.2g}"
            raise SapperError(what, where="SpectralSignatures.epsilon", remedy=f"choose it {remedy}")

    def check(self, rows: int, classes: int) -> None:
        """Raises ``SapperError`` for fewer rows than clusters, and for rows without labels if these are needed."""
        check_groups("spectral_signatures", self.clusters, rows, classes)

    def __call__(self, samples: Samples, model: Encoder | Classifier, run: Run) -> Scores:
        """The paper's score of each row within its class; there is no threshold, every class loses the same share."""
        self.check(len(samples), len(samples.classes))
        features = represented(model, samples, run)
        values, flagged = torch.zeros(len(samples)), torch.zeros(len(samples), dtype=torch.bool)
        for rows in members(groups(samples, features, self.clusters, run)):
            values[rows] = outlyingness(features[rows], run).float()
            flagged[rows] = top(values[rows], self.factor * self.epsilon)
        return Scores(values=values, threshold=None, flagged=flagged)


def outlyingness(features: Tensor, run: Run) -> Tensor:
    """Squared projections of centered ``features`` float64 (N, D) on their first principal direction, (N,).

    One row alone has 0.
    """
    from sklearn.decomposition import PCA  # takes seconds, which listing methods need not wait for

    if len(features) < 2 or not bool((features != features[0]).any()):
        return torch.zeros(len(features), dtype=torch.float64)
    projected = PCA(1, random_state=run.child("direction").seed % 2**32).fit_transform(features.numpy())
    return torch.from_numpy(projected).squeeze(1).square()
