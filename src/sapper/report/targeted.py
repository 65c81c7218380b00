"""What targeted attacks did: which share of the test images that they chose takes the wanted class."""

from collections.abc import Iterable

from sapper.experiment.results import Results
from sapper.report import means, summaries, tables, text
from sapper.report.means import Estimate
from sapper.report.summaries import Measurement
from sapper.report.tables import Table

METRICS = {
    "hits": "hits, %",
    "hits_before": "without the attack, %",
    "accuracy_change": "change of accuracy, points",
}
"""What is measured of these attacks, and what the columns are called."""


def is_targeted(item: Measurement) -> bool:
    """Whether a targeted attack was measured so."""
    return item.defense is None and item.metric in METRICS


def rows(results: Results) -> list[tuple[dict[str, str], dict[str, Estimate]]]:
    """Place and what was measured there, for each attack, task, head, and variant."""
    found: list[tuple[dict[str, str], dict[str, Estimate]]] = []
    for item in filter(is_targeted, summaries.measurements(results)):
        order = ("attack", "task", "head", *(key for key in item.place if key not in ("attack", "task", "head")))
        place = {key: text.plain(item.place[key]) for key in order if key in item.place}
        if not found or found[-1][0] != place:
            found.append((place, {}))
        found[-1][1][item.metric] = item.estimate
    return found


def table(results: Results) -> Table | None:
    """A row for each place; nothing where no attack was a targeted one."""
    shown = rows(results)
    return tables.table([place | _cells(measured) for place, measured in shown], _note(each for _, each in shown))


def _cells(measured: dict[str, Estimate]) -> dict[str, str]:
    found = {METRICS[name]: measured[name] for name in METRICS if name in measured}
    return {name: f"{each.number}  ({each.span})" if each.span else each.number for name, each in found.items()}


def _note(measured: Iterable[dict[str, Estimate]]) -> str:
    intervals = means.interval_note(each[name] for each in measured for name in ("hits", "hits_before") if name in each)
    return (
        "Hits: of the clean test images that the attack chose, those that the classifier takes for the wanted class; "
        f"in brackets the 95 % interval, {intervals}. The accuracy is that on clean test images."
    )


def sentences(results: Results) -> list[str]:
    """A line for each place, for the terminal."""
    told = []
    for place, measured in rows(results):
        more = text.condition({key: value for key, value in place.items() if key not in ("attack", "task", "head")})
        words = ", ".join(filter(None, [f"{place['attack']} on {place['task']}, {place['head']} head", more]))
        numbers = {name: f"{each.number} %" for name, each in measured.items()}
        if measured["hits"].span:
            numbers["hits"] += f" ({measured['hits'].span})"
        line = f"{words}: {numbers['hits']} of the chosen test images are taken for the wanted class"
        line += f", {numbers['hits_before']} without the attack." if "hits_before" in numbers else "."
        if "accuracy_change" in measured:
            line += f" Accuracy changes by {measured['accuracy_change'].number} points."
        told.append(line)
    return told
