"""Two ways to compute the same thing, timed in turns."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Row:
    """Median seconds of both, and how many times as long the textbook takes: median and range of the rounds."""

    name: str
    ours: float
    textbook: float
    ratio: float
    lowest: float
    highest: float


def paired(ours: Callable[[], object], textbook: Callable[[], object], rounds: int = 7, *, name: str) -> Row:
    """Time both once per round after one untimed call of each.

    The ratio is taken within a round, so that a machine that slows down for a while slows both. Work on an accelerator
    has to be waited for (``torch.cuda.synchronize``) in the functions themselves.
    """
    ours()
    textbook()
    times = [(_seconds(ours), _seconds(textbook)) for _ in range(rounds)]
    ratios = [textbook_time / our_time for our_time, textbook_time in times]
    return Row(
        name=name,
        ours=statistics.median(our_time for our_time, _ in times),
        textbook=statistics.median(textbook_time for _, textbook_time in times),
        ratio=statistics.median(ratios),
        lowest=min(ratios),
        highest=max(ratios),
    )


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
