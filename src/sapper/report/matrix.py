"""Every attack beside every defense: a heat map for the page, and a line for each defense in words.

What a square shows depends on what its defense does (``MEASURES``). Green is good for the defender.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from sapper.experiment.results import Judged, Record, Results
from sapper.report import tables, text
from sapper.report.tables import Estimate


@dataclass(frozen=True)
class Square:
    """One attack and one defense. ``heat``: 1 where the defense works, 0 where it does nothing, none for neither."""

    text: str
    title: str = ""
    heat: float | None = None


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
    """``columns``: the attacks, with their tasks where they have several."""

    columns: tuple[str, ...]
    blocks: tuple[Block, ...]
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Column:
    """An attack on one task, for one target; none of these where it has no target."""

    attack: str
    task: str | None
    target: str | None
    title: str
    worked: bool


@dataclass(frozen=True)
class Measure:
    """What is told of defenses of one kind: the ``names`` of the numbers in a square, of which the first decides.

    ``heat`` of that number: from 0 (the defense does nothing) to 1. ``limits``: the heat from which on it saw an
    attack, and below which it missed it; ``words`` for these two, what lies between in the middle.
    """

    title: str
    names: tuple[str, ...]
    heat: Callable[[float], float]
    limits: tuple[float, float]
    words: tuple[str, str, str]

    def verdict(self, value: float) -> str:
        """In words, whether the defense did its work."""
        saw, between, missed = self.words
        good, poor = self.limits
        heat = self.heat(value)
        return saw if heat >= good else missed if heat < poor else between


def _of_area(area: float) -> float:
    return min(max(2 * area - 1, 0.0), 1.0)


def _of_rate(rate: float) -> float:
    return 1 - rate


TELLS = ("Sees (AUC of 90 % or more)", "Sees in part (70 to 90 %)", "Misses (less than 70 %)")
AREA_LIMITS, RATE_LIMITS = (_of_area(0.9), _of_area(0.7)), (_of_rate(0.1), _of_rate(0.5))

DETECTS = Measure("Detectors and screens: AUC, attacked against clean, in %", ("AUC",), _of_area, AREA_LIMITS, TELLS)
SIFTS = Measure("Sifts: AUC, poison against clean rows, in %", ("AUC",), _of_area, AREA_LIMITS, TELLS)
REPAIRS = Measure(
    "Repairs: strict ASR / accuracy afterwards, in %",
    ("strict ASR", "accuracy"),
    _of_rate,
    RATE_LIMITS,
    ("Takes out (strict ASR of 10 % or less)", "Takes out in part (10 to 50 %)", "Leaves (more than 50 %)"),
)
CERTIFIES = Measure(
    "Certified defenses: strict ASR / accuracy / certified accuracy for the smallest size, in %",
    ("strict ASR", "accuracy", "certified accuracy"),
    _of_rate,
    RATE_LIMITS,
    ("Stops (strict ASR of 10 % or less)", "Stops in part (10 to 50 %)", "Lets through (more than 50 %)"),
)
MEASURES = (DETECTS, SIFTS, REPAIRS, CERTIFIES)
TELLING = (DETECTS, SIFTS)
"""Those that tell something of an attack that does not work, too."""


@dataclass(frozen=True)
class Found:
    """What a defense did against an attack: ``numbers`` as its measure names them; none where it could not decide."""

    measure: Measure
    numbers: tuple[Estimate, ...]
    about: str = ""

    @property
    def square(self) -> Square:
        if not self.numbers:
            return Square("?", self.about)
        shown = " / ".join(each.number for each in self.numbers)
        named = [f"{name} {_full(each)}" for name, each in zip(self.measure.names, self.numbers)]
        return Square(shown, ", ".join([*named, *filter(None, [self.about])]), self.measure.heat(self.numbers[0].value))


def _full(estimate: Estimate) -> str:
    return f"{estimate.number} ({estimate.span})" if estimate.span else estimate.number


WORKS = 0.5
"""The strict ASR from which on an attack works; of others a repair or a certified defense cannot show anything."""


def section(results: Results) -> Matrix | None:
    """The heat map of a scenario that is a matrix."""
    if not results.scenario.get("matrix"):
        return None
    columns, found = _columns(results), squares(results)
    alone = _alone(results, columns)
    blocks = [Block("Without a defense, in %", alone)] if alone else []
    for measure in MEASURES:
        of_kind = [name for name in _defenses(results) if _measure(found, name) is measure]
        if of_kind:
            blocks.append(Block(measure.title, tuple(_row(results, columns, found, name) for name in of_kind)))
    return Matrix(tuple(column.title for column in columns), tuple(blocks), tuple(sentences(results)))


Places = Mapping[tuple[str, Column], Found]


def squares(results: Results) -> Places:
    """What was found, by defense and column."""
    columns, found = _columns(results), {}
    for name in _defenses(results):
        ours = [record for record in results.records if record.defense == name]
        verdicts = [verdict for verdict in results.verdicts if verdict.defense == name]
        for column in columns:
            there = _found(results, column, [each for each in ours if _is_of(each, column)], verdicts)
            if there is not None:
                found[name, column] = there
    return found


def sentences(results: Results) -> list[str]:
    """A line for each defense: what it saw, which attacks it missed, and where it does not apply."""
    if not results.scenario.get("matrix"):
        return []
    found, told = squares(results), []
    for name in _defenses(results):
        measure, ours = _measure(found, name), {column: each for (of, column), each in found.items() if of == name}
        words = []
        if measure is not None:
            shown = [column for column in ours if column.worked or measure in TELLING]
            judged = {column: ours[column].numbers[0] for column in shown if ours[column].numbers}
            for label in measure.words:
                some = [
                    f"{column.title} ({n.number})" for column, n in judged.items() if measure.verdict(n.value) == label
                ]
                words += [f"{label}: {', '.join(some)}."] if some else []
            if undecided := [column.title for column, each in ours.items() if not each.numbers]:
                words.append(f"Undecided: {', '.join(undecided)}.")
            if idle := [column.title for column in ours if not column.worked]:
                words.append(f"Without a defense these have a strict ASR below 50 %: {', '.join(idle)}.")
        words += [f"Does not apply to {attacks}: {reason}." for reason, attacks in _reasons(results, name).items()]
        told.append(f"{name}: {' '.join(words)}")
    return told


def _reasons(results: Results, defense: str) -> dict[str, str]:
    """Why it does not apply, and the attacks of which this is so."""
    reasons: dict[str, list[str]] = {}
    for each in results.left_out:
        if each.defense == defense:
            reasons.setdefault(each.reason.removeprefix(f"{each.attack} "), []).append(each.attack)
    return {reason: ", ".join(attacks) for reason, attacks in reasons.items()}


def _defenses(results: Results) -> list[str]:
    """Their names, in the order of the scenario's file."""
    tables_of = results.scenario.get("defense", [])
    named = [str(each.get("name", each.get("method"))) for each in tables_of]
    there = [record.defense for record in results.records if record.defense is not None]
    return list(dict.fromkeys([*named, *there, *(each.defense for each in results.left_out)]))


