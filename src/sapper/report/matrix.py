"""Every attack beside every defense: a heat map for the page, and a line for each defense in words.

What a square shows depends on what its defense does (``MEASURES``). Green is good for the defender.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from sapper.experiment.results import Judged, Record, Results
from sapper.report import means, summaries, text
from sapper.report.means import Estimate

WORKS = 0.5
"""The strict ASR from which on an attack works by itself; what has not worked cannot be stopped."""

SEEN, MISSED = 0.9, 0.7
"""AUC from which on a detector sees an attack, and below which it misses it."""

OUT = "n/a"
"""The text of a square whose defense does not apply to the attack."""

STOPPED, LEFT, COST = 0.1, 0.5, 0.03
"""Strict ASR up to which an attack is stopped, and above which it is left; how much accuracy that may cost."""


@dataclass(frozen=True)
class Square:
    """One attack and one defense. ``heat``: 1 where the defense works, 0 where it does nothing, none for neither.

    ``span``: the 95 % intervals of the numbers in ``text``.
    """

    text: str
    title: str = ""
    heat: float | None = None
    span: str = ""


@dataclass(frozen=True)
class Row:
    name: str
    squares: tuple[Square, ...]


@dataclass(frozen=True)
class Block:
    """Rows whose squares show the same: what that is, in words."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Matrix:
    """``columns``: the attacks, with their tasks where they have several. The first block is without a defense."""

    columns: tuple[str, ...]
    blocks: tuple[Block, ...]
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Column:
    """An attack on one task, for one target, and what it does without a defense; no target: it has no trigger."""

    attack: str
    title: str
    task: str | None = None
    target: str | None = None
    rate: Estimate | None = None
    accuracy: Estimate | None = None

    @property
    def worked(self) -> bool:
        return self.rate is not None and self.rate.value >= WORKS


@dataclass(frozen=True)
class Measure:
    """What is told of defenses of one kind: the ``names`` of the numbers in a square.

    ``words`` for a defense that did its work, did it in part, and did not. ``stops``: the first number is a strict ASR,
    the second the accuracy; else there is an AUC alone.
    """

    title: str
    names: tuple[str, ...]
    words: tuple[str, str, str]
    stops: bool = False


TELLS = ("Sees (AUC of 90 % or more)", "Sees in part (70 to 90 %)", "Misses (less than 70 %)")
DETECTS = Measure("Detectors: AUC, attacked models against clean ones, in %", ("AUC",), TELLS)
SCREENS = Measure("Screens: AUC, triggered inputs against plain ones, in %", ("AUC",), TELLS)
SIFTS = Measure("Sifts: AUC, rows of poison against clean ones, in %", ("AUC",), TELLS)
REPAIRS = Measure(
    "Repairs: strict ASR / accuracy afterwards, in %",
    ("strict ASR", "accuracy"),
    (
        "Takes out (strict ASR of 10 % or less, at 3 points of accuracy or less)",
        "In part, or at a higher cost (strict ASR of 50 % or less)",
        "Leaves (more)",
    ),
    stops=True,
)
CERTIFIES = Measure(
    "Certified defenses: strict ASR / accuracy / certified accuracy for the smallest size, in %",
    ("strict ASR", "accuracy", "certified accuracy"),
    (
        "Stops (strict ASR of 10 % or less, at 3 points of accuracy or less)",
        "In part, or at a higher cost (strict ASR of 50 % or less)",
        "Lets through (more)",
    ),
    stops=True,
)
MEASURES = (DETECTS, SCREENS, SIFTS, REPAIRS, CERTIFIES)


@dataclass(frozen=True)
class Found:
    """What a defense did against an attack: ``numbers`` as its measure names them; none where there was nothing to say.

    ``about``: what else there is to know, or why there are no numbers.
    """

    measure: Measure
    numbers: tuple[Estimate, ...]
    about: str = ""

    @property
    def shown(self) -> str:
        return " / ".join(each.number for each in self.numbers) or "?"

    @property
    def span(self) -> str:
        there = any(each.span for each in self.numbers)
        return " / ".join(each.span or text.NOTHING for each in self.numbers) if there else ""

    @property
    def title(self) -> str:
        named = [
            f"{name} {each.number}{f' ({each.span})' if each.span else ''}"
            for name, each in zip(self.measure.names, self.numbers)
        ]
        return ", ".join([*named, *filter(None, [self.about])])

    def counts(self, column: Column) -> bool:
        """Whether it tells something of the defense: that needs an attack that works, but for sifts, which see rows."""
        return bool(self.numbers) and (column.worked or self.measure is SIFTS)

    def heat(self, column: Column) -> float | None:
        """From 0 to 1: how far AUC is above chance, or the share that is not hit times the accuracy kept."""
        if not self.counts(column):
            return None
        first = self.numbers[0].value
        if not self.measure.stops:
            return min(max(2 * first - 1, 0.0), 1.0)
        kept = self.numbers[1].value / column.accuracy.value if column.accuracy and column.accuracy.value else 1.0
        return (1 - first) * min(1.0, kept)

    def words(self, column: Column) -> str:
        """In words, whether the defense did its work."""
        did, in_part, did_not = self.measure.words
        first = self.numbers[0].value
        if not self.measure.stops:
            return did if first >= SEEN else did_not if first < MISSED else in_part
        lost = column.accuracy.value - self.numbers[1].value if column.accuracy else 0.0
        return did_not if first > LEFT else did if first <= STOPPED and lost <= COST else in_part


