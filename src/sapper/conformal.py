"""Thresholds that hold whatever the scores' distribution: by ranks among scores of what is known to be clean."""

from collections.abc import Iterable
from math import ceil


def fewest(rate: float) -> int:
    """How many scores ``conformal_threshold`` needs for that rate, in (0, 1): 19 for 5 %."""
    return max(1, ceil(1 / rate - 1e-9) - 1)


def conformal_threshold(scores: Iterable[float], rate: float) -> float | None:
    """The smallest of n scores that a further one exceeds with a probability of at most ``rate``, in (0, 1).

    That is number ⌈(n + 1)(1 − rate)⌉ of them, the smallest first: if the further one is drawn as they were, it is as
    likely to have any of the n + 1 places among them. None where so few promise nothing.
    """
    known = sorted(scores)
    rank = max(1, ceil((len(known) + 1) * (1 - rate) - 1e-9))
    return known[rank - 1] if rank <= len(known) else None
