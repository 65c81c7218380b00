"""Two ways to compute the same thing, timed in turns."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Row:
    """Median speeds of both, and how many times as fast ours is: median, lowest and highest ratio of the rounds."""

    ours: float
    textbook: float
    unit: str
    ratio: float
    lowest: float
    highest: float
    repeats: int


def paired(
    ours: Callable[[], object],
    textbook: Callable[[], object],
    *,
    images: int,
    rounds: int,
    textbook_images: int | None = None,
    unit: str = "images/s",
) -> Row:
    """Time both once per round, after one untimed call of each.

    A call works on ``images`` images (or whatever ``unit`` counts), the textbook's on ``textbook_images`` if that is
    another number.

    The ratio is taken within a round, so that a machine that slows down for a while slows both.
    """
    ours()
    textbook()
    times = [(_seconds(ours), _seconds(textbook)) for _ in range(rounds)]
    theirs = textbook_images or images
    ratios = [(textbook_time / theirs) / (our_time / images) for our_time, textbook_time in times]
    return Row(
        ours=round(images / statistics.median(our_time for our_time, _ in times), 1),
        textbook=round(theirs / statistics.median(textbook_time for _, textbook_time in times), 1),
        unit=unit,
        ratio=round(statistics.median(ratios), 2),
        lowest=round(min(ratios), 2),
        highest=round(max(ratios), 2),
        repeats=rounds,
    )


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
