"""Density outliers: rows whose features lie more sparsely, or more densely, than is usual.

Threat model: the defender holds a training set with poison in it and an encoder that was trained on it. No label is
needed. With d_k(x) the distance from a row's feature, of length 1, to the k-th nearest other one, and N_k(x) those k,

    score(x) = d_k(x)                                           the share ``share`` with the largest scores goes
    score(x) = d_k(x) / mean of d_k over N_k(x)                 where ``relative``: SLOF

Poison is *sparse* by default, since a trigger takes a row away from what it shows and does not bring it all the way to
others: images of many kinds, or with the patch at many places, lie between the clusters. Few poisoned rows that the
trigger brings together are sparse, too, as long as they are fewer than k: then the k-th neighbor is an ordinary row far
off. Many that it brings together have all their neighbors among themselves. They are *dense*, and score last, so
``suspicious = "dense"`` scores −d_k(x). Which of the two it is depends on the attack and on k, and poison that lies
among the images of its class as they do is neither.

Source: Huang, Erfani, Li, Ma, Bailey, "Detecting Backdoor Samples in Contrastive Language Image Pretraining",
ICLR 2025, and the authors' code: poison of CLIP is sparse in its neighborhood, and scores by local density (k-distance,
SLOF, DAO) find it among the rows of a batch. Ours are the first two, on the whole set instead of a batch; k = 16 as in
their example. "dense" is ours.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor

from sapper.defenses.contracts import Need, Sift
from sapper.defenses.measures import SIFTED, OfScores
from sapper.defenses.sifting import represented, top
from sapper.downstream import Classifier
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import Samples
from sapper.verdicts import Scores


@dataclass(frozen=True, kw_only=True)
class DensityOutliers(Checked, Sift):
    """Removes rows in unusually sparse or dense places of the feature space (Huang et al., ICLR 2025).

    ``neighbors``: k. ``suspicious``: which places. ``relative``: to those of a row's neighbors. ``share`` of all rows
    that is removed.
    """

    neighbors: PositiveInt = 16
    suspicious: Literal["sparse", "dense"] = "sparse"
    relative: bool = False
    share: Annotated[float, Field(gt=0, lt=1)] = 0.1

    kind: ClassVar[Literal["sift"]] = "sift"
    needs: ClassVar[frozenset[Need]] = frozenset()
    measures: ClassVar[tuple[OfScores, ...]] = SIFTED
    libraries: ClassVar[tuple[str, ...]] = ("scikit-learn",)
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Huang et al., ICLR 2025"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def check(self, rows: int, classes: int) -> None:
        """Raises ``SapperError`` where a row does not have so many neighbors."""
        if rows <= self.neighbors:
            what, remedy = f"{rows} rows do not have {self.neighbors} neighbors each", f"choose at most {rows - 1}"
            raise SapperError(what, where="neighbors", remedy=remedy)

    def __call__(self, samples: Samples, model: Encoder | Classifier, run: Run) -> Scores:
        """How sparse, or dense, each row's place is; there is no threshold, a share goes. Labels are not looked at."""
        self.check(len(samples), len(samples.classes))
        reach, around = distances(F.normalize(represented(model, samples, run), dim=1), self.neighbors)
        sparse = (sparsity(reach, around) if self.relative else reach).float()
        values = -sparse if self.suspicious == "dense" else sparse
        return Scores(values=values, threshold=None, flagged=top(values, self.share))


def distances(features: Tensor, neighbors: int) -> tuple[Tensor, Tensor]:
    """Of each row (N, D) the distance to its k-th nearest other row, (N,), and the k nearest, int64 (N, k)."""
    from sklearn.neighbors import NearestNeighbors  # takes seconds, which listing methods need not wait for

    found, rows = NearestNeighbors(n_neighbors=neighbors).fit(features.numpy()).kneighbors()
    return torch.from_numpy(found[:, -1].copy()), torch.from_numpy(rows).long()


def sparsity(reach: Tensor, around: Tensor) -> Tensor:
    """A row's distance ``reach`` (N,) over the mean of those of its neighbors ``around`` (N, k); 1 where all are 0."""
    mean = reach[around].mean(1)
    return torch.where(mean > 0, reach / mean, torch.ones_like(reach))