def _columns(results: Results) -> list[Column]:
    """Every attack, on each of its tasks."""
    rows = [row for row in tables.summary_rows(results) if row.primary and row.attack is not None]
    several = {row.attack for row in rows if sum(each.attack == row.attack for each in rows) > 1}
    columns = []
    for row in rows:
        title = f"{row.attack}: {tables.aim(row.task, row.target)}" if row.attack in several else str(row.attack)
        rate = row.estimates.get("ASR_strict")
        worked = rate is not None and rate.value >= WORKS
        columns.append(Column(str(row.attack), row.task, row.target, title, worked))
    lone = list(dict.fromkeys([*tables.attacks(results), *(each.attack for each in results.left_out)]))
    known = {column.attack for column in columns}
    return columns + [Column(name, None, None, name, False) for name in lone if name not in known]


def _alone(results: Results, columns: Sequence[Column]) -> tuple[Row, ...]:
    """What each attack does where nobody defends: its strict ASR, and the accuracy on clean images."""
    rows = {(row.attack, row.task, row.target): row for row in tables.summary_rows(results) if row.primary}
    shown = {"strict ASR": "ASR_strict", "accuracy": "BA"}
    made = []
    for name, metric in shown.items():
        cells = []
        for column in columns:
            row = rows.get((column.attack, column.task, column.target))
            value = row.estimates.get(metric) if row is not None else None
            cells.append(Square(text.NOTHING) if value is None else Square(value.number, value.span))
        made.append(Row(name, tuple(cells)))
    return tuple(made)


