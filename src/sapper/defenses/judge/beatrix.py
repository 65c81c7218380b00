"""Beatrix: images with a trigger reach their class with other correlations of features than the class's own images.

Threat model: a classifier whose weights are at hand, ``per_class`` clean labeled images of every class, and images in
doubt, as they come into service or as a training set was delivered (``Defender.stream``). Some of them may have a
trigger; nobody says which, and no label of theirs is looked at: the classifier's answers are their classes.

F ∈ ℝ^{C × places} are the maps that enter the encoder's last stage. Their Gram matrices of the orders p = 1 … 8, with
powers and root taken element by element and signs kept by the root,

    G_p = ( F^p · (F^p)ᵀ )^{1/p}

give C·(C+1)/2 numbers each. The clean images of a class give bounds for every one of them,

    low, high = median ∓ 10 · MAD         deviation = mean over p and numbers of
                                                      max(0, low − g) / |low| + max(0, g − high) / |high|

An image is abnormal for its class when it deviates more than 95 % of the clean ones do from bounds that they have no
part in (5 folds). J_t compares the abnormal images of class t with the others by a kernel two-sample test of their mean
features (``kmmd``). The attacker's class is an outlier above the other classes:

    anomaly index = (max_t J_t − median) / (1.4826 · MAD)         flagged above e²

Source: Ma, Wang, Sun, Xue, Wen, Xiang, "The 'Beatrix' Resurrections: Robust Backdoor Detection via Gram Matrices", NDSS
2023, and the authors' ``defenses/Beatrix/Beatrix.py``: 30 clean images per class, the input of ``layer4``, orders 1 to
8, 10 deviations, the 29th of 30 folded deviations, two kernels, 500 images per class. What differs: the others that
abnormal images are compared with include the clean images of the class, so that there are some where everything is
abnormal. The index looks above the median alone, where the authors take both sides, and its denominator is 1 at least:
else any abnormal image is an outlier where most classes have none. Channels are scaled to a largest clean value of 1,
which changes no deviation but keeps sixteenth powers within float32. The median of an even number is the mean of the
two in the middle. A public port left out the power F^p, and with it all but the first order; here it is taken
(``tests/test_beatrix.py``).
"""

import math
import time
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sapper.defenses.contracts import ClassifierJudge, Need
from sapper.defenses.inside import Seen, before_last_stage, seen_maps
from sapper.defenses.inversion import anomaly_index
from sapper.defenses.labeled import Comparing, of_each_class
from sapper.defenses.measures import TARGET_NAMED, OfVerdicts, detection
from sapper.downstream import Classifier
from sapper.running import Run
from sapper.samples import ImageSet
from sapper.verdicts import Verdict

ALIKE = 1.0
"""What the deviation of the J_t counts as at least. Groups that are alike have J_t ≈ 1.5 (2 less the mean kernel of two
images), whatever their sizes, and a class without abnormal images has 0: of most classes there may be none."""

TINY = 1e-6
"""Added to the size of a bound that deviations are measured by; where clean images never have two channels at once, the
bound is 0. Channels are scaled, so that this is a part of what they usually show."""

ENTRIES = 2**24
"""How many numbers of Gram matrices are in memory at once."""


