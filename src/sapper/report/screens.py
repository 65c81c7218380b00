"""What screens of inputs found: a table, ROC curves for the page, and sentences for the terminal."""

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from sapper.experiment.results import Results, Roc
from sapper.report import figures, means, summaries, text
from sapper.report.defenses import PLACES, STATES
from sapper.report.figures import Key, RocLine
from sapper.report.means import Estimate
from sapper.report.summaries import Measurement
from sapper.report.tables import Cell, Table

COLUMNS = {"AUC": "AUC", "false_rejections": "false rejections", "rejected": "rejected with the trigger"}
"""Metrics of the table, and what they are called there."""

NOTE = (
    "In %; 95 % intervals: {source}. False rejections are of plain test images, at the threshold that the defender’s "
    "clean images chose. What a screen rejects on the clean encoder, too, it rejects for the trigger’s sake, not for "
    "the backdoor’s."
)

MARKS = ("line", "dotted")
"""The first target's curves are drawn through, those of others dotted."""


@dataclass(frozen=True)
class Screened:
    """The ROC curves of one screen on one task: a line for each seed."""

    title: str
    drawing: Markup
    keys: list[Key]


@dataclass(frozen=True)
class Screens:
    table: Table | None
    groups: list[Screened]


def section(results: Results) -> Screens | None:
    """The table, then the curves of each screen on each task."""
    if not results.rocs:
        return None
    groups = [_drawn(group, title, f"screen{at}") for at, (title, group) in enumerate(_groups(results).items())]
    return Screens(table(results), groups)


def shows(results: Results, item: Measurement) -> bool:
    """Whether the table has this number."""
    return item.metric in COLUMNS and item.defense in {curve.defense for curve in results.rocs}


def table(results: Results) -> Table | None:
    """A row for each screen, task, target and model."""
    rows, shown, items = [], list[Estimate](), summaries.measurements(results)
    for title, group in _groups(results).items():
        several = len({curve.target for curve in group}) > 1
        for curve in {(curve.target, curve.state): curve for curve in group}.values():
            whose = f"{title}, {summaries.aim(None, curve.target)}" if several else title
            found = _found(items, curve)
            shown += found.values()
            cells = (_cell(found.get(metric)) for metric in COLUMNS)
            rows.append((Cell(whose), Cell(text.STATES[curve.state]), *cells))
    note = NOTE.format(source=means.interval_note(shown))
    return Table(("screen", "encoder or classifier", *COLUMNS.values()), tuple(rows), note) if rows else None


def sentences(results: Results) -> list[str]:
    """A line for each screen, task and target."""
    told, items = [], summaries.measurements(results)
    for title, group in _groups(results).items():
        for target in dict.fromkeys(curve.target for curve in group):
            ours = {curve.state: _found(items, curve) for curve in group if curve.target == target}
            words = [
                f"{text.STATES[state]}: rejects {found['rejected'].number} % of triggered images and "
                f"{found['false_rejections'].number} % of plain ones, AUC {found['AUC'].number} %"
                for state, found in ours.items()
                if found.keys() == COLUMNS.keys()
            ]
            told.append(f"{title}, trigger of {target}: {'; '.join(words)}.")
    return told


def _groups(results: Results) -> dict[str, list[Roc]]:
    """Curves by a title that names screen, task and variant."""
    groups: dict[str, list[Roc]] = {}
    for curve in results.rocs:
        title = summaries.of_attack(results, curve.attack, f"{curve.defense} on {curve.task}")
        groups.setdefault(", ".join(filter(None, [title, text.condition(curve.condition)])), []).append(curve)
    return groups


def _found(items: Iterable[Measurement], curve: Roc) -> dict[str, Estimate]:
    """What was measured of a curve's screen, model and target, over all seeds."""
    place = {"task": curve.task, "state": curve.state} | ({"attack": curve.attack} if curve.attack else {})
    found = {}
    for item in items:
        there = {key: value for key, value in item.place.items() if key not in PLACES}
        fits = item.defense == curve.defense and place.items() <= item.place.items() and there == curve.condition
        if fits and item.metric in COLUMNS and item.place.get("target") in (curve.target, None):
            found[item.metric] = item.estimate
    return found


def _cell(found: Estimate | None) -> Cell:
    if found is None:
        return Cell(text.NOTHING, kind="number")
    return Cell(f"{found.number}  ({found.span})" if found.span else found.number, kind="number")


def _drawn(group: list[Roc], title: str, name: str) -> Screened:
    """A line for each seed and target, in the colors of their models' states."""
    targets, lines = list(dict.fromkeys(curve.target for curve in group)), list[RocLine]()
    for curve in group:
        mark = MARKS[min(targets.index(curve.target), 1)]
        key = Key(STATES[curve.state], mark, f"{text.STATES[curve.state]}, {curve.target}")
        lines.append(RocLine(key, curve.points, curve.at))
    return Screened(title, figures.roc(lines, name), list(dict.fromkeys(line.key for line in lines)))
