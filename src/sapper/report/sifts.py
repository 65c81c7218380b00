"""Sifts in a scenario: how well each tells poison from clean rows, and what it took out of the set."""

from collections.abc import Sequence

from sapper.experiment.results import Record, Results
from sapper.report import means, summaries, text
from sapper.report.summaries import Measurement
from sapper.report.tables import Cell, Table

STAGE = "sift"
NOTE = (
    "In %. AUC: how often a row of poison scores above a clean one. Removed: of the rows that are poison, and of those "
    "that are clean. What training on the rest gives stands with the repairs."
)


def table(results: Results) -> Table | None:
    """A row for each poisoned set and sift; none where nothing was sifted."""
    ours = [record for record in results.records if record.stage == STAGE]
    places = dict.fromkeys(
        (record.attack, record.task, record.defense, text.condition(_own(record.condition))) for record in ours
    )
    rows = []
    for attack, task, sift, condition in places:
        some = [
            record
            for record in ours
            if (record.attack, record.task, record.defense) == (attack, task, sift)
            and text.condition(_own(record.condition)) == condition
        ]
        title = summaries.of_attack(results, attack, ", ".join(filter(None, [task, condition])))
        found = [_cell(some, "AUC"), *(_cell(some, "removed", rows=rows) for rows in ("poison", "clean"))]
        rows.append((Cell(title), Cell(sift or ""), *found))
    columns = ("poison for", "sift", "AUC", "poison removed", "clean removed")
    return Table(columns, tuple(rows), NOTE) if rows else None


def shows(results: Results, item: Measurement) -> bool:
    """Whether the table has this number."""
    sifts = {record.defense for record in results.records if record.stage == STAGE}
    return item.defense in sifts and item.metric in ("AUC", "removed")


def _own(condition: dict[str, object]) -> dict[str, object]:
    """The scenario's own part of a condition: which variant it is."""
    return {key: value for key, value in condition.items() if key != "rows"}


def _cell(records: Sequence[Record], metric: str, **condition: str) -> Cell:
    there = [each for each in records if each.metric == metric and condition.items() <= each.condition.items()]
    if not there:
        return Cell(text.NOTHING, kind="number")
    found = means.estimate(there)
    return Cell(found.number, title=found.span, kind="number")