Places = Mapping[tuple[str, Column], Found]


def section(results: Results) -> Matrix | None:
    """The heat map of a scenario that is a matrix."""
    if not results.scenario.get("matrix"):
        return None
    columns, found, reasons = attacks(results), squares(results), _reasons(results)
    alone = (
        Row("strict ASR", tuple(_plain(column.rate) for column in columns)),
        Row("accuracy", tuple(_plain(column.accuracy) for column in columns)),
    )
    blocks = [Block("Without a defense, in %", alone)]
    for measure in (*MEASURES, None):
        names = [name for name in _defenses(results) if _measure(found, name) is measure]
        rows = [Row(name, tuple(_square(name, column, found, reasons) for column in columns)) for name in names]
        blocks += [Block(measure.title if measure else "Not tried", tuple(rows))] if rows else []
    told = tuple(_line(name, columns, found, reasons) for name in _defenses(results))
    return Matrix(tuple(column.title for column in columns), tuple(blocks), told)


def _plain(value: Estimate | None) -> Square:
    return Square(text.NOTHING) if value is None else Square(value.number, value.span, span=value.span)


def _square(name: str, column: Column, found: Places, reasons: Mapping[tuple[str, str], str]) -> Square:
    there = found.get((name, column))
    if there is not None:
        return Square(there.shown, there.title, there.heat(column), there.span)
    reason = reasons.get((name, column.attack))
    return Square(text.NOTHING, "not tried") if reason is None else Square(OUT, reason)


def attacks(results: Results) -> list[Column]:
    """Every attack, on each of its tasks and for each of its targets."""
    rows = [row for row in summaries.summary_rows(results) if row.primary and "ASR_strict" in row.estimates]
    count = [row.attack for row in rows]
    columns = [
        Column(
            attack=str(row.attack),
            title=summaries.of_attack(results, row.attack, summaries.aim(row.task, row.target))
            if count.count(row.attack) > 1
            else str(row.attack),
            task=row.task,
            target=row.target,
            rate=row.estimates["ASR_strict"],
            accuracy=row.estimates.get("BA"),
        )
        for row in rows
    ]
    known = {column.attack for column in columns}
    others = dict.fromkeys([*summaries.attacks(results), *(each.attack for each in results.left_out)])
    return columns + [Column(attack=name, title=name) for name in others if name not in known]


def squares(results: Results) -> Places:
    """What was found, by defense and column."""
    found, columns = {}, [column for column in attacks(results) if column.target is not None]
    for name in _defenses(results):
        ours = [record for record in results.records if record.defense == name]
        verdicts = [verdict for verdict in results.verdicts if verdict.defense == name]
        for column in columns:
            there = _found(results, column, [each for each in ours if _is_of(each, column)], verdicts)
            if there is not None:
                found[name, column] = there
    return found


def sentences(results: Results) -> list[str]:
    """A line for each defense: what it saw, which attacks it missed, and where it was not tried and why."""
    if not results.scenario.get("matrix"):
        return []
    columns, found, reasons = attacks(results), squares(results), _reasons(results)
    return [_line(name, columns, found, reasons) for name in _defenses(results)]


def _line(name: str, columns: Sequence[Column], found: Places, reasons: Mapping[tuple[str, str], str]) -> str:
    return f"{name}: {' '.join(_told(name, columns, found, reasons))}"


def _told(name: str, columns: Sequence[Column], found: Places, reasons: Mapping[tuple[str, str], str]) -> Iterable[str]:
    ours = {column: found[name, column] for column in columns if (name, column) in found}
    counted = {column: each for column, each in ours.items() if each.counts(column)}
    measure = _measure(found, name)
    for label in measure.words if measure is not None else ():
        some = [_named(column, each) for column, each in counted.items() if each.words(column) == label]
        if some:
            yield f"{label}: {', '.join(some)}."
    groups = {
        f"Without a defense these have a strict ASR below {WORKS:.0%}".replace("%", " %"): [
            column for column, each in ours.items() if each.numbers and not column.worked
        ]
    }
    for column, each in ours.items():
        if not each.numbers:
            groups.setdefault(f"No answer ({each.about})", []).append(column)
    for column in (column for column in columns if column not in ours):
        reason = reasons.get((name, column.attack))
        groups.setdefault("Not tried" if reason is None else f"Does not apply ({reason})", []).append(column)
    for label, some_columns in groups.items():
        if some_columns:
            yield f"{label}: {', '.join(column.title for column in some_columns)}."