@dataclass(frozen=True, kw_only=True)
class Beatrix(Comparing, ClassifierJudge):
    """Looks for a class whose inputs are of two kinds, by Gram matrices of features (Ma et al., NDSS 2023).

    ``per_class`` clean images of each class give bounds of ``deviations`` MADs for the ``orders``. ``cut``: the share
    of clean images below it, by ``folds``. At most ``most`` images in doubt of each class are compared. ``layer``: the
    input of the encoder's last ``stage``, or its ``features``. ``threshold`` of the anomaly index.
    """

    per_class: Annotated[int, Field(ge=5)] = 30
    orders: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 2, 3, 4, 5, 6, 7, 8)
    deviations: PositiveFloat = 10.0
    folds: Annotated[int, Field(ge=2, le=5)] = 5
    cut: Annotated[float, Field(gt=0, lt=1)] = 0.95
    most: Annotated[int, Field(ge=2)] = 500
    layer: Literal["stage", "features"] = "stage"
    threshold: PositiveFloat = math.e**2

    kind: ClassVar[Literal["judge"]] = "judge"
    needs: ClassVar[frozenset[Need]] = frozenset({"samples", "labels", "inputs"})
    measures: ClassVar[tuple[OfVerdicts, ...]] = (*detection("anomaly_index"), TARGET_NAMED)
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Ma et al., NDSS 2023"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}}

    def examine(self, classifier: Classifier, clean: ImageSet, stream: ImageSet, run: Run) -> Verdict:
        """Whether a classifier has a backdoor, by ``clean`` labeled images and images in doubt.

        Evidence: ``anomaly_index``, ``suspect`` (the class of the largest distance), for each class its ``distances``
        J_t, how many ``inputs`` the classifier calls so, and the share ``abnormal`` of these. A class that no input is
        called has no distance; where fewer than three have one the answer is undecided.
        """
        started = time.perf_counter()
        stage = before_last_stage(classifier.encoder, "layer") if self.layer == "stage" else None
        bounds, own = self.learn(classifier, clean, stage, run.child("clean images"))
        seen = seen_maps(classifier, stream, run, stage, lambda maps, answers: bounds.look(maps, answers))
        distances, inputs, abnormal = self._distances(seen, own, bounds.cuts, run.child("inputs"))
        index, suspect = anomaly_index([-each for each in distances], ALIKE)
        evidence = {
            "anomaly_index": index,
            "suspect": suspect,
            "distances": [each if math.isfinite(each) else None for each in distances],
            "inputs": inputs,
            "abnormal": abnormal,
        }
        return Verdict(
            score=index,
            threshold=self.threshold,
            flagged=None if index is None else index > self.threshold,
            evidence=evidence,
            seconds=time.perf_counter() - started,
        )

    def learn(
        self, classifier: Classifier, clean: ImageSet, stage: nn.Module | None, run: Run
    ) -> tuple["Bounds", Tensor]:
        """What is normal in each class, and the mean features of its clean images, float (K, ``per_class``, C).

        Images that the classifier calls by their own class go first.
        """
        chosen = of_each_class(clean, self.per_class, classifier, run)
        seen = seen_maps(classifier, clean.take(chosen.flatten()), run, stage, lambda maps, _: maps)
        maps = seen.values.view(*chosen.shape, *seen.values.shape[1:])
        return Bounds.of(maps.to(run.device), self), maps.mean(3)

    def _distances(
        self, seen: Seen, own: Tensor, cuts: Tensor, run: Run
    ) -> tuple[list[float], list[int], list[float | None]]:
        """For each class J_t, minus infinity without inputs; how many inputs, and which share of them is abnormal."""
        values, order = seen.values, torch.randperm(len(seen.answers), generator=run.generator())
        distances, inputs, abnormal = list[float](), list[int](), list[float | None]()
        for label, clean in enumerate(own):
            rows = order[seen.answers[order] == label]
            away = values[rows, 0] > cuts[label]
            odd, usual = values[rows[away], 1:][: self.most], values[rows[~away], 1:]
            inputs.append(len(rows))
            abnormal.append(float(away.double().mean()) if len(rows) else None)
            if len(rows) == 0:
                distances.append(-math.inf)
            else:
                distances.append(kmmd(torch.cat((clean, usual))[: self.most], odd) if len(odd) else 0.0)
        return distances, inputs, abnormal


