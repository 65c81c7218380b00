"""SCAn: the features of an attacked class come from two groups, where those of every other class come from one.

Threat model: a classifier whose weights are at hand, ``per_class`` clean labeled images of every class, and a set in
doubt (``Defender.stream``): a training set with the labels that it was delivered with, some of whose rows may be
poison; or images as they come, whose labels are the classifier's answers. Nobody says which have a trigger.

A feature r of an image of class t, taken before the last linear layer, is untangled into the class's identity and a
variation that all classes have in common,

    r = μ_t + ε,     μ_t ~ N(0, S_μ),     ε ~ N(0, S_ε)

S_μ and S_ε are estimated on the clean images by EM: from them the expected identity of each class,
μ_t = S_μ (n_t S_μ + S_ε)⁻¹ Σ r, and ε = r − μ_t; from these the covariances again. Then every class of the set in doubt
(with its clean images) is explained twice, by one identity, and by two that the rows are divided between. Twice the
logarithm of the likelihoods' ratio, over the n_t rows of the class,

    J_t = 1/n_t · Σ_r [ ‖r − μ_t‖² − min_j ‖r − u_j‖² ]      with ‖x‖² = xᵀ S_ε⁻¹ x

says how much better two do. The attacker's class is an outlier above the other classes:

    anomaly index = (max_t J_t − median) / (1.4826 · MAD)         flagged above e²

Source: Tang, Wang, Tang, Zhang, "Demon in the Variant: Statistical Analysis of DNNs for Robust Backdoor Contamination
Detection", USENIX Security 2021; steps and threshold as in BackdoorBench's ``detection_pretrain/scan.py``: at most 100
steps of EM, rows divided by which of u₁ and u₂ is nearer, which are the means of their rows. What differs: μ_t of the
test is the expected identity, as in the estimate (the public code leaves the factor S_μ S_ε⁻¹ out there). The division
begins ``starts`` times and the best counts, where one random start may find none. Directions in which clean images of
a class hardly vary (``rank``) are left out; the public code's inverse blows up what is rounding there. The index looks
above the median alone.
"""

import math
import time
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from sapper.defenses.contracts import ClassifierJudge, Need
from sapper.defenses.inside import last_features
from sapper.defenses.inversion import anomaly_index
from sapper.defenses.labeled import Comparing, of_each_class
from sapper.defenses.measures import TARGET_NAMED, OfVerdicts, detection
from sapper.downstream import Classifier
from sapper.errors import SapperError
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.verdicts import Verdict

SETTLED = 1e-5
"""EM ends where the covariances change by less, in units of the first S_ε."""


