"""The paper's metrics, their strict forms, and the intervals that belong beside them.

CA    accuracy of the clean classifier on clean images (a clean classifier stands on the clean encoder)
BA    accuracy of the backdoored classifier on clean images
ASR   share of all triggered images that the backdoored classifier calls the target class; the paper's, which
      counts images of the target class too
ASR-B the same for the clean classifier: the baseline that the attack has to beat
strict  images of the target class left out
lift  strict ASR − strict ASR-B, what the backdoor itself adds

Source of the definitions: Jia, Liu, Gong (IEEE S&P 2022) and the authors' evaluation code.
"""

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import torch
from torch import Tensor

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Rate:
    """A value with its 95 % interval and the number of images behind it. Fractions, not per cent."""

    value: float
    low: float
    high: float
    n: int


def share(hits: Tensor, z: float = Z95) -> Rate:
    """The share of true values in ``hits``, bool (N,), N ≥ 1, with Wilson's score interval.

    ``z``: the normal quantile that makes it one of 95 %, or of more.
    """
    n = hits.numel()
    p = float(hits.double().mean())
    center = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    # Rounding can put a bound just beyond a value at the very end of the scale.
    return Rate(p, min(p, max(0.0, center - half)), max(p, min(1.0, center + half)), n)


def least_share(hits: Tensor) -> Rate:
    """The least of the G shares of true values in the columns of ``hits``, bool (N, G), N ≥ 1, G ≥ 1.

    Its 95 % interval holds whichever column is the least of the population: Wilson's of each column at 1 − 0.05/G
    (Bonferroni), so that all G hold at once, and of these the least bounds. They grow with the share.
    """
    worst = hits[:, int(hits.double().mean(0).argmin())]
    return share(worst, NormalDist().inv_cdf(1 - 0.025 / hits.shape[1]))


def difference(ours: Tensor, theirs: Tensor) -> Rate:
    """Mean of ``ours`` − mean of ``theirs``, bool (N,) each, *of the same images*, with a paired interval.

    Newcombe's interval for paired proportions (Statistics in Medicine 17, 1998, method 10): Wilson's intervals of
    the two shares combined under their correlation φ, continuity-corrected. It behaves at 0 and 1, where the
    normal one has width zero.
    """
    n = ours.numel()
    first, second = share(ours), share(theirs)
    both = int((ours & theirs).sum())
    neither = int((~ours & ~theirs).sum())
    only_first, only_second = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    product = float(both * neither - only_first * only_second)
    if product > 0:
        product = max(product - n / 2, 0.0)
    spread = sqrt(float(both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither))
    phi = product / spread if spread else 0.0
    value = first.value - second.value
    down, up = first.value - first.low, first.high - first.value
    other_up, other_down = second.high - second.value, second.value - second.low
    below = sqrt(max(0.0, down**2 - 2 * phi * down * other_up + other_up**2))
    above = sqrt(max(0.0, up**2 - 2 * phi * up * other_down + other_down**2))
    return Rate(value, max(-1.0, value - below), min(1.0, value + above), n)


def jackknifed(value: float, without: Tensor, least: float, most: float) -> Rate:
    """A statistic of N images with its 95 % interval, cut to what it can be, from ``least`` to ``most``.

    ``without`` float64 (N,), N ≥ 2: its values without each of the images. The interval is ± 1.96 of the jackknife's
    deviations, s² = (N − 1)/N · Σ(v − v̄)² (Efron and Stein, Annals of Statistics 9, 1981): of a mean the usual one, and
    good for means over pairs of images, too.
    """
    n = without.numel()
    half = Z95 * sqrt((n - 1) * float(without.var(correction=0)))
    return Rate(value, max(least, value - half), min(most, value + half), n)


def attack_metrics(
    labels: Tensor,
    target: int,
    *,
    clean_on_clean: Tensor,
    clean_on_triggered: Tensor,
    backdoored_on_clean: Tensor,
    backdoored_on_triggered: Tensor,
) -> dict[str, Rate]:
    """All metrics of one task, target and head.

    ``labels`` int64 (N,), the true classes of the test images; ``target`` the attacker's class. The others are
    int64 (N,) predictions: which classifier, on which images. At least one label must differ from ``target``.
    """
    others = labels != target
    hit, hit_baseline = backdoored_on_triggered == target, clean_on_triggered == target
    return {
        "CA": share(clean_on_clean == labels),
        "BA": share(backdoored_on_clean == labels),
        "ASR": share(hit),
        "ASR_strict": share(hit[others]),
        "ASR_B": share(hit_baseline),
        "ASR_B_strict": share(hit_baseline[others]),
        "lift": difference(hit[others], hit_baseline[others]),
    }


def auc(positive: Tensor, negative: Tensor) -> float:
    """Area under the ROC curve: how often a score of ``positive`` (n,) exceeds one of ``negative`` (m,), ties half.

    Scores may be infinite; two infinities are a tie.
    """
    ours, theirs = positive.double().contiguous(), negative.double().sort().values
    below, upto = (torch.searchsorted(theirs, ours, right=right) for right in (False, True))
    return float((below + upto).double().sum() / (2 * len(ours) * len(theirs)))


def auc_rate(positive: Tensor, negative: Tensor) -> Rate:
    """``auc`` with its 95 % interval, n being n + m; both at least one.

    Newcombe's interval (Statistics in Medicine 25, 2006, method 5): the values from which the one found is no further
    than a deviation times 1.96, with Hanley and McNeil's variance *there*. It behaves at 0 and 1. Models are taken for
    independent samples.
    """
    from scipy.optimize import brentq  # takes a second, which other metrics need not wait for

    found, (n, m) = auc(positive, negative), (len(positive), len(negative))
    extra = (n + m) / 2 - 1

    def excess(area: float) -> float:
        variance = area * (1 - area) * (1 + extra * ((1 - area) / (2 - area) + area / (1 + area))) / (n * m)
        return (found - area) ** 2 - Z95**2 * variance

    # At 0 and 1 the variance is 0, and what was found there is a solution, but not the one that is wanted.
    low = brentq(excess, 0.0, min(found, 1 - 1e-9), xtol=1e-12) if found > 0 else 0.0
    high = brentq(excess, max(found, 1e-9), 1.0, xtol=1e-12) if found < 1 else 1.0
    return Rate(found, low, high, n + m)


def is_constant(predictions: Tensor, share_of_one: float = 0.95) -> bool:
    """Whether nearly all of ``predictions``, int64 (N,), name one class: such a classifier measures nothing."""
    return float(torch.bincount(predictions).max()) >= share_of_one * predictions.numel()
