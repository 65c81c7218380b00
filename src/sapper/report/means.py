"""Means over seeds with 95 % intervals, and where these come from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import sqrt
from statistics import fmean, stdev
from typing import Literal

from sapper.errors import SapperError
from sapper.experiment.results import Record
from sapper.report import text

METRICS = ("CA", "BA", "ASR", "ASR_strict", "ASR_B", "ASR_B_strict", "lift")
SIGNED = ("lift", "accuracy_change")  # differences of two rates
LABELS = {"ASR_strict": "ASR strict", "ASR_B": "ASR-B", "ASR_B_strict": "ASR-B strict"}
"""How a metric is called in headings, where its key is not its name."""

Source = Literal["seeds", "models", "images", "none"]
INTERVALS: dict[Source, str] = {
    "seeds": "Student’s t over the seeds",
    "models": "Wilson’s for shares of models, one of each seed",
    "images": "one seed; the interval covers the choice of test images, not of the seed",
    "none": "no interval was recorded",
}


OF_MODELS = ("flagged", "target_named", "trigger_recovered")
"""Shares of models, of each of which it is so or not."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its 95 % interval; ``source`` tells where the interval comes from (``INTERVALS``)."""

    value: float
    low: float | None
    high: float | None
    n_seeds: int
    source: Source
    unit: str = "fraction"
    signed: bool = False

    @property
    def number(self) -> str:
        """``98.3``: percent for rates, points for differences (signed)."""
        return text.number(self.value, self.unit, signed=self.signed)

    @property
    def span(self) -> str:
        """``97.1…99.0``, empty without an interval."""
        return text.span(self.low, self.high, self.unit, signed=self.signed)


def estimate(records: Sequence[Record]) -> Estimate:
    """Mean over seeds. Its interval is Student's t over seeds, or the record's own when there is one seed.

    A t interval knows nothing of the range of a rate and is cut to it (``text.LIMITS``). Where each seed has a single
    model of which something is so or not (``OF_MODELS``), it is Wilson's for their share: all alike, they would have
    none over seeds. Raises ``SapperError`` for records of one seed with different values.
    """
    of_seed: dict[int | None, Record] = {}
    for record in records:
        if of_seed.setdefault(record.seed, record).value != record.value:
            what = f"{record.metric} has two values for seed {record.seed}, and nothing tells them apart"
            raise SapperError(what, where="records", remedy="run the scenario again with this version of sapper")
    first = next(iter(of_seed.values()))
    values = [record.value for record in of_seed.values()]
    shown = partial(Estimate, unit=first.unit, signed=first.metric in SIGNED)
    if len(values) == 1:
        has_interval = first.low is not None and first.high is not None
        return shown(values[0], first.low, first.high, 1, "images" if has_interval else "none")
    if first.metric in OF_MODELS and all(record.n == 1 for record in of_seed.values()):
        from torch import tensor

        from sapper.metrics import share  # torch takes its time to load, too

        rate = share(tensor(values) > 0.5)
        return shown(rate.value, rate.low, rate.high, len(values), "models")
    from scipy.special import stdtrit  # takes half a second, which an audit need not wait for

    mean = fmean(values)
    half = float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / sqrt(len(values))
    low, high = mean - half, mean + half
    least, most = text.limits(first.metric, first.unit)
    low, high = max(low, least), min(high, most)
    return shown(mean, low, high, len(values), "seeds")


def interval_note(estimates: Iterable[Estimate]) -> str:
    """Where the intervals of these estimates come from, in words."""
    counts = dict[Source, set[int]]()
    for item in estimates:
        counts.setdefault(item.source, set()).add(item.n_seeds)
    return "; ".join(
        f"{words} (n = {_range(counts[source])})" if source in ("seeds", "models") else words
        for source, words in INTERVALS.items()
        if source in counts
    )


def _range(counts: set[int]) -> str:
    """``5``, or ``2 to 5``."""
    least, most = min(counts), max(counts)
    return str(least) if least == most else f"{least} to {most}"