def _row(results: Results, columns: Sequence[Column], found: Places, name: str) -> Row:
    left_out = {(each.defense, each.attack): each.reason for each in results.left_out}
    cells = []
    for column in columns:
        there = found.get((name, column))
        reason = left_out.get((name, column.attack), "")
        if there is None:
            cells.append(Square(text.NOTHING, reason))
        elif column.worked or there.measure in TELLING:
            cells.append(there.square)
        else:  # what has not worked cannot be stopped
            cells.append(replace(there.square, heat=None))
    return Row(name, tuple(cells))


def _measure(found: Places, name: str) -> Measure | None:
    return next((each.measure for (defense, _), each in found.items() if defense == name), None)


def _is_of(record: Record, column: Column) -> bool:
    fits = record.attack in (column.attack, None) and record.task in (column.task, None)
    return fits and record.target in (column.target, None)


def _found(results: Results, column: Column, records: Sequence[Record], verdicts: Sequence[Judged]) -> Found | None:
    """What a defense with these records and verdicts did against an attack."""
    heads = (tables.primary_head(results, column.attack), None)
    ours = [each for each in records if each.head in heads]
    of = partial(_estimate, [each for each in ours if each.condition.get("state", "attacked") == "attacked"])
    judged = [each for each in verdicts if each.attack == column.attack and each.task in (column.task, None)]
    if judged:
        return _detected(judged)
    certified = of("defended_ASR_strict")
    if certified is not None:
        beside = [of("defended_accuracy"), of("certified_accuracy")]
        return Found(CERTIFIES, (certified, *filter(None, beside)))
    area = of("AUC")
    if area is not None:
        sifted = [each for each in (of("ASR_strict"), of("BA")) if each is not None]
        if len(sifted) == 2:
            after = f"trained again: strict ASR {sifted[0].number}, accuracy {sifted[1].number}"
            return Found(SIFTS, (area,), after)
        return Found(DETECTS, (area,))
    rate, accuracy = of("ASR_strict"), of("BA")
    if rate is not None and accuracy is not None:
        return Found(REPAIRS, (rate, accuracy))
    return None


def _detected(judged: Sequence[Judged]) -> Found:
    """The AUC over the models of all seeds together, each of which counts once."""
    import torch

    from sapper.metrics import auc_rate

    scores = {
        state: [each.score for each in judged if each.state == state and each.score is not None]
        for state in ("attacked", "clean")
    }
    if not scores["attacked"] or not scores["clean"]:
        return Found(DETECTS, (), "no score of the attacked or of the clean models")
    area = auc_rate(torch.tensor(scores["attacked"]), torch.tensor(scores["clean"]))
    seeds = len({each.seed for each in judged})
    about = f"{len(scores['attacked'])} against {len(scores['clean'])}"
    return Found(DETECTS, (Estimate(area.value, area.low, area.high, seeds, "images"),), about)


def _estimate(records: Iterable[Record], metric: str) -> Estimate | None:
    """Of several sizes of a threat, that for the smallest."""
    there = [record for record in records if record.metric == metric]
    sizes = [size for record in there if (size := _size(record)) is not None]
    if sizes:
        there = [record for record in there if _size(record) == min(sizes)]
    return tables.estimate(there) if there else None


def _size(record: Record) -> float | None:
    return next((record.condition[key] for key in ("patch", "radius") if key in record.condition), None)
