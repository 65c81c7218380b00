"""SSL-Cleanse: the cluster of features that a small trigger reaches from everywhere is the attacker's.

Threat model: an encoder whose weights are at hand, and unlabeled images; the attacker's trigger is a small patch that
sends every image to one region of the feature space. Features of the images are clustered; the clusters take the place
that classes have in Neural Cleanse. For each cluster with center c_k a mask m and a pattern Δ are optimized,

    minimize   mean_x ( 1 − cos( f((1 − m)·x + m·Δ), c_k ) ) + λ·‖m‖₁ / (H·W)

with m ∈ [0, 1]^{1×H×W} and Δ ∈ [0, 1]^{3×H×W} as (tanh + 1)/2 of what is optimized. A trigger succeeds when, for a
share ``success`` of the stamped images, the nearest image is in the cluster. λ is 0 until then, grows with every run of
good steps and shrinks with every run of bad ones. The attacker's cluster is an outlier below the others:

    anomaly index = (median − min_k ‖m_k‖₁) / (1.4826 · MAD)         flagged above 2

All clusters are optimized as one batch.

Source: Zheng et al., "SSL-Cleanse: Trojan Detection and Mitigation in Self-Supervised Learning", ECCV 2024, and the
authors' ``detector/core``: Adam with rate 0.1 and β = (0.5, 0.9), λ times or divided by 1.5 after 5 good or bad epochs,
an end after 10 epochs without a smaller mask and after 50 in any case. Ours are: the penalty of the mask alone (theirs,
of mask times pattern, lets a black pattern cover anything), the deviation scaled once instead of twice, the knee of the
inertia as its point farthest below the chord, and a trigger kept for every cluster.
"""

import math
import time
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from sapper.defenses.contracts import EncoderExaminer, Need
from sapper.defenses.inversion import (
    UNMEASURABLE,
    Triggers,
    anomaly_index,
    encode,
    groups,
    measurable,
    smallest_masks,
)
from sapper.defenses.measures import TARGET_NAMED, OfVerdicts, detection
from sapper.downstream import extract
from sapper.encoders import Encoder
from sapper.errors import SapperError
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.triggers.searching import stamp
from sapper.verdicts import Verdict, unscored