@dataclass(frozen=True)
class Bounds:
    """What is normal in each of K classes: ``low`` and ``high`` float (orders, K, C·(C+1)/2), ``cuts`` float (K,).

    ``scale`` float (C,): the largest clean value of each channel.
    """

    orders: tuple[int, ...]
    low: Tensor
    high: Tensor
    scale: Tensor
    cuts: Tensor

    @staticmethod
    def of(maps: Tensor, method: Beatrix) -> "Bounds":
        """From the maps of clean images, float (K, n, C, places)."""
        largest = maps.abs().amax((0, 1, 3))
        scale = torch.where(largest > 0, largest, 1)
        scaled = maps / scale.unsqueeze(1)
        parts = torch.arange(maps.shape[1], device=maps.device).tensor_split(method.folds)
        lows, highs, folded = list[Tensor](), list[Tensor](), torch.zeros(maps.shape[:2], device=maps.device)
        for order in method.orders:
            of_classes = []
            for label, some in enumerate(scaled):
                grams = gram(some, order)
                of_classes.append(bounds(grams, method.deviations))
                for part in parts:
                    rest = torch.ones(len(grams), dtype=torch.bool, device=maps.device)
                    rest[part] = False
                    folded[label, part] += excess(grams[part], *bounds(grams[rest], method.deviations))
            lows.append(torch.stack([low for low, _ in of_classes]))
            highs.append(torch.stack([high for _, high in of_classes]))
        ranked = folded.sort(1).values[:, int(method.cut * maps.shape[1])]
        return Bounds(method.orders, torch.stack(lows), torch.stack(highs), scale, (ranked / len(method.orders)).cpu())

    def look(self, maps: Tensor, labels: Tensor) -> Tensor:
        """Deviation, and mean of each channel, float (n, 1 + C), of maps (n, C, places) of the classes ``labels``."""
        size = max(1, ENTRIES // self.low.shape[2])
        parts = zip(maps.split(size), labels.split(size))
        return torch.cat((torch.cat([self.deviation(*part) for part in parts]).unsqueeze(1), maps.mean(2)), 1)

    def deviation(self, maps: Tensor, labels: Tensor) -> Tensor:
        """How far each of n images is out of its class's bounds, float (n,)."""
        scaled = maps / self.scale.unsqueeze(1)
        each = zip(self.orders, self.low, self.high)
        found = [excess(gram(scaled, order), low[labels], high[labels]) for order, low, high in each]
        return torch.stack(found).mean(0)


def gram(maps: Tensor, order: int) -> Tensor:
    """The upper triangle of (F^p · (F^p)ᵀ)^{1/p}, float (N, C·(C+1)/2), row by row, of maps (N, C, places)."""
    powers = maps**order
    products = powers @ powers.transpose(1, 2)
    rows, columns = torch.triu_indices(maps.shape[1], maps.shape[1], device=maps.device)
    chosen = products[:, rows, columns]
    return chosen.sign() * chosen.abs() ** (1 / order)


def bounds(grams: Tensor, deviations: float) -> tuple[Tensor, Tensor]:
    """Median ∓ ``deviations`` · MAD of each column of (n, M), float (M,) each."""
    middle = median(grams)
    spread = deviations * median((grams - middle).abs())
    return middle - spread, middle + spread


def median(values: Tensor) -> Tensor:
    """Of each column of (n, M), float (M,); of an even number the mean of the two in the middle."""
    ranked = values.sort(0).values
    return (ranked[(len(values) - 1) // 2] + ranked[len(values) // 2]) / 2


def excess(grams: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """How far rows of (n, M) are out of the bounds, (M,) or (n, M), in parts of these, on the mean of columns; (n,)."""
    below = (low - grams).clamp_min(0) / (low.abs() + TINY)
    above = (grams - high).clamp_min(0) / (high.abs() + TINY)
    return (below + above).mean(1)


def kmmd(one: Tensor, other: Tensor) -> float:
    """n·m/(n+m) · MMD² of rows (n, D) and (m, D), each pair counted, itself too; k(x, y) = Σ_b exp(−‖x − y‖² / b).

    b is the median of all squared distances, and half of it.
    """
    n, m = len(one), len(other)
    rows = torch.cat((one, other)).double()
    squares = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
    width = float(median(squares.flatten().unsqueeze(1)))
    if width == 0:
        return 0.0
    kernel = torch.exp(-squares / width) + torch.exp(-2 * squares / width)
    distance = kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()
    return n * m / (n + m) * float(distance)