@dataclass(frozen=True, kw_only=True)
class SCAn(Comparing, ClassifierJudge):
    """Looks for a class whose features come from two groups, by a likelihood ratio (Tang et al., USENIX Security 2021).

    ``per_class`` clean images of each class estimate what varies within classes, in at most ``steps`` of EM. ``rank``:
    directions with less than this share of the largest variance are left out. ``starts`` of the division of a class, of
    at most ``splits`` steps each. ``threshold`` of the anomaly index.
    """

    per_class: Annotated[int, Field(ge=2)] = 30
    steps: PositiveInt = 100
    rank: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    starts: PositiveInt = 8
    splits: PositiveInt = 100
    threshold: PositiveFloat = math.e**2

    kind: ClassVar[Literal["judge"]] = "judge"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples", "labels", "inputs"})
    measures: ClassVar[tuple[OfVerdicts, ...]] = (*detection("anomaly_index"), TARGET_NAMED)
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Tang et al., USENIX Security 2021"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def examine(self, classifier: Classifier, clean: ImageSet, stream: ImageSet, run: Run) -> Verdict:
        """Whether a classifier has a backdoor, by ``clean`` labeled images and a set in doubt.

        Evidence: ``anomaly_index``, ``suspect`` (the class of the largest ratio), for each class its ``ratios`` J_t,
        how many of the ``inputs`` are of it, and the share ``apart`` of them on the side where fewer clean images are.
        A class without inputs has no ratio; where fewer than three have one the answer is undecided.
        """
        if stream.labels is not None and stream.classes != clean.classes:
            what = "the set in doubt has labels of other classes than the clean images"
            raise SapperError(what, where="stream", remedy="give it the same classes, or no labels")
        started = time.perf_counter()
        chosen = of_each_class(clean, self.per_class, classifier, run.child("clean images"))
        own = last_features(classifier, clean.take(chosen.flatten()), run).values.double()
        own_labels = torch.arange(len(chosen)).repeat_interleave(self.per_class)
        seen = last_features(classifier, stream, run)
        labels = seen.answers if stream.labels is None else stream.labels
        model = untangle(own, own_labels, len(chosen), self.rank, self.steps)
        rows, of = torch.cat((own, seen.values.double())), torch.cat((own_labels, labels))
        ratios, side = model.ratios(rows, of, self.starts, self.splits, run.child("division"))
        inputs = torch.bincount(labels, minlength=len(chosen))
        known = torch.where(inputs > 0, ratios, -math.inf).tolist()
        index, suspect = anomaly_index([-each for each in known])
        evidence = {
            "anomaly_index": index,
            "suspect": suspect,
            "ratios": [each if math.isfinite(each) else None for each in known],
            "inputs": inputs.tolist(),
            "apart": _apart(side, of, len(own), len(chosen)),
        }
        return Verdict(
            score=index,
            threshold=self.threshold,
            flagged=None if index is None else index > self.threshold,
            evidence=evidence,
            seconds=time.perf_counter() - started,
        )


def _apart(side: Tensor, of: Tensor, clean: int, classes: int) -> list[float | None]:
    """For each class, of the rows behind the ``clean`` ones the share on the side where fewer clean ones are."""
    shares = list[float | None]()
    for label in range(classes):
        own, inputs = (side[rows][of[rows] == label] for rows in (slice(clean), slice(clean, None)))
        usual = own.double().mean() >= 0.5
        shares.append(float((inputs != usual).double().mean()) if len(inputs) else None)
    return shares


@dataclass(frozen=True)
class Untangled:
    """What varies between classes and within them, in coordinates in which S_ε is 1 and S_μ diagonal.

    ``mean`` float (D,); ``axes`` float (D, R) from features less the mean to these coordinates; ``between`` float (R,),
    S_μ's diagonal.
    """

    mean: Tensor
    axes: Tensor
    between: Tensor

    def ratios(self, rows: Tensor, of: Tensor, starts: int, steps: int, run: Run) -> tuple[Tensor, Tensor]:
        """J_t of each class, float (K,), from rows (N, D) of the classes ``of``, each of which has some; and which side
        each row is on, bool (N,).
        """
        placed = (rows - self.mean) @ self.axes
        classes = int(of.max()) + 1
        counts = torch.bincount(of, minlength=classes)
        one = identities(placed, of, counts, self.between)
        alone = (placed - one[of]).square().sum(1)
        side = divided(placed, of, classes, starts, steps, run)
        distances = torch.stack([(placed - each[of]).square().sum(1) for each in means(placed, of, side, classes)])
        gain = alone - distances.amin(0)
        return torch.zeros(classes, dtype=rows.dtype).index_add(0, of, gain) / counts, side


def untangle(rows: Tensor, labels: Tensor, classes: int, rank: float, steps: int) -> Untangled:
    """EM on clean rows, float64 (N, D), of labels int64 (N,): S_μ and S_ε in the directions in which classes vary.

    Raises ``SapperError`` where nothing varies within a class.
    """
    mean, counts = rows.mean(0), torch.bincount(labels, minlength=classes)
    centered = rows - mean
    within = centered - (torch.zeros(classes, rows.shape[1], dtype=rows.dtype).index_add(0, labels, centered)
                         / counts.unsqueeze(1))[labels]  # fmt: skip
    variances, directions = torch.linalg.eigh(covariance(within))
    kept = variances > rank * variances[-1]
    if not bool(variances[-1] > 0):
        what, remedy = "all clean images of a class have the same features", "give other images, or look at the network"
        raise SapperError(what, where="features", remedy=remedy)
    axes = directions[:, kept] / variances[kept].sqrt()
    between = covariance((centered - within) @ axes)
    inside = torch.eye(axes.shape[1], dtype=rows.dtype)
    placed = centered @ axes
    for _ in range(steps):
        turn, diagonal = diagonalized(between, inside)
        found = identities(placed @ turn, labels, counts, diagonal) @ torch.linalg.inv(turn)
        before = between, inside
        between, inside = covariance(found[labels]), covariance(placed - found[labels])
        if sum(float((now - then).norm()) for now, then in zip((between, inside), before)) < SETTLED:
            break
    turn, diagonal = diagonalized(between, inside)
    return Untangled(mean, axes @ turn, diagonal)