def _named(column: Column, found: Found) -> str:
    """``badencoder (2.4, accuracy 72.6)``."""
    beside = f", accuracy {found.numbers[1].number}" if found.measure.stops else ""
    return f"{column.title} ({found.numbers[0].number}{beside})"


def _reasons(results: Results) -> dict[tuple[str, str], str]:
    """Why a defense does not apply to an attack."""
    return {(each.defense, each.attack): each.reason for each in results.left_out}


def _defenses(results: Results) -> list[str]:
    """Their names, in the order of the scenario's file."""
    named = [str(each.get("name", each.get("method"))) for each in results.scenario.get("defense", [])]
    there = [record.defense for record in results.records if record.defense is not None]
    return list(dict.fromkeys([*named, *there, *(each.defense for each in results.left_out)]))


def _measure(found: Places, name: str) -> Measure | None:
    return next((each.measure for (defense, _), each in found.items() if defense == name), None)


def _is_of(record: Record, column: Column) -> bool:
    fits = record.attack in (column.attack, None) and record.task in (column.task, None)
    return fits and record.target in (column.target, None)


def _found(results: Results, column: Column, records: Sequence[Record], verdicts: Sequence[Judged]) -> Found | None:
    """What a defense with these records and verdicts did against an attack; none where it was not tried."""
    judged = [each for each in verdicts if each.attack == column.attack and _looks_at(results, each, column)]
    if judged:
        return _detected(judged)
    heads = (summaries.primary_head(results, column.attack), None)
    ours = [each for each in records if each.head in heads and each.condition.get("state", "attacked") == "attacked"]
    stages, of = {each.stage for each in ours}, partial(_estimate, ours)
    if "certify" in stages:
        return Found(CERTIFIES, _all(map(of, ("defended_ASR_strict", "defended_accuracy", "certified_accuracy"))))
    if "screen" in stages:
        return Found(SCREENS, _all([of("AUC")]))
    after = _all(map(of, ("ASR_strict", "BA")))
    if "sift" in stages:
        told = f"trained again: strict ASR {after[0].number}, accuracy {after[1].number}" if len(after) == 2 else ""
        return Found(SIFTS, _all([of("AUC")]), told)
    recovered = of("trigger_recovered")
    if recovered is not None and recovered.value == 0:
        return Found(REPAIRS, (), "no trigger was recovered, so nothing was changed")
    return Found(REPAIRS, after) if len(after) == 2 else None


def _all(estimates: Iterable[Estimate | None]) -> tuple[Estimate, ...]:
    return tuple(each for each in estimates if each is not None)


def _looks_at(results: Results, verdict: Judged, column: Column) -> bool:
    """Whether a verdict is of a classifier of the task, of an encoder attacked for it, or of a clean encoder."""
    if verdict.classifier is not None:
        return verdict.task == column.task
    of = next((model.tasks for model in results.subjects if model.id == verdict.subject), ())
    return verdict.state == "clean" or column.task in (of or (verdict.task,))


def _detected(judged: Sequence[Judged]) -> Found:
    """The AUC over the models of all seeds together, each of which counts once."""
    import torch

    from sapper.metrics import auc_rate

    attacked, clean = (
        [each.score for each in judged if each.state == state and each.score is not None]
        for state in ("attacked", "clean")
    )
    if not attacked or not clean:
        return Found(DETECTS, (), "no score of attacked or of clean models")
    area = auc_rate(torch.tensor(attacked), torch.tensor(clean))
    seeds = len({each.seed for each in judged})
    about = f"{len(attacked)} attacked and {len(clean)} clean models"
    return Found(DETECTS, (Estimate(area.value, area.low, area.high, seeds, "images"),), about)


def _estimate(records: Iterable[Record], metric: str) -> Estimate | None:
    """Of several sizes of a threat, that for the smallest."""
    there = [record for record in records if record.metric == metric]
    sizes = [size for record in there if (size := _size(record)) is not None]
    if sizes:
        there = [record for record in there if _size(record) == min(sizes)]
    return means.estimate(there) if there else None


def _size(record: Record) -> float | None:
    return next((record.condition[key] for key in ("patch", "radius") if key in record.condition), None)
