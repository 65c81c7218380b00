"""PatchSearch: a piece of a poisoned image, pasted on other images, moves them to the cluster that it came from.

Threat model: the defender holds a training set without labels, with poison in it, and an encoder that was trained on
it; the trigger is a patch. The features are divided into k clusters with centers c₁ … c_k. From each row x, of cluster
k(x), the window is cut out without which it is farthest from its center,

    w(x) = argmin over w×w windows of cos( f(x with the window blank), c_k(x) )

and pasted, where it was cut, on other rows z₁ … z_P that lie nearest to the centers of their clusters:

    score(x) = share of the z outside of cluster k(x) whose nearest center becomes c_k(x)

Of all rows the share ``share`` with the largest scores goes, but for those that move nothing. How high poison scores
depends on the number of clusters: the more there are, the more of them share what a trigger moves.

Source: Tejankar et al., "Defending Against Patch-based Backdoor Attacks on Self-Supervised Learning", CVPR 2023, and
the authors' code (``patch_search_iterative_search.py``): 1,000 clusters for 127,000 images, windows of 60 pixels in
224, pasted on 1,000 images near the centers. Ours is sized for small sets. Every row is scored, with fewer pasted
images; theirs scores a few rows of each cluster, drops the clusters that score least, and trains a classifier on the
patches that it found, to find the other rows. Theirs takes the window from a map of Grad-CAM, which has four places a
side for images of 32 pixels; on small poisoned classifiers, neither these maps nor the gradient of the pixels had the
trigger in their window reliably, and blanks had. Windows are pasted where they were cut, not anywhere, so that triggers
with a fixed place are found, too. Their code reads what is poison from file names, to tell how well it does; here
nothing does. A row costs P passes of an image through the network, and one for each place of the blank: about 50.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from sapper.defenses.contracts import Need, Sift
from sapper.defenses.measures import SIFTED, OfScores
from sapper.defenses.sifting import Penultimate, check_clusters, clustered, represented, top
from sapper.downstream import Classifier
from sapper.encoders import Encoder
from sapper.methods import Checked
from sapper.running import Run
from sapper.samples import ImageSet, PairSet, Samples, at_once, only_images
from sapper.verdicts import Scores

PER_CLUSTER = 127
"""Rows to a cluster in the paper."""


@dataclass(frozen=True, kw_only=True)
class PatchSearch(Checked, Sift):
    """Removes rows a piece of which moves other images to their cluster (Tejankar et al., CVPR 2023).

    ``clusters`` of features; 0: one for every 127 rows, as in the paper, at least 10. ``window``: its side as a share
    of the image's. ``pasted``: on how many images. ``share`` of all rows that is removed at most.
    """

    clusters: NonNegativeInt = 0
    window: Annotated[float, Field(gt=0, lt=1)] = 0.27
    pasted: PositiveInt = 64
    share: Annotated[float, Field(gt=0, lt=1)] = 0.1

    kind: ClassVar[Literal["sift"]] = "sift"
    needs: ClassVar[frozenset[Need]] = frozenset()
    measures: ClassVar[tuple[OfScores, ...]] = SIFTED
    libraries: ClassVar[tuple[str, ...]] = ("scikit-learn",)
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Tejankar et al., CVPR 2023"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"clusters": 1000, "pasted": 1000}}

    def check(self, rows: int, classes: int) -> None:
        """Raises ``SapperError`` for fewer rows than clusters."""
        check_clusters(self.count(rows), rows)

    def count(self, rows: int) -> int:
        """How many clusters so many rows are divided into."""
        return self.clusters or max(10, rows // PER_CLUSTER)

    def __call__(self, samples: Samples, model: Encoder | Classifier, run: Run) -> Scores:
        """The share of other images that a row's window moves to its cluster, in 0…1. Labels are not looked at."""
        self.check(len(samples), len(samples.classes))
        images = only_images(samples.images if isinstance(samples, PairSet) else samples, "patch_search")
        looked = Penultimate(model).to(run.device).eval()
        features = F.normalize(represented(model, images, run), dim=1)
        of = clustered(features, self.count(len(images)), run)
        centers = F.normalize(torch.stack([features[of == each].mean(0) for each in of.unique()]), dim=1)
        nearness, of = (features @ centers.T).max(1)
        shown = images.take(central(nearness, of, self.pasted))
        aims = centers.float().to(run.device)
        places = self._windows(images, of, aims, looked, run)
        values = self._flips(images, of, shown, places, aims, looked, run)
        return Scores(values=values, threshold=None, flagged=top(values, self.share) & (values > 0))

    @torch.no_grad()
    def _windows(self, images: ImageSet, of: Tensor, centers: Tensor, looked: Penultimate, run: Run) -> Tensor:
        """Top and left of each row's window, int64 (N, 2)."""
        places, side = candidates(images.size, self.side(images.size)), self.side(images.size)
        blank, found = looked.encoder.mean.view(3, 1, 1), list[Tensor]()
        with run.progress.bar("windows", len(images)) as bar:
            for rows in torch.arange(len(images)).split(max(1, images.at_once(run.device) // len(places))):
                batch, own = images.batch(rows).to(run.device), centers[of[rows].to(run.device)]
                masks = inside(places.to(run.device), side, images.size)[:, None]
                blanked = torch.where(masks, blank, batch.unsqueeze(1)).flatten(0, 1)
                near = (unit(blanked, looked, run).unflatten(0, (len(rows), -1)) * own.unsqueeze(1)).sum(2)
                found.append(places[near.argmin(1).cpu()])
                bar.advance(len(rows))
        return torch.cat(found)

    def side(self, size: tuple[int, int]) -> int:
        """Of the window, in pixels, for images of that height and width."""
        return max(1, round(self.window * min(size)))

    @torch.no_grad()
    def _flips(
        self,
        images: ImageSet,
        of: Tensor,
        shown: ImageSet,
        places: Tensor,
        centers: Tensor,
        looked: Penultimate,
        run: Run,
    ) -> Tensor:
        """For each row the share of the ``shown`` of other clusters that its window moves to its own, float (N,)."""
        others, shares, side = shown.batch().to(run.device), list[Tensor](), self.side(images.size)
        before = nearest(others, centers, looked, run)
        several = max(1, at_once(others) // len(shown))
        with run.progress.bar("pasting", len(images)) as bar:
            for rows in torch.arange(len(images)).split(several):
                own = of[rows].to(run.device).unsqueeze(1)
                stamped = pasted(images.batch(rows).to(run.device), places[rows].to(run.device), side, others)
                after = nearest(stamped.flatten(0, 1), centers, looked, run).unflatten(0, (len(rows), -1))
                outside = before != own
                moved = (outside & (after == own)).sum(1) / outside.sum(1).clamp_min(1)
                shares.append(moved.cpu())
                bar.advance(len(rows))
        return torch.cat(shares).float()


def central(nearness: Tensor, of: Tensor, count: int) -> Tensor:
    """At most ``count`` rows, int64, the most central of each cluster before any second: ``nearness`` (N,) to its own.

    ``of``: the cluster of each row, int64 (N,).
    """
    order = nearness.argsort(descending=True, stable=True)
    rank = torch.empty(len(of), dtype=torch.int64)
    for each in of.unique():
        own = order[of[order] == each]
        rank[own] = torch.arange(len(own))
    return order[rank[order].argsort(stable=True)][:count].sort().values


def candidates(size: tuple[int, int], side: int) -> Tensor:
    """Tops and lefts, int64 (M, 2), of windows half a ``side`` apart, and of those at the far edges."""
    tops, lefts = (sorted({*range(0, length - side, max(1, side // 2)), length - side}) for length in size)
    return torch.cartesian_prod(torch.tensor(tops), torch.tensor(lefts))


def inside(places: Tensor, side: int, size: tuple[int, int]) -> Tensor:
    """Which pixels are in the windows at ``places``, tops and lefts int64 (M, 2): bool (M, H, W)."""
    rows, columns = (torch.arange(length, device=places.device) for length in size)
    below, right = rows - places[:, :1], columns - places[:, 1:]
    return ((below >= 0) & (below < side)).unsqueeze(2) & ((right >= 0) & (right < side)).unsqueeze(1)


def pasted(images: Tensor, places: Tensor, side: int, others: Tensor) -> Tensor:
    """``others`` (P, 3, H, W) with the window of each of ``images`` (N, 3, H, W) where it was: (N, P, 3, H, W).

    ``places``: tops and lefts, int64 (N, 2).
    """
    mask = inside(places, side, (images.shape[2], images.shape[3]))
    return torch.where(mask[:, None, None], images.unsqueeze(1), others)


def nearest(images: Tensor, centers: Tensor, looked: Penultimate, run: Run) -> Tensor:
    """The center (K, D) of length 1 that each of the float images (N, 3, H, W) is nearest to, int64 (N,)."""
    return (unit(images, looked, run) @ centers.T).argmax(1)


def unit(images: Tensor, looked: Penultimate, run: Run) -> Tensor:
    """What is looked at of float images (N, 3, H, W), of length 1, (N, D)."""
    made = []
    for batch in images.split(at_once(images)):
        with run.autocast():
            made.append(F.normalize(looked(batch).float(), dim=1))
    return torch.cat(made)