def diagonalized(between: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """T (R, R) with Tᵀ S_ε T = 1 and Tᵀ S_μ T diagonal, and that diagonal (R,)."""
    values, vectors = torch.linalg.eigh(inside)
    white = vectors / values.clamp_min(values[-1] * 1e-12).sqrt()
    diagonal, turn = torch.linalg.eigh(white.T @ between @ white)
    return white @ turn, diagonal.clamp_min(0)


def identities(placed: Tensor, of: Tensor, counts: Tensor, between: Tensor) -> Tensor:
    """The expected identity of each class, S_μ (n_t S_μ + 1)⁻¹ Σ r, float (K, R), where S_μ is diagonal."""
    sums = torch.zeros(len(counts), placed.shape[1], dtype=placed.dtype).index_add(0, of, placed)
    return sums * between / (counts.unsqueeze(1) * between + 1)


def covariance(rows: Tensor) -> Tensor:
    """Of rows (N, D), over N − 1."""
    centered = rows - rows.mean(0)
    return centered.T @ centered / (len(rows) - 1)


def divided(placed: Tensor, of: Tensor, classes: int, starts: int, steps: int, run: Run) -> Tensor:
    """On which of two sides each row of each class is, bool (N,): the division with the least distance to the means.

    A start takes two rows of each class for the means. Classes are divided at once; each keeps its best start.
    """
    best, generator = torch.zeros(len(of), dtype=torch.bool), run.generator()
    least = torch.full((classes,), math.inf, dtype=placed.dtype)
    counts = torch.bincount(of, minlength=classes)
    first_row, last_row = counts.cumsum(0) - counts, counts.cumsum(0) - 1
    for _ in range(starts):
        order = torch.randperm(len(of), generator=generator)
        order = order[of[order].argsort(stable=True)]
        one, other = placed[order[first_row]], placed[order[(first_row + 1).minimum(last_row)]]
        side = nearer(placed, of, one, other)
        for _ in range(steps):
            before, side = side, nearer(placed, of, *means(placed, of, side, classes))
            if torch.equal(before, side):
                break
        distances = torch.stack([(placed - each[of]).square().sum(1) for each in means(placed, of, side, classes)])
        cost = torch.zeros(classes, dtype=placed.dtype).index_add(0, of, distances.amin(0))
        better = cost < least
        best, least = torch.where(better[of], side, best), torch.where(better, cost, least)
    return best


def nearer(placed: Tensor, of: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Which rows are nearer to their class's row of ``other`` (K, R) than of ``one``, bool (N,)."""
    return (placed - other[of]).square().sum(1) < (placed - one[of]).square().sum(1)


def means(placed: Tensor, of: Tensor, side: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The means of either side's rows in each class, float (K, R) each; of an empty side that of the whole class."""
    sums = torch.zeros(2 * classes, placed.shape[1], dtype=placed.dtype).index_add(0, 2 * of + side, placed)
    counts = torch.bincount(2 * of + side, minlength=2 * classes).unsqueeze(1)
    whole = (sums[::2] + sums[1::2]) / (counts[::2] + counts[1::2]).clamp_min(1)
    each = torch.where(counts > 0, sums / counts.clamp_min(1), whole.repeat_interleave(2, 0))
    return each[::2], each[1::2]