@dataclass(frozen=True, kw_only=True)
class SSLCleanse(Checked, EncoderExaminer):
    """Inverts the smallest trigger of every cluster and looks for an outlier (Zheng et al., ECCV 2024).

    ``images`` to cluster and to optimize on. ``clusters``: how many; 0: by the knee of the inertia, of 3 to
    ``most_clusters``. ``steps`` at most, of ``minibatches`` of ``batch`` images. ``success``: the share of a step's
    images that must reach the cluster. ``cost``: λ once it is raised, then changed by ``raise_by`` and ``lower_by``
    after ``patience`` good or bad steps in a row. ``early_stop``: steps without a smaller mask that end a cluster.
    ``threshold`` of the anomaly index.
    """

    images: PositiveInt = 512
    clusters: NonNegativeInt = 0
    most_clusters: Annotated[int, Field(ge=3)] = 12
    steps: PositiveInt = 50
    minibatches: PositiveInt = 8
    batch: PositiveInt = 32
    learning_rate: PositiveFloat = 0.1
    success: Annotated[float, Field(gt=0, le=1)] = 0.98
    cost: PositiveFloat = 0.1
    raise_by: Annotated[float, Field(gt=1)] = 1.5
    lower_by: Annotated[float, Field(gt=1)] = 1.5
    patience: PositiveInt = 5
    early_stop: PositiveInt = 10
    threshold: NonNegativeFloat = 2.0

    kind: ClassVar[Literal["examine"]] = "examine"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples", "gradients"})
    measures: ClassVar[tuple[OfVerdicts, ...]] = (*detection("anomaly_index"), TARGET_NAMED)
    libraries: ClassVar[tuple[str, ...]] = ("scikit-learn",)
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Zheng et al., ECCV 2024"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def examine(self, encoder: Encoder, images: ImageSet, run: Run) -> Verdict:
        """Whether ``encoder`` has a backdoor, by unlabeled ordinary ``images``.

        Evidence: ``anomaly_index``, ``suspect`` (the number of the cluster with the smallest mask), each cluster's
        ``norms``, ``success`` and ``sizes``. The trigger is the suspect's. A cluster that no trigger reached has norm
        none; where fewer than three are left there is no index, and the answer is undecided; so it is, with ``why``,
        where features cannot be measured.
        """
        started = time.perf_counter()
        encoder.to(run.device).eval().requires_grad_(False)
        some = images.sample(self.images, run.child("images").generator())
        features, pool = extract(encoder, some, run), some.images
        if not measurable(features):
            return unscored(UNMEASURABLE, self.threshold, time.perf_counter() - started)
        clusters = self.cluster(features, images.name, run)
        triggers = self.invert(encoder, pool, features, clusters, run)
        norms = triggers.norms.tolist()
        index, suspect = anomaly_index(norms)
        evidence: dict[str, Any] = {
            "anomaly_index": index,
            "suspect": suspect,
            "norms": [norm if math.isfinite(norm) else None for norm in norms],
            "success": triggers.success.tolist(),
            "sizes": clusters.bincount().tolist(),
        }
        return Verdict(
            score=index,
            threshold=self.threshold,
            flagged=None if index is None else index > self.threshold,
            trigger=None if suspect is None else triggers.mask(suspect),
            evidence=evidence,
            seconds=time.perf_counter() - started,
        )

    def parts(self) -> list["SSLCleanse"]:
        """It is one."""
        return [self]

    def passes(self, images: ImageSet) -> int:
        """Each cluster sees as many, of at most as many clusters."""
        return self.steps * self.minibatches * self.batch * (self.clusters or self.most_clusters)

    def cluster(self, features: Tensor, name: str, run: Run) -> Tensor:
        """The cluster of each image, int64 (N,) from 0 on, of normalized features (N, D)."""
        from sklearn.cluster import KMeans  # takes seconds, which listing methods need not wait for

        points = features.cpu().double().numpy()
        fewest = 2 * max(self.clusters, self.most_clusters)
        if len(points) < fewest:
            what, remedy = f"{len(points)} images are too few to cluster", f"give at least {fewest}"
            raise SapperError(what, where=name, remedy=remedy)
        counts = [self.clusters] if self.clusters else list(range(3, self.most_clusters + 1))
        fits = [
            KMeans(count, n_init=4, random_state=run.child("clusters").seed % 2**32).fit(points) for count in counts
        ]
        chosen = fits[knee([float(fit.inertia_) for fit in fits])]
        return torch.from_numpy(chosen.labels_).long().to(features.device)

    def invert(self, encoder: Encoder, pool: Tensor, features: Tensor, clusters: Tensor, run: Run) -> Triggers:
        """The smallest successful trigger of each cluster."""
        count = int(clusters.max()) + 1
        centers = F.normalize(torch.stack([features[clusters == k].mean(0) for k in range(count)]), dim=1)

        def descend(
            optimizer: torch.optim.Optimizer, weights: list[Tensor], active: Tensor, cost: Tensor, pixels: Tensor
        ) -> Tensor:
            near = self._descend(optimizer, weights, centers[active], cost, encoder, pixels, features, run)
            return (clusters[near] == active.unsqueeze(1)).float().mean(1)

        return smallest_masks(descend, count, pool, self, run, "SSL-Cleanse")

    def _descend(
        self,
        optimizer: torch.optim.Optimizer,
        weights: list[Tensor],
        centers: Tensor,
        cost: Tensor,
        encoder: Encoder,
        pixels: Tensor,
        features: Tensor,
        run: Run,
    ) -> Tensor:
        """One step of Adam for every cluster on the same images; each one's nearest image before it, (clusters, B)."""
        found = []
        optimizer.zero_grad(set_to_none=True)
        for some in groups(len(cost), pixels):
            masks, stamped = stamp([weight[some] for weight in weights], pixels)
            units = F.normalize(encode(encoder, stamped.flatten(0, 1), run), dim=1).unflatten(0, (len(masks), -1))
            losses = 1 - (units * centers[some].unsqueeze(1)).sum(2).mean(1)
            (losses + cost[some] * masks.flatten(1).mean(1)).sum().backward()
            found.append((units.detach() @ features.T).argmax(2))
        optimizer.step()
        return torch.cat(found)


def knee(inertias: list[float]) -> int:
    """Where a falling curve is farthest below the chord from its first point to its last; 0 for one or two points."""
    if len(inertias) < 3 or inertias[0] == inertias[-1]:
        return 0
    span = inertias[0] - inertias[-1]
    below = [(1 - place / (len(inertias) - 1)) - (value - inertias[-1]) / span for place, value in enumerate(inertias)]
    return max(range(len(below)), key=lambda place: below[place])
